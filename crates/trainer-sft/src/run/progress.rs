//! What a run says on standard error: a bar on a terminal, lines of the log elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use model_qwen::QwenModel;
use tracing::{info, warn};

use crate::batch::DataLoader;
use crate::config::{Config, Method};
use crate::metrics::{Record, progress_bar};
use crate::trainer::Trainer;

/// Steps and time between lines of the log.
const EVERY_STEPS: usize = 10;
const EVERY: Duration = Duration::from_secs(30);

/// The progress of the steps.
pub(super) struct ProgressReport {
    pub(super) bar: ProgressBar,
    /// Whether lines of the log stand for the bar.
    logs: bool,
    last: Instant,
    started: Instant,
    first_step: usize,
    total_steps: usize,
}

impl ProgressReport {
    pub(super) fn new(total_steps: usize, done: usize, show: bool) -> Self {
        let bar = progress_bar(total_steps, done, !show);
        Self {
            logs: show && bar.is_hidden(),
            bar,
            last: Instant::now(),
            started: Instant::now(),
            first_step: done,
            total_steps,
        }
    }

    /// Whether a line of the log is due after `step`.
    pub(super) fn is_due(&self, step: usize) -> bool {
        let is_first = step == self.first_step + 1;
        let is_some = step.is_multiple_of(EVERY_STEPS) || step == self.total_steps;
        self.logs && (is_first || is_some || self.last.elapsed() >= EVERY)
    }

    /// Says how far the run is: on the bar at once, in the log when a line is due.
    pub(super) fn tell(&mut self, record: &Record) {
        let (step, message) = (record.step, message(record));
        let left = time(self.seconds_left(step));
        if self.is_due(step) {
            self.last = Instant::now();
            let total = self.total_steps;
            info!("step {step}/{total}: {message}, {left} left");
        }
        self.bar.set_prefix(left);
        self.bar.set_message(message);
    }

    /// What is left after `step`, if each further step takes as long as the mean of those that this process has made, evaluations
    /// and checkpoints included.
    fn seconds_left(&self, step: usize) -> f64 {
        let done = step.saturating_sub(self.first_step).max(1) as f64;
        let left = self.total_steps.saturating_sub(step) as f64;
        self.started.elapsed().as_secs_f64() / done * left
    }

    /// A line that stays, above the bar or in the log.
    pub(super) fn line(&self, text: &str) {
        match self.logs {
            true => info!("{text}"),
            false => self.bar.println(text),
        }
    }
}

/// The numbers of a step, the ones that a narrow terminal has to show first.
fn message(record: &Record) -> String {
    let more = |name: &str| record.more.get(name).copied();
    let mib = |bytes: Option<u64>| bytes.map(|bytes| format!("{} MiB", bytes >> 20));
    let with = |digits: usize| move |value: f64| format!("{value:.digits$}");
    let memory = match record.device_memory {
        Some(_) => ("card memory", mib(record.device_memory)),
        None => ("process memory", mib(record.peak_memory)),
    };
    let speed = record.tokens_per_second;
    let parts = [
        ("reward", more("reward").map(with(3))),
        ("loss", record.loss.map(with(4))),
        ("lr", record.learning_rate.map(|rate| format!("{rate:.2e}"))),
        ("grad norm", record.grad_norm.map(with(3))),
        ("", speed.map(|speed| format!("{speed:.0} tokens/s"))),
        memory,
        (
            "",
            more("completions/mean_length").map(|length| format!("{length:.0} tokens per answer")),
        ),
    ];
    let parts = parts.into_iter().filter_map(|(name, value)| {
        let value = value?;
        Some(format!("{name} {value}").trim_start().to_owned())
    });
    let parts: Vec<String> = parts.collect();
    format!(
        "{}{}{}{}",
        parts.join(", "),
        accuracy(record.mean_token_accuracy),
        (record.entropy).map_or_else(String::new, |entropy| format!(", entropy {entropy:.3}")),
        of_comparison(&record.more)
    )
}

