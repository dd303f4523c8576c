//! What a run reports while it trains: one JSON line per logged step, and a progress bar.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimizer steps done.
    pub step: usize,
    /// Passes over the training data, with the fraction of the current one.
    pub epoch: f64,
    /// Mean cross-entropy per target token of this step, in nats; the loss of the comparison where answers are compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f64>,
    /// Part of the target tokens of this step that were the likeliest ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mean_token_accuracy: Option<f64>,
    /// Mean entropy of the predictions of this step's target tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entropy: Option<f64>,
    /// Tokens of all steps so far, context and targets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub num_tokens: Option<usize>,
    /// Learning rate of this step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate: Option<f64>,
    /// Norm of all gradients before clipping.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Tokens (context and targets) per second since the previous record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_second: Option<f64>,
    /// Mean cross-entropy per target token of the evaluation data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_loss: Option<f64>,
    /// As `mean_token_accuracy`, of the evaluation data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_mean_token_accuracy: Option<f64>,
    /// As `entropy`, of the evaluation data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_entropy: Option<f64>,
    /// Largest resident memory of the process so far, in bytes, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_memory: Option<u64>,
    /// Memory of the (first) card in use, in bytes, by all programs. CUDA only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_memory: Option<u64>,
    /// Seconds since the run started.
    pub elapsed: f64,
    /// Numbers of the method, with the names of TRL: `rewards/chosen`, `eval_rewards/chosen`, `completions/mean_length`, …
    #[serde(flatten)]
    pub more: BTreeMap<String, f64>,
}

/// Appends records to `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    /// Opens `path` for appending; with `keep_until = Some(step)` the records after that step are dropped first, so that a
    /// resumed run writes no step twice, with `None` the file starts empty.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub fn open(path: &Path, keep_until: Option<usize>) -> io::Result<Self> {
        let kept = match keep_until {
            Some(last) if path.exists() => std::fs::read_to_string(path)?
                .lines()
                .filter(|line| {
                    serde_json::from_str::<Record>(line).is_ok_and(|record| record.step <= last)
                })
                .fold(String::new(), |text, line| text + line + "\n"),
            _ => String::new(),
        };
        std::fs::write(path, kept)?;
        Ok(Self {
            file: OpenOptions::new().append(true).open(path)?,
            path: path.to_path_buf(),
        })
    }

    /// Appends one line, which is a record in JSON.
    ///
    /// # Errors
    ///
    /// When the line cannot be written.
    pub fn write_line(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())
    }

    /// Where the records go.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The prefix is the time that is left. The numbers have a line of their own, of which a narrow terminal cuts the end off.
const BAR: &str = "{bar:30} {pos}/{len} steps, {elapsed} < {prefix}\n{wide_msg}";

/// Counts tokens and gives the speed since the last question.
#[derive(Debug)]
pub struct Speedometer {
    since: Instant,
    tokens: usize,
}

impl Default for Speedometer {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            tokens: 0,
        }
    }
}

impl Speedometer {
    /// Counts tokens that have been trained on.
    pub fn add(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Tokens per second since the last call, and starts anew.
    pub fn take(&mut self) -> f64 {
        let speed = self.tokens as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        *self = Self::default();
        speed
    }

    /// Leaves out the time since `start`, spent on something else than training.
    pub fn pause(&mut self, start: Instant) {
        self.since += start.elapsed();
    }
}

/// A progress bar over optimizer steps on standard error; silent when `quiet` or when that is no terminal.
#[must_use]
pub fn progress_bar(total: usize, done: usize, quiet: bool) -> ProgressBar {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = bar_on(target, total, done);
    bar.enable_steady_tick(Duration::from_millis(500));
    *shown() = Some(bar.clone());
    bar
}

/// The bar; indicatif's own style should its template be wrong, which a test excludes.
fn bar_on(target: ProgressDrawTarget, total: usize, done: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), target);
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    bar.set_prefix("?");
    bar.set_position(done as u64);
    bar
}

/// The bar of the last run.
fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Standard error for lines above the progress bar, which is drawn again below them.
#[derive(Clone, Copy, Debug)]
pub struct AboveBar;

impl io::Write for AboveBar {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.write_all(text).map(|()| text.len())
    }

    fn write_all(&mut self, text: &[u8]) -> io::Result<()> {
        let write = || io::stderr().write_all(text);
        let bar = shown().clone().filter(|bar| !bar.is_finished());
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Largest resident memory of this process so far in bytes (`VmHWM`); `None` where `/proc` does not exist.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    proc_kib("/proc/self/status", "VmHWM:").map(|kib| kib * 1024)
}

/// Memory that programs can still take, in bytes (`MemAvailable`); `None` where `/proc` does not exist.
#[must_use]
pub fn available_memory() -> Option<u64> {
    proc_kib("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024)
}

/// All memory of the machine, in bytes (`MemTotal`); `None` where `/proc` does not exist.
#[must_use]
pub fn total_memory() -> Option<u64> {
    proc_kib("/proc/meminfo", "MemTotal:").map(|kib| kib * 1024)
}

/// A number of KiB in a file of `/proc`.
fn proc_kib(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps what is written.
    #[derive(Clone, Debug, Default)]
    struct Written(Arc<Mutex<String>>);

    impl Written {
        fn push(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl TermLike for Written {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.push(text)?;
            self.push("\n")
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.push(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A bar of `total` steps that began `elapsed` ago, and what it shows on a terminal.
    pub(crate) fn bar_on_terminal(
        total: usize,
        elapsed: Duration,
    ) -> (ProgressBar, impl Fn() -> String) {
        let terminal = Written::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
        let bar = bar_on(target, total, 0).with_elapsed(elapsed);
        let drawn = bar.clone();
        let shown = move || {
            drawn.force_draw();
            terminal.0.lock().unwrap().clone()
        };
        (bar, shown)
    }

    #[test]
    fn the_bar_has_a_template_of_its_own() {
        ProgressStyle::with_template(BAR).unwrap();
        let (bar, shown) = bar_on_terminal(10, Duration::from_secs(8));
        let before = shown();
        assert!(before.contains(" 0/10 steps, 8s < ?"), "{before:?}");
        bar.set_message("loss 1.5");
        bar.set_position(4);
        let shown = shown();
        assert!(shown.contains(" 4/10 steps, 8s < ?"), "{shown:?}");
        assert!(shown.contains("loss 1.5"), "{shown:?}");
    }

    #[test]
    fn resumed_file_keeps_only_earlier_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = |step, loss| {
            serde_json::to_string(&Record {
                step,
                loss,
                ..Record::default()
            })
            .unwrap()
        };
        let mut file = MetricsFile::open(&path, None).unwrap();
        for step in 1..=4 {
            let loss = Some(1.0 / step as f64);
            file.write_line(&line(step, loss)).unwrap();
        }
        let mut file = MetricsFile::open(&path, Some(2)).unwrap();
        file.write_line(&line(3, None)).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let steps: Vec<usize> = text
            .lines()
            .map(|line| serde_json::from_str::<Record>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [1, 2, 3]);
        assert!(!text.contains("eval_loss"));
    }
}
