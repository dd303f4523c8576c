//! Several GPUs for one run.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Config, ConfigError, Method};

/// How gradients are summed over several GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AllReduce {
    /// By NCCL where that works, otherwise in the host's memory.
    #[default]
    Auto,
    /// By NCCL, from card to card of NVIDIA.
    Nccl,
    /// In the host's memory.
    Host,
}

impl Config {
    /// Devices that compute each step.
    pub fn num_devices(&self) -> usize {
        self.model.devices.len().max(1)
    }

    /// The names of the devices, the first one of which also evaluates and writes.
    pub(crate) fn device_names(&self) -> &[String] {
        match self.model.devices.is_empty() {
            true => std::slice::from_ref(&self.model.device),
            false => &self.model.devices,
        }
    }

    /// The flag that gives these names.
    pub(crate) fn device_flag(&self) -> &'static str {
        match self.model.devices.is_empty() {
            true => "device",
            false => "devices",
        }
    }

    /// What several devices may be, and what does not go with them.
    pub(super) fn check_devices(&self) -> Result<(), ConfigError> {
        let (device, devices) = (&self.model.device, &self.model.devices);
        let conflict = |text: String| Err(ConfigError::Conflict(text));
        if !devices.is_empty() && device != "auto" {
            return conflict(format!(
                "--device {device} and --devices {} both say where to train: leave one of them out",
                devices.join(",")
            ));
        }
        if devices.len() < 2 {
            return Ok(());
        }
        let wrong = |expected: &str, found: String| {
            Err(ConfigError::Value {
                flag: "devices",
                expected: expected.to_owned(),
                found,
            })
        };
        let names: Vec<String> = devices.iter().map(|name| full_name(name)).collect();
        for (index, name) in names.iter().enumerate() {
            let given = &devices[index];
            match name.as_str() {
                "cpu" => {
                    return wrong(
                        "GPUs",
                        format!(
                            "`{given}`: a CPU trains one copy of the model, on all of its cores; --device cpu does"
                        ),
                    );
                }
                "auto" => {
                    return wrong(
                        "the names of GPUs, such as cuda:0,cuda:1",
                        format!("`{given}`"),
                    );
                }
                _ => {}
            }
            if names[..index].contains(name) {
                return wrong(
                    "each GPU once",
                    format!("`{given}` twice: a second copy on the same GPU only takes its memory"),
                );
            }
            if backend(name) != backend(&names[0]) {
                return wrong("GPUs of one kind", devices.join(","));
            }
        }
        if self.method.method == Method::Grpo {
            return conflict(
                "--devices: --method grpo draws and judges its answers on one device: give one with --device".to_owned(),
            );
        }
        Ok(())
    }
}

/// `cuda:0` for `cuda`.
fn full_name(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    match name.as_str() {
        "cuda" | "rocm" => name + ":0",
        _ => name,
    }
}

fn backend(name: &str) -> &str {
    name.split(':').next().unwrap_or_default()
}

/// Micro-batches of a step, and how they are made of the settings of a run.
pub(crate) fn micro_batches_of(settings: &Map<String, Value>) -> (u64, String) {
    let steps = settings.get("gradient_accumulation");
    let steps = steps.and_then(Value::as_u64).unwrap_or(1);
    let devices = settings.get("devices").and_then(Value::as_array);
    let devices = devices.map_or(1, |devices| devices.len().max(1)) as u64;
    let shown = match devices {
        1 => format!("{steps} on one device"),
        _ => format!("{steps} on each of {devices} devices"),
    };
    (steps * devices, shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(devices: &[&str], change: impl Fn(&mut Config)) -> String {
        let mut config = Config::new("x");
        config.model.devices = devices.iter().map(ToString::to_string).collect();
        change(&mut config);
        match config.check_devices() {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn several_devices_are_different_gpus_of_one_kind() {
        for (devices, expected) in [
            (&["cuda:0", "cuda:1"][..], ""),
            (&["cuda", "cuda:1", "cuda:3"], ""),
            (&["cpu"], ""),
            (&["cpu", "cpu"], "--device cpu"),
            (&["cuda:0", "cpu"], "--device cpu"),
            (&["auto", "cuda:1"], "the names of GPUs"),
            (&["cuda", "CUDA:0"], "`CUDA:0` twice"),
            (&["wgpu", "wgpu"], "`wgpu` twice"),
            (&["cuda:0", "rocm:0"], "of one kind"),
        ] {
            let said = refused(devices, |_| {});
            assert_eq!(said.is_empty(), expected.is_empty(), "{devices:?}: {said}");
            assert!(said.contains(expected), "{devices:?}: {said}");
        }
    }

    #[test]
    fn what_does_not_go_with_several_devices_is_refused() {
        let two = ["cuda:0", "cuda:1"];
        let said = refused(&two, |config| config.model.device = "cuda:1".into());
        assert!(
            said.starts_with("--device cuda:1 and --devices cuda:0,cuda:1"),
            "{said}"
        );
        let said = refused(&two, |config| config.method.method = Method::Grpo);
        assert!(said.contains("--method grpo"), "{said}");
        assert_eq!(
            refused(&two, |config| config.method.method = Method::Kto),
            ""
        );
    }
}