/// The part of the tokens that were the likeliest ones; nothing where there were no such tokens.
pub(super) fn accuracy(part: Option<f64>) -> String {
    let part = part.filter(|part| part.is_finite());
    part.map_or_else(String::new, |part| format!(", token accuracy {part:.3}"))
}

/// The rewards of answers that are compared; nothing for other runs.
pub(super) fn of_comparison(numbers: &BTreeMap<String, f64>) -> String {
    let known = [
        ("rewards/chosen", "reward chosen"),
        ("rewards/rejected", "reward rejected"),
        ("rewards/margins", "reward margin"),
        ("rewards/accuracies", "reward accuracy"),
        ("kl", "kl"),
    ];
    let known = known.into_iter().filter_map(|(key, name)| {
        let value = numbers.get(key)?;
        Some(format!(", {name} {value:.3}"))
    });
    known.collect()
}

/// A time in the two largest units that it has.
pub(crate) fn time(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// What is about to be trained, on what, for how long.
pub(super) fn tell_the_plan(
    config: &Config,
    trainer: &mut Trainer,
    loader: &DataLoader,
    total_steps: usize,
) {
    let (trained, all) = (trainer.num_trainable(), num_weights(&trainer.model));
    let (rows, steps) = (config.run.batch_size, config.run.gradient_accumulation);
    let examples = loader.examples();
    let method = config.method.method;
    let data = match loader.steps_per_epoch() {
        Some(_) if method == Method::Grpo => format!(
            "{} prompts, {} answers to each; {total_steps} steps",
            examples.len(),
            config.grpo.num_generations(),
        ),
        Some(per_epoch) => format!(
            "{} {} with {} tokens, {} of them learnt; {total_steps} steps ({:.2} epochs of {per_epoch})",
            examples.len() / examples.per_pair(),
            if examples.per_pair() == 1 {
                "examples"
            } else {
                "pairs"
            },
            examples.num_tokens(),
            examples.num_targets(),
            total_steps as f64 / per_epoch as f64,
        ),
        None => format!("streamed examples; {total_steps} steps"),
    };
    let row = match config.data.packing {
        true => "packed rows",
        false if method == Method::Grpo => "answers",
        false if method.is_paired() => "pairs",
        false => "examples",
    };
    info!(
        "{trained} parameters are trained, of a model with {all}; {data}; {} {row} per step ({rows} × {steps}{})",
        rows * steps * config.num_devices(),
        match config.num_devices() {
            1 => String::new(),
            count => format!(" × {count} devices"),
        },
    );
    tell_quickstart(config);
    // That of a ratio is always shorter than the run.
    if let Some(warmup) = config.optimizer.warmup_steps
        && warmup >= total_steps
    {
        let effect = match total_steps {
            1 => "the rate of the only step is 0, and nothing is learnt",
            _ => "the learning rate never reaches its peak",
        };
        warn!("--warmup-steps: a warm-up of {warmup} steps in a run of {total_steps}: {effect}");
    }
}

/// The defaults of the bundled model that the run has taken.
fn tell_quickstart(config: &Config) {
    let method = config.method.method;
    if !config.is_quickstart() || method == Method::Grpo {
        return;
    }
    let mut usual = config.clone();
    (usual.run.epochs, usual.optimizer.learning_rate) = (None, None);
    let (epochs, rate) = (usual.epochs(), usual.learning_rate());
    let other = match method.is_preference() {
        true => "5e-6",
        false => "2e-4",
    };
    let has_epochs = config.run.max_steps.is_none() && config.epochs() == epochs;
    let has_rate = config.learning_rate() == rate;
    let (own, others) = match (has_epochs, has_rate) {
        (false, false) => return,
        (true, false) => (format!("{epochs} epochs"), "3".to_owned()),
        (false, true) => (format!("a learning rate of {rate}"), other.to_owned()),
        (true, true) => (
            format!("{epochs} epochs and a learning rate of {rate}"),
            format!("3 epochs and {other}"),
        ),
    };
    info!(
        "the bundled model is small and takes {own} by default; for any other model that is {others}"
    );
}

/// Weights and biases of the model, without adapters.
fn num_weights(model: &QwenModel) -> usize {
    let linears = model.linears().into_iter().map(|(_, linear)| {
        let bias = linear.bias.as_ref().map_or(0, |bias| bias.dims()[0]);
        linear.in_features() * linear.out_features() + bias
    });
    let hidden = model.config.hidden_size;
    let norms = (2 * model.layers.len() + 1) * hidden;
    let embeddings = model.config.vocab_size * hidden;
    let head = if model.config.tie_word_embeddings {
        0
    } else {
        embeddings
    };
    linears.sum::<usize>() + norms + embeddings + head
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use std::time::{Duration, Instant};

    use super::{ProgressReport, message, time};
    use crate::metrics::Record;
    use crate::metrics::tests::bar_on_terminal;

    fn record() -> Record {
        Record {
            step: 3,
            loss: Some(1.234_56),
            mean_token_accuracy: Some(0.5),
            entropy: Some(2.0),
            learning_rate: Some(2e-4),
            grad_norm: Some(0.71),
            tokens_per_second: Some(1234.4),
            peak_memory: Some(800 << 20),
            ..Record::default()
        }
    }

    #[test]
    fn a_step_is_told_with_its_numbers_and_whose_memory_it_is() {
        let mut record = record();
        let on_cpu = message(&record);
        let start = "loss 1.2346, lr 2.00e-4, grad norm 0.710, 1234 tokens/s";
        let end = ", token accuracy 0.500, entropy 2.000";
        assert_eq!(on_cpu, format!("{start}, process memory 800 MiB{end}"));
        record.device_memory = Some(5123 << 20);
        let on_card = message(&record);
        assert_eq!(on_card, format!("{start}, card memory 5123 MiB{end}"));
        // What is first stands on a terminal of 80 columns.
        assert!(on_card.find(", token").unwrap() <= 80);
    }

    #[test]
    fn a_terminal_shows_the_time_that_is_left_and_the_numbers() {
        // A run of four steps, and one that has made one step since it goes on after step 3.
        for (first_step, elapsed, expected) in [
            (0, 8, " 4/10 steps, 8s < 12 s"),
            (3, 80, " 4/10 steps, 80s < 8 min 00 s"),
        ] {
            let elapsed = Duration::from_secs(elapsed);
            let (bar, shown) = bar_on_terminal(10, elapsed);
            let mut report = ProgressReport {
                bar,
                logs: false,
                last: Instant::now(),
                started: Instant::now() - elapsed,
                first_step,
                total_steps: 10,
            };
            report.bar.set_position(4);
            report.tell(&Record {
                step: 4,
                ..record()
            });
            let shown = shown();
            assert!(shown.contains(expected), "{expected}: {shown}");
            has_numbers(&shown);
        }
    }

    fn has_numbers(shown: &str) {
        for part in [
            "loss 1.2346",
            "lr 2.00e-4",
            "grad norm 0.710",
            "1234 tokens/s",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn rewards_come_first_and_those_of_comparisons_last() {
        let mut record = record();
        record.more = BTreeMap::from([
            ("reward".to_owned(), 0.25),
            ("completions/mean_length".to_owned(), 31.6),
        ]);
        let told = message(&record);
        assert!(told.starts_with("reward 0.250, loss 1.2346, "), "{told}");
        assert!(told.contains(", 32 tokens per answer, "), "{told}");
        record.more = BTreeMap::from([("rewards/margins".to_owned(), 0.5)]);
        assert!(message(&record).ends_with(", reward margin 0.500"));
        // Numbers that a step does not have are left out.
        assert_eq!(message(&Record::default()), "");
    }

    #[test]
    fn times_are_short() {
        let shown = [3.4, 65.0, 7384.0].map(time);
        assert_eq!(shown, ["3 s", "1 min 05 s", "2 h 03 min"]);
    }
}
