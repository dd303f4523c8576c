//! A check as text.

use std::collections::BTreeMap;
use std::fmt;

use super::{Cost, DataCheck, Group};
use crate::Footprint;
use crate::config::Method;
use crate::tools::numbers::{count, time};

/// Width of the first column.
const WIDTH: usize = 13;
/// Characters of the longest bar.
const BAR: usize = 40;
/// Places and groups that are listed.
const MAX_LISTED: usize = 8;

impl fmt::Display for DataCheck {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            let found = format!(
                "{}: {} records{}",
                file.path.display(),
                count(file.num_records),
                formats(&file.formats)
            );
            line(out, "file", found)?;
        }
        self.show_examples(out)?;
        self.show_lost(out)?;
        self.show_repeated(out)?;
        for note in &self.notes {
            line(out, "note", note)?;
        }
        if self.num_examples > 0 {
            self.show_cost(out)?;
        }
        if let Some(eval) = &self.evaluation {
            let shared = match eval.num_shared {
                Some(0) | None => String::new(),
                Some(shared) => format!("; {} of the records are also learnt", count(shared)),
            };
            let (num_examples, num_tokens) = (count(eval.num_examples), count(eval.num_tokens));
            let found = match self.method {
                Method::Grpo => {
                    format!("{num_examples} prompts, {num_tokens} tokens, to be answered{shared}")
                }
                _ => format!(
                    "{num_examples} examples, {num_tokens} tokens, {} measured{shared}",
                    count(eval.num_targets)
                ),
            };
            line(out, "evaluation", found)?;
        }
        out.write_str(&self.shown)?;
        if self.problems.is_empty() {
            return line(out, "problems", "none: a run takes this data");
        }
        writeln!(out, "problems: a run refuses this data")?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(out, "  - {problem}"))
    }
}

impl DataCheck {
    fn show_examples(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = format!(
            "{} from {} records: {} tokens, {} learnt",
            count(self.num_examples),
            count(self.num_records),
            count(self.num_tokens),
            count(self.num_targets)
        );
        let name = match self.method {
            Method::Grpo => "prompts",
            _ => "examples",
        };
        line(out, name, found)?;
        if self.num_examples == 0 {
            return Ok(());
        }
        let lengths = &self.lengths;
        let found = format!(
            "min {}, median {}, p90 {}, max {} tokens ({} {})",
            lengths.min,
            lengths.median,
            lengths.p90,
            lengths.max,
            match self.method {
                Method::Grpo => "with room for an answer at most",
                _ => "--max-length",
            },
            self.max_length
        );
        line(out, "length", found)?;
        let most = lengths.histogram.iter().map(|bar| bar.count).max();
        for bar in &lengths.histogram {
            let width = (bar.count * BAR).div_ceil(most.unwrap_or(1).max(1));
            let range = format!("{} to {}", bar.from, bar.to);
            writeln!(out, "  {range:>14} {} {}", "█".repeat(width), bar.count)?;
        }
        Ok(())
    }

    fn show_lost(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.truncated.count > 0 {
            let found = format!(
                "{} (they lose the {}): {}; --max-length {} cuts nothing",
                count(self.truncated.count),
                match self.method.is_preference() {
                    true => "end of an answer",
                    false => "left of their prompt",
                },
                listed(&self.truncated),
                self.longest
            );
            line(out, "truncated", found)?;
        }
        if self.num_lost_targets > 0 {
            let lost = count(self.num_lost_targets);
            line(
                out,
                "lost",
                format!("{lost} tokens of answers do not fit and are not learnt"),
            )?;
        }
        for left_out in &self.left_out {
            let found = format!(
                "{}, because {}: {}",
                count(left_out.records.count),
                left_out.reason,
                listed(&left_out.records)
            );
            line(out, "left out", found)?;
        }
        Ok(())
    }

    fn show_repeated(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.num_duplicates == 0 && self.conflicts.is_empty() {
            return line(out, "duplicates", "none");
        }
        if self.num_duplicates > 0 {
            let found = format!(
                "{} (what an earlier record says)",
                count(self.num_duplicates)
            );
            line(out, "duplicates", found)?;
            groups(out, &self.duplicates)?;
        }
        if !self.conflicts.is_empty() {
            let num = count(self.conflicts.len());
            let (name, how) = match self.method {
                Method::Grpo => ("same prompt", "with different fields"),
                Method::Sft => ("same prompt", "with different answers"),
                _ => ("same answers", "judged in several ways"),
            };
            line(out, name, format!("{num} ({how})"))?;
            groups(out, &self.conflicts)?;
        }
        Ok(())
    }

    fn show_cost(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost {
            rows,
            rows_per_step,
            steps_per_epoch,
            epochs,
            steps,
            tokens,
            seconds_per_epoch,
            seconds,
        } = self.cost;
        let packed = match rows == self.num_examples {
            true => String::new(),
            false if self.method.is_paired() => format!(" in {} pairs", count(rows)),
            false => format!(" in {} rows", count(rows)),
        };
        let took = |seconds: Option<f64>| match seconds {
            Some(seconds) => format!(", about {}", time(seconds)),
            None => String::new(),
        };
        let rows = match self.method {
            Method::Grpo => "prompts",
            _ => "examples",
        };
        let found = format!(
            "{} {rows}{packed}, {} steps of {rows_per_step}, {} tokens{}",
            count(self.num_examples),
            count(steps_per_epoch),
            count(self.num_tokens),
            took(seconds_per_epoch)
        );
        line(out, "an epoch", found)?;
        let found = format!(
            "{epochs:.2} epochs, {} steps, {} tokens{}",
            count(steps),
            count(tokens),
            took(seconds)
        );
        line(out, "the run", found)?;
        match seconds {
            Some(_) => {}
            None if self.method == Method::Grpo => line(out, "time", "not known without training")?,
            None => line(
                out,
                "time",
                "not known without training: a run prints its tokens/s; --tokens-per-second N computes the time",
            )?,
        }
        let Footprint { weights, trained } = self.memory;
        let found = format!(
            "{} MiB of weights, {} MiB for what is trained (with gradients and AdamW's moments); activations come on top",
            count(mib(weights)),
            count(mib(trained))
        );
        line(out, "memory", found)
    }
}

/// Bytes as MiB, rounded.
fn mib(bytes: u64) -> usize {
    ((bytes + (1 << 19)) >> 20) as usize
}

fn formats(formats: &BTreeMap<&'static str, usize>) -> String {
    let all = formats.iter();
    let all: Vec<String> = match formats.len() {
        0 => return String::new(),
        1 => all.map(|(format, _)| (*format).to_owned()).collect(),
        _ => all
            .map(|(format, num)| format!("{} × {format}", count(*num)))
            .collect(),
    };
    format!(" of {}", all.join(", "))
}

/// The first places of a kind.
fn listed(group: &Group) -> String {
    let first: Vec<&str> = (group.places.iter().take(MAX_LISTED))
        .map(String::as_str)
        .collect();
    match group.count - first.len() {
        0 => first.join(", "),
        more => format!("{} and {} more", first.join(", "), count(more)),
    }
}

fn groups(out: &mut fmt::Formatter<'_>, groups: &[Group]) -> fmt::Result {
    for group in groups.iter().take(MAX_LISTED) {
        writeln!(out, "  {}", listed(group))?;
    }
    match groups.len().saturating_sub(MAX_LISTED) {
        0 => Ok(()),
        more => writeln!(out, "  and {} more (--json lists all)", count(more)),
    }
}

fn line(out: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(out, "{name:<WIDTH$}{value}")
}
