//! Rewrites data/golden with the reference programs; never in CI.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::root;

/// Runs `xtask/golden/NAME.py` for the given names, or all of them. The interpreter is `$PYTHON` or
/// `python3`; it needs torch, transformers, peft, bitsandbytes, trl, safetensors and gguf.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut scripts = fs::read_dir(root().join("xtask/golden"))
        .context("xtask/golden")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".py").map(str::to_owned))
        .collect::<Vec<_>>();
    scripts.sort();
    if let Some(unknown) = names
        .iter()
        .find(|name| !scripts.iter().any(|s| s == *name))
    {
        bail!(
            "no golden script `{unknown}`; there are: {}",
            scripts.join(", ")
        );
    }
    for script in scripts {
        if names.is_empty() || names.contains(&script.as_str()) {
            crate::run(&python, &[&format!("xtask/golden/{script}.py")])?;
        }
    }
    Ok(())
}
