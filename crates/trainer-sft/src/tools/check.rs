//! `trainer-sft check`: what a run would make of its data, without training and without weights.

mod arguments;
mod lengths;
mod report;
mod show;

use std::path::Path;
use std::sync::Arc;

use model_qwen::{QwenConfig, Tokenizer, is_gpu};

use super::error::ToolError;
use super::output::{End, ToolOutput};
use crate::Footprint;
use crate::batch::{DataLoader, LoaderOptions};
use crate::chat_format::ChatFormat;
use crate::config::{Config, ConfigError, Method};
use crate::data::survey::{Survey, Surveyed, survey};
use crate::data::{Dataset, Example, Examples, shown_key};
use crate::endings::warn_of_endless_answers;
use crate::grpo;
use crate::memory::{self, Machine, RowLengths};
use crate::output::can_be_made;
use crate::preference::check_labels;
use crate::preview::preview;
use crate::rewards::Rewards;
use crate::samples::Samples;
use crate::setup::{check_device, with_adapter};

pub use arguments::CheckArgs;
pub(super) use arguments::with_help;
pub use lengths::{Bar, Lengths};
use report::named;
pub use report::{Cost, DataCheck, Evaluation, FileFound, Group, LeftOut, Preview, Segment};

/// Looks at data, and says what was found.
pub(super) fn check(args: &CheckArgs, colour: bool) -> Result<ToolOutput, ToolError> {
    if let Some(speed) = args.tokens_per_second
        && !(speed > 0.0 && speed.is_finite())
    {
        return Err(ToolError::Flag {
            flag: "tokens-per-second",
            expected: "a number above 0".to_owned(),
            found: speed.to_string(),
        });
    }
    let found = check_data(args, colour)?;
    Ok(ToolOutput {
        text: match args.json {
            true => {
                serde_json::to_string_pretty(&found).unwrap_or_else(|error| error.to_string())
                    + "\n"
            }
            false => found.to_string(),
        },
        end: match found.problems.is_empty() {
            true => End::Well,
            false => End::Problems,
        },
    })
}

