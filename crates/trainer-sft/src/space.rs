//! Room on the disk: looked for before anything is loaded.

use std::path::Path;

use model_qwen::{QwenConfig, linear_features};

use crate::config::{Config, Optim, RunConfig};
use crate::error::TrainError;
use crate::lora;
use crate::output::result_dtype;

/// Checks that the result and the checkpoints of the run fit into `folder`.
///
/// # Errors
/// When they do not, as far as the system says.
pub(crate) fn check(config: &Config, folder: &Path) -> Result<(), TrainError> {
    let parameters = num_trained(config, &config.model.architecture()?);
    // An adapter that starts as a part of the weights is written with that part.
    let halves = match config.lora.init.changes_base() && !config.run.full {
        true => 2,
        false => 1,
    };
    // The weights in f32 and both moments.
    let moments = match config.optimizer.optim {
        Optim::Adamw => 8,
        Optim::Adamw8bit => 2,
    };
    let checkpoints = (4 * halves + moments) * num_checkpoints(&config.run);
    let result = match config.run.full {
        true => result_dtype(config)?.size() as u64,
        false => 4 * halves,
    };
    match lacking(folder, parameters * (result + checkpoints)) {
        Some([needed, free]) => Err(TrainError::Space {
            folder: folder.to_path_buf(),
            needed,
            free,
        }),
        None => Ok(()),
    }
}

/// Checkpoints that the run has to have room for: as many as it is told to keep, otherwise one. A run may be stopped, and goes on
/// where one cannot be written.
fn num_checkpoints(run: &RunConfig) -> u64 {
    let most = match (run.save_steps, run.max_steps) {
        (None, _) => usize::from(run.load_best),
        // How long the run is depends on the data.
        (Some(_), None) => 1,
        (Some(every), Some(steps)) => (steps / every.max(1)).max(usize::from(run.load_best)),
    };
    // A new one is written before an old one is removed. Those of a run that goes on are there already.
    let kept = match (run.save_total_limit, &run.resume) {
        (Some(limit), None) => limit + 1,
        _ => 1,
    };
    most.min(kept) as u64
}

/// MiB that `needed` bytes are and MiB that are free, where `folder` has no room for them, as far as the system says.
pub(crate) fn lacking(folder: &Path, needed: u64) -> Option<[u64; 2]> {
    let free = free(folder).filter(|free| *free < needed)?;
    Some([needed.div_ceil(1 << 20), free >> 20])
}

/// Values that are trained.
pub(crate) fn num_trained(config: &Config, model: &QwenConfig) -> u64 {
    let tensors = trained_tensors(config, model).into_iter();
    tensors.map(|[values, count]| (values * count) as u64).sum()
}

/// The tensors that are trained: values of one, and how many there are of that size.
pub(crate) fn trained_tensors(config: &Config, model: &QwenConfig) -> Vec<[usize; 2]> {
    let hidden = model.hidden_size;
    let linears = linear_features(model);
    let (layers, table) = (model.num_hidden_layers, model.vocab_size * hidden);
    if config.run.full {
        let linears = linears.map(|(_, [inputs, outputs])| [inputs * outputs, layers]);
        let tables = if model.tie_word_embeddings { 1 } else { 2 };
        return linears.into_iter().chain([[table, tables]]).collect();
    }
    let lora = &config.lora;
    let chosen = lora::target_modules(lora);
    let is_chosen = |path: &str| {
        let name = path.rsplit('.').next();
        chosen.iter().any(|module| Some(module.as_str()) == name)
    };
    let mut tensors = vec![[table, saved_tables(config)]];
    for (_, [inputs, outputs]) in linears.into_iter().filter(|(name, _)| is_chosen(name)) {
        tensors.push([lora.r * inputs, layers]);
        tensors.push([lora.r * outputs, layers]);
        if lora.use_dora {
            tensors.push([outputs, layers]);
        }
    }
    tensors
}

/// How many of embedding and head are trained beside an adapter.
pub(crate) fn saved_tables(config: &Config) -> usize {
    let saved = &config.lora.modules_to_save;
    let has = |short: &str| usize::from(saved.iter().any(|name| name.ends_with(short)));
    has("embed_tokens") + has("lm_head")
}

/// Bytes that this user can still write in `folder`.
#[cfg(unix)]
pub fn free(folder: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(folder).ok()?;
    room.f_bavail.checked_mul(room.f_frsize)
}

/// Unknown.
#[cfg(not(unix))]
pub fn free(_folder: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_of_the_bundled_model_has_its_size() {
        let config = Config::new("x");
        let model = config.model.architecture().unwrap();
        // What `trainer-sft` counts on the loaded model: 8 layers of rank 16.
        assert_eq!(num_trained(&config, &model), 729_088);
    }

    #[test]
    fn checkpoints_that_stay_are_counted() {
        let num = |save_steps, max_steps, save_total_limit| {
            num_checkpoints(&RunConfig {
                save_steps,
                max_steps,
                save_total_limit,
                ..RunConfig::default()
            })
        };
        assert_eq!(num(None, Some(100), None), 0);
        assert_eq!(num(Some(10), None, None), 1);
        assert_eq!(num(Some(10), Some(100), None), 1);
        assert_eq!(num(Some(10), Some(100), Some(2)), 3);
        assert_eq!(num(Some(60), Some(100), Some(2)), 1);
        assert_eq!(num(Some(200), Some(100), None), 0);
    }

    #[test]
    fn too_little_room_is_said_in_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path().join("x"));
        check(&config, folder.path()).unwrap();
        config.lora.r = 1 << 40;
        let message = check(&config, folder.path()).unwrap_err().to_string();
        assert!(
            message.contains(" MiB of room for the result, found "),
            "{message}"
        );
    }
}
