//! The Hub, its cache, and the bundled data.

use std::path::Path;

use model_qwen::{HubOptions, bundled_data_dir};

use super::check::Check;

pub(super) fn checks() -> Vec<Check> {
    let options = HubOptions::from_env();
    vec![hub(&options), cache(&options.cache_dir), data()]
}

fn hub(options: &HubOptions) -> Check {
    let endpoint = &options.endpoint;
    if options.offline {
        return Check::note(
            "hub",
            "HF_HUB_OFFLINE is set",
            "unset it to download models",
        );
    }
    match options.reach() {
        Ok(()) => Check::ok("hub", format!("{endpoint} answers")),
        Err(reason) => Check::note(
            "hub",
            format!("{endpoint} does not answer: {reason}"),
            "folders work without it; set HF_ENDPOINT to a mirror (such as https://hf-mirror.com) or HTTPS_PROXY to a proxy",
        ),
    }
}

/// Models in the cache.
fn cache(folder: &Path) -> Check {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    let num_models = names
        .filter(|name| name.to_string_lossy().starts_with("models--"))
        .count();
    let found = format!("{num_models} models in {}", folder.display());
    Check::ok("model cache", found)
}

fn data() -> Check {
    match bundled_data_dir() {
        Ok(folder) => Check::ok("bundled data", folder.display().to_string()),
        Err(error) => Check::missing("bundled data", "not found", error.to_string()),
    }
}