/// Looks at data. With `colour`, the text of the report has the learnt tokens in green.
///
/// # Errors
/// A setting out of range, a model whose text files cannot be used, and files that are missing or cannot be read. What is
/// wrong with records is in the report.
pub fn check_data(args: &CheckArgs, colour: bool) -> Result<DataCheck, ToolError> {
    let config = with_adapter(&args.to_config()?)?;
    if config.method.method == Method::Grpo && args.tokens_per_second.is_some() {
        let text = "--tokens-per-second would have no effect with --method grpo: how many tokens its answers have is not known; leave it out";
        return Err(ConfigError::Conflict(text.into()).into());
    }
    let format = ChatFormat::load(&config)?;
    warn_of_endless_answers(&format, config.run.full);
    let architecture = config.model.architecture()?;
    let surveyed = surveyed(&config, &format)?;
    let mut problems = problems(architecture.vocab_size, &format, &surveyed);
    let labels = check_labels(&config, &surveyed.train.examples);
    problems.extend(labels.err().map(|error| error.to_string()));
    let samples = Samples::load(&config, &format);
    problems.extend(samples.err().map(|error| error.to_string()));
    let Surveyed {
        train,
        survey: found,
        eval,
        eval_survey,
        max_length,
    } = surveyed;
    let Dataset {
        examples, report, ..
    } = train;
    let mut notes = notes_of_this_machine(&config, args.run.output.output.as_deref());
    for (records, what) in [
        (
            &report.cut_turns,
            "lose turns before the first question or after the last answer",
        ),
        (
            &report.rendered,
            "have the chat template's tokens in their prompt already and get no second template",
        ),
        (
            &report.own_tokens,
            "have the chat template's own tokens, or others that end a text, in their text",
        ),
        (
            &report.ends,
            "have answers that end with a token that ends a text, and the chat template's own end is learnt in its place",
        ),
        (
            &report.missing,
            "have a cell such as nan, None, NULL or N/A, which is read as that text",
        ),
    ] {
        if let Some(first) = &records.first {
            let count = records.count;
            notes.push(format!("{count} records {what}; the first is {first}"));
        }
    }
    if config.method.method == Method::Grpo {
        notes.push(format!(
            "each prompt gets --num-generations {} answers of at most --max-completion-length {} tokens while training, which no \
             number here counts",
            config.grpo.num_generations(),
            config.grpo.max_completion_length()
        ));
    }
    if !found.unused.is_empty() {
        let keys = found.unused.iter().map(|key| shown_key(key));
        let keys: Vec<&str> = keys.collect();
        notes.push(format!("keys that are not used: {}", keys.join(", ")));
    }
    let rows = RowLengths::of_examples(&config, &examples, max_length);
    notes.extend(memory_note(&config, &architecture, &rows));
    let (num_tokens, num_targets) = (examples.num_tokens(), examples.num_targets());
    let examples = Arc::new(examples);
    let cost = cost(&config, &examples, max_length, args.tokens_per_second);
    if cost.steps > 0 {
        let steps = config.check_steps(cost.steps);
        problems.extend(steps.err().map(|error| error.to_string()));
    }
    Ok(DataCheck {
        model: config.model.model.clone(),
        method: config.method.method,
        max_length,
        files: found.files.iter().map(FileFound::of).collect(),
        num_records: report.num_records,
        formats: named(&report.formats),
        num_examples: examples.len(),
        num_tokens,
        num_targets,
        lengths: Lengths::of(&examples),
        left_out: left_out(&found),
        truncated: Group::of(&found.truncated),
        num_lost_targets: report.num_lost_targets,
        longest: found.longest,
        num_duplicates: found.duplicates.iter().map(|group| group.count - 1).sum(),
        duplicates: found.duplicates.iter().map(Group::of).collect(),
        conflicts: found.conflicts.iter().map(Group::of).collect(),
        notes,
        cost,
        memory: Footprint::of(&config, &architecture),
        evaluation: eval.map(|eval| Evaluation {
            num_examples: eval.examples.len(),
            num_tokens: eval.examples.num_tokens(),
            num_targets: eval.examples.num_targets(),
            num_shared: eval_survey.map(|eval| found.num_shared(&eval)),
        }),
        previews: previews(&examples, &format.tokenizer, args.num_previews())?,
        problems,
        shown: match args.num_previews() {
            0 => String::new(),
            count => preview(&examples, &format.tokenizer, count, colour)?,
        },
    })
}

/// What a run would refuse on this machine and in this folder: it may be started elsewhere.
fn notes_of_this_machine(config: &Config, output: Option<&Path>) -> Vec<String> {
    let mut devices = config.device_names().iter();
    let device = devices.find_map(|name| match model_qwen::parse_device(name) {
        Ok(device) => check_device(config, is_gpu(&device))
            .err()
            .map(|error| error.to_string()),
        Err(error) => Some(format!("--{}: {error}", config.device_flag())),
    });
    let folder = output.and_then(|output| {
        let mut config = config.clone();
        (config.run.output, config.run.numbered) = (output.to_owned(), false);
        let refused = config.check_output().err().map(|error| error.to_string());
        refused.or_else(|| {
            let found = can_be_made(output).err()?;
            Some(format!(
                "--output: expected a folder that can be made, found {found}"
            ))
        })
    });
    let refused = [device, folder].into_iter().flatten();
    refused
        .map(|reason| format!("a run that is started here would refuse {reason}"))
        .collect()
}

/// That a run on this machine would take more memory than it may.
fn memory_note(config: &Config, model: &QwenConfig, rows: &RowLengths) -> Option<String> {
    let devices = config.device_names().iter();
    let devices = devices.map(|name| model_qwen::parse_device(name));
    let devices: Vec<_> = devices.collect::<Result<_, _>>().ok()?;
    let (machine, _) = Machine::of_least(&devices);
    let planned = memory::plan(config, model, &machine, rows, false);
    let refused = match planned {
        Ok(planned) => planned.refusal?.to_string(),
        Err(error) => error.to_string(),
    };
    Some(format!("on this machine {refused}"))
}

/// Why a run with the data of `config` would end before its first step.
///
/// # Errors
/// As [`check_data`].
pub(super) fn problems_of(config: &Config) -> Result<Vec<String>, ToolError> {
    let format = ChatFormat::load(config)?;
    let vocab = config.model.architecture()?.vocab_size;
    Ok(problems(vocab, &format, &surveyed(config, &format)?))
}

