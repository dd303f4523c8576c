//! Whether a run fits, with which batch, and what would fit instead.

use std::fmt;

use model_qwen::{GPU_MEMORY_UTILIZATION, Quantization, QwenConfig};
use tracing::info;

use super::{Machine, MemoryPlan, RowLengths, is_auto};
use crate::config::{Config, ConfigError, GradientCheckpointing, Method};
use crate::error::TrainError;

/// Lengths that are tried are multiples of this.
const LENGTH_STEP: usize = 64;
/// And of this one before.
const LARGE_STEP: usize = 8 * LENGTH_STEP;

/// What a run takes, and whether it may.
#[derive(Debug)]
pub struct PlannedRun {
    /// The settings, with the batch that `auto` stands for.
    pub config: Config,
    /// What it takes.
    pub plan: MemoryPlan,
    /// Bytes that it may take, and what sets them; `None` where nothing does.
    pub budget: Option<(u64, String)>,
    /// [`TrainError::Memory`] where a run would be refused.
    pub refusal: Option<TrainError>,
}

impl PlannedRun {
    /// The settings and the plan.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn accepted(self) -> Result<(Config, MemoryPlan), TrainError> {
        match self.refusal {
            Some(refusal) => Err(refusal),
            None => Ok((self.config, self.plan)),
        }
    }
}

impl fmt::Display for PlannedRun {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.config.run;
        writeln!(out, "{}", self.plan)?;
        write!(
            out,
            "{} at once, {} times per step",
            run.batch_size, run.gradient_accumulation
        )?;
        if self.config.num_devices() > 1 {
            write!(out, " on each of {} devices", self.config.num_devices())?;
        }
        match (&self.budget, &self.refusal) {
            (_, Some(refusal)) => write!(out, "\n{refusal}"),
            (Some((bytes, by)), None) => {
                let left = bytes.saturating_sub(self.plan.total()) >> 20;
                write!(out, "; {by} allows {} MiB, {left} are left", bytes >> 20)
            }
            (None, None) => Ok(()),
        }
    }
}

/// The memory that a run may take.
#[derive(Clone, Debug)]
struct Budget {
    bytes: u64,
    /// What sets it.
    by: String,
    /// Whether a flag does.
    is_asked: bool,
    /// Bytes that settings and device allow, whoever else uses them now.
    allowed: u64,
}

impl Budget {
    /// `None` where nothing is known of the device, and nobody said anything.
    fn of(config: &Config, machine: &Machine) -> Option<Self> {
        let settings = &config.memory;
        let is_asked =
            settings.device_memory.is_some() || settings.gpu_memory_utilization.is_some();
        let total = settings.device_memory.or(machine.total)?;
        let default = match machine.gpu_dtype {
            Some(_) => GPU_MEMORY_UTILIZATION,
            None => 1.0,
        };
        let fraction = settings.gpu_memory_utilization.unwrap_or(default);
        let bytes = (total as f64 * fraction) as u64;
        let of_what = match settings.device_memory {
            Some(_) => format!("--device-memory {} MiB", total >> 20),
            None => format!("the {} MiB of the device", total >> 20),
        };
        let by = match settings.gpu_memory_utilization {
            Some(_) if fraction < 1.0 => {
                format!("--gpu-memory-utilization {fraction} of {of_what}")
            }
            None if fraction < 1.0 => format!("{fraction} of {of_what}"),
            _ => of_what,
        };
        match (machine.gpu_dtype, is_asked, machine.free) {
            // An estimate that nobody asked for stops no run on a CPU.
            (None, false, _) => None,
            (Some(_), _, Some(free)) if free < bytes => Some(Self {
                bytes: free,
                by: "what is free of the device's memory".to_owned(),
                is_asked,
                allowed: bytes,
            }),
            _ => Some(Self {
                bytes,
                by,
                is_asked,
                allowed: bytes,
            }),
        }
    }
}

