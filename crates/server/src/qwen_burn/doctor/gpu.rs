//! Cards, their drivers, and what this build can use of them.

use std::io::Read as _;
use std::panic::{catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use model_qwen::device::{compiled_backends, cuda_compiler};
use model_qwen::parse_device;

use super::check::Check;

/// Where WSL2 has the libraries of the driver of Windows.
const WSL_FOLDER: &str = "/usr/lib/wsl/lib";
/// How long a driver's program may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn checks() -> Vec<Check> {
    let backends = compiled_backends();
    let has_cuda = backends.contains(&"cuda");
    let cards = nvidia_cards();
    let mut checks = vec![Check::ok("backends", backends.join(", "))];
    checks.extend(is_wsl().then(wsl));
    checks.push(card(&cards, has_cuda));
    if let Some(compiler) = cuda_compiler() {
        checks.push(match compiler {
            Ok(()) => Check::ok("NVRTC", "the compiler of kernels and its headers are there"),
            Err(advice) => Check::missing("NVRTC", "not usable", advice),
        });
    }
    checks.extend(
        backends
            .iter()
            .filter(|name| **name != "cpu")
            .map(|name| device(name)),
    );
    checks
}

/// What `nvidia-smi` says of the cards.
fn nvidia_cards() -> Result<Vec<String>, String> {
    let wsl = format!("{WSL_FOLDER}/nvidia-smi");
    let programs = ["nvidia-smi", &wsl];
    let query = [
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ];
    let said = programs.iter().find_map(|program| ask(program, &query));
    match said {
        None => Ok(Vec::new()),
        Some(said) => {
            let said = said?;
            let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(lines.map(|line| format!("{line} (driver)")).collect())
        }
    }
}

/// The output of a program; `None` if there is no such program.
fn ask(program: &str, arguments: &[&str]) -> Option<Result<String, String>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => {
                // It may have ended just now.
                let _ = child.kill();
                return Some(Err(format!("{program} does not answer")));
            }
        }
    };
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        // What is no text is no answer.
        let _ = stdout.read_to_string(&mut text);
    }
    Some(match status.success() {
        true => Ok(text),
        false => Err(format!(
            "{program}: {}",
            text.trim().lines().next().unwrap_or("fails")
        )),
    })
}

fn card(cards: &Result<Vec<String>, String>, has_cuda: bool) -> Check {
    match cards {
        Err(reason) => Check::note(
            "GPU",
            reason.clone(),
            "check the driver: `nvidia-smi` has to list the card",
        ),
        Ok(cards) if !cards.is_empty() && has_cuda => Check::ok("GPU", cards.join("; ")),
        Ok(cards) if !cards.is_empty() => Check::note(
            "GPU",
            cards.join("; "),
            "this build computes on the CPU: install the one with CUDA (docs: Install)",
        ),
        Ok(_) => Check::note(
            "GPU",
            no_card(),
            "models run on the CPU; a card of NVIDIA needs its driver",
        ),
    }
}

/// What there is besides `nvidia-smi`.
fn no_card() -> String {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version");
    match version {
        Ok(text) => format!(
            "the kernel has a driver ({}), and there is no nvidia-smi",
            text.lines().next().unwrap_or_default()
        ),
        Err(_) => "no NVIDIA driver (no nvidia-smi)".to_owned(),
    }
}

/// Whether this is Linux in Windows.
fn is_wsl() -> bool {
    let version = std::fs::read_to_string("/proc/version").unwrap_or_default();
    is_wsl_version(&version)
}

fn is_wsl_version(version: &str) -> bool {
    version.to_ascii_lowercase().contains("microsoft")
}

fn wsl() -> Check {
    let library = Path::new(WSL_FOLDER).join("libcuda.so.1");
    let found = format!("Linux in Windows; {}", library.display());
    match library.exists() {
        true => Check::ok("WSL2", format!("{found} is there")),
        false => Check::note(
            "WSL2",
            format!("{found} is not there"),
            "for a GPU install the NVIDIA driver in Windows, and none in Linux, then `wsl --shutdown`; if programs do not find \
             the library, add /usr/lib/wsl/lib to LD_LIBRARY_PATH",
        ),
    }
}

/// Whether a device that this build has computes.
fn device(name: &'static str) -> Check {
    // Some drivers panic where there is no card.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let tried = catch_unwind(|| parse_device(name).map_err(|error| error.to_string()));
    set_hook(hook);
    match tried {
        Ok(Ok(_)) => Check::ok("device", format!("--device {name} works")),
        Ok(Err(reason)) => {
            Check::missing("device", format!("--device {name} does not work"), reason)
        }
        Err(_) => Check::missing(
            "device",
            format!("--device {name} does not work"),
            "its driver fails: install it anew, or use --device cpu",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_in_windows_is_recognised() {
        let wsl = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@941d701f84f1)";
        assert!(is_wsl_version(wsl));
        assert!(!is_wsl_version(
            "Linux version 6.8.0-45-generic (buildd@lcy02)"
        ));
    }

    #[test]
    fn a_card_without_cuda_in_the_build_is_told() {
        let cards = Ok(vec!["NVIDIA H200, 143771 MiB, 580.1 (driver)".to_owned()]);
        assert!(card(&cards, true).advice.is_none());
        assert!(card(&cards, false).advice.unwrap().contains("CUDA"));
        assert!(card(&Ok(Vec::new()), true).advice.is_some());
        let failed = card(&Err("nvidia-smi does not answer".to_owned()), true);
        assert!(failed.advice.unwrap().contains("driver"));
    }

    #[test]
    fn a_program_that_is_not_there_says_nothing() {
        assert!(ask("no-such-program-of-a-driver", &[]).is_none());
    }
}