fn surveyed(config: &Config, format: &ChatFormat) -> Result<Surveyed, ToolError> {
    Ok(match config.method.method {
        Method::Grpo => grpo::survey(config, format, &Rewards::new(&config.grpo)?)?,
        _ => survey(config, format, true)?,
    })
}

fn problems(vocab: usize, format: &ChatFormat, surveyed: &Surveyed) -> Vec<String> {
    let mut problems = Vec::new();
    let (train, found): (&Dataset, &Survey) = (&surveyed.train, &surveyed.survey);
    let eval = surveyed.eval.as_ref().zip(surveyed.eval_survey.as_ref());
    if let Err(error) = format.check_vocabulary(vocab) {
        problems.push(error.to_string());
    }
    for (data, found) in [(train, found)].into_iter().chain(eval) {
        problems.extend(found.malformed.iter().cloned());
        let more = found.num_malformed - found.malformed.len();
        if more > 0 {
            problems.push(format!("{more} more records cannot be read"));
        }
        if data.examples.is_empty() && found.num_malformed == 0 {
            let reasons = found.left_out.iter();
            let commonest = reasons.max_by_key(|(_, places)| places.count);
            problems.push(match commonest {
                Some((reason, places)) => format!(
                    "nothing to learn: all {} records are left out; the commonest reason is: {reason}",
                    places.count.max(data.report.num_records)
                ),
                None => "nothing to learn".to_owned(),
            });
        }
    }
    problems
}

fn cost(
    config: &Config,
    examples: &Arc<Examples>,
    max_length: usize,
    tokens_per_second: Option<f64>,
) -> Cost {
    if examples.is_empty() {
        return Cost::default();
    }
    let prompts_or_rows = config.rows_per_step();
    let loader = DataLoader::new(
        examples.clone(),
        LoaderOptions {
            batch_size: prompts_or_rows.0,
            gradient_accumulation: prompts_or_rows.1,
            packing: config.data.packing.then_some(max_length),
            seed: config.run.seed,
        },
    );
    // The same answers may be learnt from several times.
    let steps_per_epoch = loader.steps_per_epoch().unwrap_or(1) * config.grpo.num_iterations();
    let steps = config.run.num_steps(steps_per_epoch);
    let epochs = steps as f64 / steps_per_epoch as f64;
    let per_epoch = examples.num_tokens();
    let tokens = (per_epoch as f64 * epochs).round() as usize;
    let seconds = |tokens: usize| tokens_per_second.map(|speed| tokens as f64 / speed);
    Cost {
        rows: loader.num_rows(),
        rows_per_step: prompts_or_rows.0 * prompts_or_rows.1,
        steps_per_epoch,
        epochs,
        steps,
        tokens,
        seconds_per_epoch: seconds(per_epoch),
        seconds: seconds(tokens),
    }
}

fn previews(
    examples: &Examples,
    tokenizer: &Tokenizer,
    count: usize,
) -> Result<Vec<Preview>, ToolError> {
    let mut previews = Vec::new();
    for example in examples.iter().take(count * examples.per_pair()) {
        let example = example?;
        previews.push(Preview {
            place: example.source.to_string(),
            is_wanted: example.is_wanted,
            num_tokens: example.tokens.len(),
            num_targets: example.num_targets(),
            segments: segments(&example, tokenizer)?,
        });
    }
    Ok(previews)
}

fn segments(example: &Example, tokenizer: &Tokenizer) -> Result<Vec<Segment>, ToolError> {
    let mut segments = Vec::new();
    let mut start = 0;
    for part in example.mask.chunk_by(|one, next| one == next) {
        let tokens = &example.tokens[start..start + part.len()];
        start += part.len();
        segments.push(Segment {
            text: tokenizer.decode(tokens, false)?,
            learnt: part[0],
        });
    }
    Ok(segments)
}

fn left_out(found: &Survey) -> Vec<LeftOut> {
    let left_out = found.left_out.iter();
    let left_out = left_out.map(|(reason, places)| LeftOut {
        reason: reason.clone(),
        records: Group::of(places),
    });
    left_out.collect()
}