/// What a run takes with the batch size that `auto` stands for; besides the weights where these are loaded already.
///
/// # Errors
/// Where `auto` has nothing to go by, and where more layers are to compute their activations again than there are.
pub(crate) fn plan(
    config: &Config,
    model: &QwenConfig,
    machine: &Machine,
    rows: &RowLengths,
    is_loaded: bool,
) -> Result<PlannedRun, ConfigError> {
    let budget = Budget::of(config, machine);
    let held = config.quantization();
    let planned = |config: &Config| {
        let mut plan = MemoryPlan::new(config, model, machine, rows.most_tokens(config));
        // Weights that are held otherwise are loaded a second time.
        if is_loaded && config.quantization() == held {
            (plan.weights, plan.driver) = (0, 0);
        }
        plan
    };
    // What `auto` may take where nothing is said.
    let room = budget.as_ref().map(|budget| budget.bytes);
    let room = room.or(machine.free.map(|free| free / 2));
    if config.run.batch_size_auto && room.is_none() {
        let text = "--batch-size auto: this device does not say how much memory it has: give --device-memory, or a number";
        return Err(ConfigError::Conflict(text.to_owned()));
    }
    let fits = |config: &Config| room.is_none_or(|room| planned(config).total() <= room);
    let given = config.optimizer.gradient_checkpointing;
    if let GradientCheckpointing::Layers(layers) = given
        && layers > model.num_hidden_layers
    {
        let text = format!(
            "--gradient-checkpointing: expected at most the model's {} layers, found {layers}",
            model.num_hidden_layers
        );
        return Err(ConfigError::Conflict(text));
    }
    let mut config = config.clone();
    // More is kept only where there is room for more.
    if is_auto(&config) {
        config.optimizer.gradient_checkpointing = GradientCheckpointing::True;
    }
    if config.run.batch_size_auto {
        config = largest_batch(&config, usize::MAX, &fits);
    }
    if given == GradientCheckpointing::Auto {
        config.optimizer.gradient_checkpointing = match (machine.gpu_dtype, &budget) {
            // `auto` looks at the memory that is free, and not at what it was told.
            (None, Some(_)) => fewest([0], &config, &fits),
            (None, None) => given,
            // Who says how much there is wants it used. Others get the least that a run takes.
            (Some(_), Some(budget)) if budget.is_asked => {
                match can_keep(&config, &planned(&config)) {
                    true => kept_within(budget, &config, model, &planned),
                    false => {
                        info!("no activations are kept: what they take is known of plain adapters");
                        given
                    }
                }
            }
            (Some(_), _) => given,
        };
    }
    let plan = planned(&config);
    // An estimate stops only a run that was told how much it may take.
    let refusing = budget
        .as_ref()
        .filter(|budget| plan.total() > budget.bytes && (plan.is_exact || budget.is_asked));
    let refusal = refusing.map(|budget| TrainError::Memory {
        needed: plan.total(),
        budget: budget.bytes,
        by: budget.by.clone(),
        instead: instead(&config, machine.gpu_dtype.is_some(), &fits),
    });
    Ok(PlannedRun {
        config,
        plan,
        budget: budget.map(|budget| (budget.bytes, budget.by)),
        refusal,
    })
}

/// Part of a budget up to which activations are kept, which a run can do without: a plan may be a little off.
const KEPT_UP_TO: f64 = 0.95;

/// Whether a GPU may keep activations: it is known what they take, and they have no other place.
fn can_keep(config: &Config, plan: &MemoryPlan) -> bool {
    plan.is_exact && !config.optimizer.offload_activations
}

/// How much is kept of a budget: as much as it allows, so that the same settings give the same numbers when a run goes on; less where
/// that is not free now.
fn kept_within(
    budget: &Budget,
    config: &Config,
    model: &QwenConfig,
    planned: &impl Fn(&Config) -> MemoryPlan,
) -> GradientCheckpointing {
    let within = |bytes: u64| {
        let most = (bytes as f64 * KEPT_UP_TO) as u64;
        let fits = |config: &Config| planned(config).total() <= most;
        fewest(0..model.num_hidden_layers, config, &fits)
    };
    let mut kept = config.clone();
    kept.optimizer.gradient_checkpointing = within(budget.allowed);
    match planned(&kept).total() <= budget.bytes {
        true => kept.optimizer.gradient_checkpointing,
        false => within(budget.bytes),
    }
}

