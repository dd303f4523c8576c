//! `qwen-burn pull`: a model into the cache, and its folder on standard output.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use model_qwen::{HubOptions, resolve_model_with};

use crate::config::QWEN_BURN;
use crate::program::{log_to_stderr, print};

/// Download a model from the Hugging Face Hub, and print its folder.
///
/// The folder is in the cache that the Python libraries use, too; what is there already is not fetched again. HF_ENDPOINT
/// names a mirror, HF_TOKEN a token for models that need one.
#[derive(Debug, Parser)]
#[command(name = "pull", display_name = QWEN_BURN, version, max_term_width = 110)]
pub(super) struct PullArgs {
    /// The model's name on the Hub, such as Qwen/Qwen2.5-0.5B-Instruct; several are fetched one after the other
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,

    /// Folder of the cache [default: HF_HUB_CACHE, or hub in HF_HOME, or ~/.cache/huggingface/hub]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Print the folder and errors only
    #[arg(short, long)]
    quiet: bool,
}

impl PullArgs {
    /// Downloads; the first model that cannot be had ends it with status 1.
    pub(super) fn run(&self) -> ExitCode {
        if !self.quiet {
            log_to_stderr();
        }
        let mut options = HubOptions {
            progress: !self.quiet,
            ..HubOptions::from_env()
        };
        if let Some(folder) = &self.cache_dir {
            options.cache_dir = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        }
        for model in &self.models {
            let pulled = resolve_model_with(model, &options).map_err(anyhow::Error::from);
            let printed = pulled.and_then(|folder| print(&format!("{}\n", folder.display())));
            // Without stderr the status remains.
            let mut stderr = std::io::stderr();
            if let Err(error) = printed {
                let error = model_qwen::with_causes(error.as_ref());
                let _ = writeln!(stderr, "error: {error}");
                return ExitCode::FAILURE;
            }
            if !self.quiet && stderr.is_terminal() {
                let _ = writeln!(stderr, "Serve it: qwen-burn serve {model}");
            }
        }
        ExitCode::SUCCESS
    }
}
