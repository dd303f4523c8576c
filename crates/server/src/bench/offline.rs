//! An engine without HTTP, and its requests.

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use model_qwen::SamplingParams;
use serde_json::Value;

use super::measured::Measured;
use crate::config::Config;
use crate::deltas::Deltas;
use crate::engine::{
    Engine, EngineHandle, EngineOutput, GenerateRequest, ModelInfo, StartProgress,
};
use crate::output_file::OutputFile;
use crate::postprocess::Postprocessor;
use crate::protocol::sampling::TextOptions;

/// A running engine and its model.
pub(super) struct Offline {
    engine: EngineHandle,
    pub(super) model: ModelInfo,
    /// Whether tokens become text.
    detokenize: bool,
}

/// A prompt in tokens, and how many tokens are to follow.
pub(super) struct Work {
    pub(super) prompt: Vec<u32>,
    pub(super) output_len: usize,
}

impl Offline {
    /// Loads the model.
    pub(super) async fn start(config: &Config, detokenize: bool) -> Result<Self> {
        let (engine, model) = Engine::start_owned(config, &StartProgress::default()).await?;
        ensure!(
            model.pooling.is_none(),
            "the model generates no text, and only text is measured"
        );
        Ok(Self {
            engine,
            model,
            detokenize,
        })
    }

    /// Fails if a prompt and its answer are longer than the context.
    pub(super) fn check(&self, work: &[Work]) -> Result<()> {
        let longest = work
            .iter()
            .map(|work| work.prompt.len().saturating_add(work.output_len))
            .max();
        self.check_len(longest.unwrap_or(0))
    }

    /// Fails if a prompt and its answer with so many tokens are longer than the context.
    pub(super) fn check_len(&self, longest: usize) -> Result<()> {
        let limit = self.model.max_model_len;
        ensure!(
            longest <= limit,
            "a prompt and its answer have {longest} tokens, but the context has {limit} (--max-model-len): ask for shorter \
             answers with --output-len, or shorter random prompts with --input-len"
        );
        Ok(())
    }

    /// Generates `n` answers to all prompts together, and returns the number of their tokens.
    pub(super) async fn generate(
        &self,
        work: &[Work],
        n: usize,
        bar: &ProgressBar,
    ) -> Result<usize> {
        let mut streams = Vec::with_capacity(work.len().saturating_mul(n));
        for Work { prompt, output_len } in work {
            for _ in 0..n {
                let request = GenerateRequest {
                    prompt: prompt.clone(),
                    sampling: SamplingParams {
                        temperature: 1.0,
                        ..SamplingParams::default()
                    },
                    constraint: None,
                    max_tokens: *output_len,
                    min_tokens: 0,
                    // The model's own end of a text is one token among others.
                    stop_token_ids: Vec::new(),
                    adapter: None,
                    cache_salt: None,
                    prompt_logprobs: None,
                };
                streams.push(self.engine.submit(request)?);
            }
        }
        let mut num_tokens = 0;
        for mut stream in streams {
            match self.detokenize {
                true => {
                    let options = TextOptions {
                        skip_special_tokens: true,
                        ..TextOptions::default()
                    };
                    let text = Postprocessor::new(self.model.tokenizer.clone(), options);
                    let mut deltas = Deltas::new(stream, text);
                    while let Some(delta) = deltas.next(|| num_tokens += 1).await {
                        delta?;
                    }
                }
                false => {
                    while let Some(output) = stream.next().await {
                        match output {
                            EngineOutput::Token { .. } => num_tokens += 1,
                            EngineOutput::Failed(error) => return Err(error.into()),
                            _ => {}
                        }
                    }
                }
            }
            bar.inc(1);
        }
        Ok(num_tokens)
    }
}

/// A bar on a terminal.
pub(super) fn bar(num: usize, is_hidden: bool) -> ProgressBar {
    if is_hidden || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(num as u64);
    match ProgressStyle::with_template("{bar:40} {pos}/{len}  {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Opens the file of `--output-json`.
pub(super) fn open_json(path: Option<&Path>) -> Result<Option<OutputFile>> {
    let open = |path: &Path| OutputFile::open("--output-json", path.to_owned(), false);
    path.map(open).transpose()
}

/// The text to print, once the result is written where `--output-json` says.
pub(super) fn measured(text: String, file: Option<OutputFile>, result: &Value) -> Measured {
    let error = file.and_then(|file| file.write_result(&format!("{result:#}")).err());
    Measured { text, error }
}