/// The first of these numbers of layers with which the run fits, if their activations are computed again; all where none does.
fn fewest(
    numbers: impl IntoIterator<Item = usize>,
    config: &Config,
    fits: &impl Fn(&Config) -> bool,
) -> GradientCheckpointing {
    let mut tried = config.clone();
    let found = numbers.into_iter().find(|&layers| {
        tried.optimizer.gradient_checkpointing = GradientCheckpointing::Layers(layers);
        fits(&tried)
    });
    match found {
        Some(0) => GradientCheckpointing::False,
        Some(layers) => GradientCheckpointing::Layers(layers),
        None => GradientCheckpointing::True,
    }
}

/// The same step with the most rows at once that fit, fewer than `below`; with one where none does.
fn largest_batch(config: &Config, below: usize, fits: &impl Fn(&Config) -> bool) -> Config {
    let rows = config.run.batch_size * config.run.gradient_accumulation;
    let with = |size: usize| {
        let mut config = config.clone();
        config.run.batch_size = size;
        config.run.gradient_accumulation = rows / size;
        config
    };
    let sizes = (1..=rows.min(below - 1)).rev();
    let mut all = sizes.filter(|size| rows.is_multiple_of(*size)).map(with);
    all.find(|config| fits(config)).unwrap_or_else(|| with(1))
}

/// Flags with which the run fits: as few as possible, those that change least first.
fn instead(config: &Config, on_gpu: bool, fits: &impl Fn(&Config) -> bool) -> String {
    let mut found = Vec::new();
    let mut tried = config.clone();
    if tried.optimizer.gradient_checkpointing != GradientCheckpointing::True {
        tried.optimizer.gradient_checkpointing = GradientCheckpointing::True;
        if let GradientCheckpointing::False | GradientCheckpointing::Layers(_) =
            config.optimizer.gradient_checkpointing
        {
            found.push("--gradient-checkpointing true".to_owned());
        }
    }
    if !fits(&tried) && tried.run.batch_size > 1 {
        tried = largest_batch(&tried, tried.run.batch_size, fits);
        found.push(format!(
            "--batch-size {} --gradient-accumulation {}",
            tried.run.batch_size, tried.run.gradient_accumulation
        ));
    }
    if !fits(&tried) && on_gpu && !tried.optimizer.offload_activations {
        tried.optimizer.offload_activations = true;
        found.push("--offload-activations true".to_owned());
    }
    if !fits(&tried) && tried.run.full {
        tried.run.full = false;
        return match fits(&tried) {
            true => "an adapter would fit: leave --full out".to_owned(),
            false => "no batch or length fits: a smaller model would, or more memory".to_owned(),
        };
    }
    if !fits(&tried)
        && tried.quantization() == Quantization::None
        && !tried.lora.init.changes_base()
    {
        tried.model.quantization = Some(Quantization::Nf4);
        found.push("--quantization nf4".to_owned());
    }
    if !fits(&tried) {
        let (flag, given) = length_of(&mut tried);
        let most = given.saturating_sub(1);
        // A shorter row may take more, because of pages that are not full: no search that halves. Large steps come first, since
        // each length is planned as a whole.
        let large = longest(&tried, LARGE_STEP, most, fits);
        let least = large.unwrap_or(0);
        let above = most.min(least + LARGE_STEP - 1);
        let small = longest(&tried, LENGTH_STEP, above, fits).filter(|small| *small > least);
        let shorter = small.or(large);
        match shorter {
            Some(length) => found.push(format!("{flag} {length}")),
            None => {
                return "no batch or length fits: a smaller model would, or more memory".to_owned();
            }
        }
    }
    format!("{} would fit", found.join(" "))
}

/// The longest row that fits, of multiples of `step` up to `most`.
fn longest(
    config: &Config,
    step: usize,
    most: usize,
    fits: &impl Fn(&Config) -> bool,
) -> Option<usize> {
    let mut tried = config.clone();
    let mut lengths = (1..=most / step).rev().map(|num| step * num);
    lengths.find(|&length| {
        *length_of(&mut tried).1 = length;
        fits(&tried)
    })
}

/// The setting that says how long a row is, and its flag.
fn length_of(config: &mut Config) -> (&'static str, &mut usize) {
    match config.method.method {
        Method::Grpo => {
            let usual = config.grpo.max_completion_length();
            let length = config.grpo.max_completion_length.get_or_insert(usual);
            ("--max-completion-length", length)
        }
        _ => ("--max-length", &mut config.data.max_length),
    }
}
