//! `report.html`, one file that shows a run without any other, and `loss.svg`.

mod chart;
mod escape;
mod masks;
mod samples;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use self::chart::{Bars, Chart, Series};
use self::escape::escape;
pub(crate) use self::masks::{Picture, pictures};
use crate::config::Method;
use crate::data::Examples;
use crate::metrics::Record;
use crate::samples::Samples;
use crate::summary::Summary;

/// What the names of the numbers of one reward begin with, and that of its mean ends with.
const OF_REWARD: &str = "rewards/";
const MEAN: &str = "/mean";

/// Bars of the histogram of lengths.
const MAX_BARS: usize = 32;

/// What a report shows.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// What the run did.
    pub(crate) summary: &'a Summary,
    /// The settings, as in `run.toml`.
    pub(crate) settings: &'a str,
    /// The lines of the metrics file.
    pub(crate) records: &'a [Record],
    /// What the model answered.
    pub(crate) samples: Option<&'a Samples>,
    /// What was learnt from; `None` where no more than the last block of a stream is known.
    pub(crate) examples: Option<&'a Examples>,
    /// The first of them.
    pub(crate) pictures: &'a [Picture],
    /// What is learnt.
    pub(crate) method: Method,
    /// The error that ended the run.
    pub(crate) failure: Option<String>,
}

impl Report<'_> {
    /// The page.
    pub(crate) fn html(&self) -> String {
        let name = self.summary.output.file_name().unwrap_or_default();
        let name = escape(&name.to_string_lossy());
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{name}: training report</title>\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<style>{STYLE}{}</style>\n</head>\n<body>\n<h1>{name}</h1>\n",
            chart::STYLE
        );
        page.push_str(&self.table());
        let accuracy = [
            self.series("training", |r| r.mean_token_accuracy),
            self.series("evaluation", |r| r.eval_mean_token_accuracy),
        ];
        let entropy = [
            self.series("training", |r| r.entropy),
            self.series("evaluation", |r| r.eval_entropy),
        ];
        let chart = |title: &str, series: &[Series]| Chart { title, series }.svg();
        let one = |title: &str, of: fn(&Record) -> Option<f64>| {
            chart(title, &[self.series("training", of)])
        };
        for svg in [
            self.loss(),
            chart("Token accuracy", &accuracy),
            chart("Entropy (nats)", &entropy),
            self.compared("Rewards", &["rewards/chosen", "rewards/rejected"]),
            self.compared("Reward margin", &["rewards/margins"]),
            self.compared("Reward accuracy", &["rewards/accuracies"]),
            self.compared("Log-probabilities", &["logps/chosen", "logps/rejected"]),
            self.compared("Log odds", &["log_odds_chosen"]),
            self.compared("KL", &["kl"]),
            self.compared("Reward", &["reward"]),
            self.compared("Standard deviation of the reward", &["reward_std"]),
            self.each_reward(),
            self.compared(
                "Part of the prompts with equal rewards",
                &["frac_reward_zero_std"],
            ),
            self.compared("Tokens per answer", &["completions/mean_length"]),
            self.compared(
                "Part of the answers without an end",
                &["completions/clipped_ratio"],
            ),
            one("Learning rate", |r| r.learning_rate),
            one("Norm of the gradients", |r| r.grad_norm),
            one("Tokens per second", |r| r.tokens_per_second),
            self.memory_in_use(),
            self.lengths(),
        ] {
            page.push_str(&svg);
        }
        page.push_str(&masks::section(self.pictures, self.method));
        if let Some(samples) = self.samples {
            page.push_str(&self::samples::section(samples.answers(), &samples.shown()));
        }
        let settings = escape(self.settings);
        let _ = write!(
            page,
            "<h2>Settings</h2>\n<pre>{settings}</pre>\n</body>\n</html>\n"
        );
        page
    }

    /// The losses, as a picture that stands alone; empty where there are none.
    pub(crate) fn loss_svg(&self) -> String {
        let svg = self.loss();
        match svg.split_once('>') {
            Some((start, rest)) => format!("{start}><style>{}</style>{rest}", chart::STYLE),
            None => String::new(),
        }
    }

    fn loss(&self) -> String {
        let series = [
            self.series("training", |r| r.loss),
            self.series("evaluation", |r| r.eval_loss),
        ];
        let has = |names: &[&str]| {
            let mut numbers = self.records.iter().flat_map(|record| record.more.keys());
            numbers.any(|name| names.contains(&name.as_str()))
        };
        let chart = Chart {
            title: if has(&["rewards/chosen", "rewards/rejected"]) {
                "Loss of the comparison"
            } else if has(&["reward"]) {
                "Loss"
            } else {
                "Loss (nats per token)"
            },
            series: &series,
        };
        chart.svg()
    }

    /// The memory of the card, or of the process where there is no card that tells.
    fn memory_in_use(&self) -> String {
        let mib = |bytes: u64| (bytes >> 20) as f64;
        let card = self.series("training", |r| r.device_memory.map(mib));
        let (title, series) = match card.is_empty() {
            false => ("Memory of the card in use (MiB)", card),
            true => (
                "Peak memory of the process (MiB)",
                self.series("training", |r| r.peak_memory.map(mib)),
            ),
        };
        let series = &[series];
        Chart { title, series }.svg()
    }

    fn series(&self, name: &'static str, of: impl Fn(&Record) -> Option<f64>) -> Series {
        let points = self.records.iter();
        let points = points.filter_map(|record| Some((record.step as f64, of(record)?)));
        Series::new(name, points)
    }

    /// Numbers of the method, those of training and of evaluation; empty where there are none.
    fn compared(&self, title: &str, names: &[&str]) -> String {
        let of = |key: String| move |record: &Record| record.more.get(&key).copied();
        let short = |name: &str| match name {
            "rewards/chosen" | "logps/chosen" => ["chosen", "chosen (eval)"],
            "rewards/rejected" | "logps/rejected" => ["rejected", "rejected (eval)"],
            _ if name.starts_with(OF_REWARD) && name.ends_with(MEAN) => ["mean", "mean (eval)"],
            _ if name.starts_with(OF_REWARD) && name.ends_with("/std") => ["std", "std (eval)"],
            _ => ["training", "evaluation"],
        };
        let mut series = Vec::new();
        for name in names {
            let [training, evaluation] = short(name);
            series.push(self.series(training, of((*name).to_owned())));
            series.push(self.series(evaluation, of(format!("eval_{name}"))));
        }
        let series = &series;
        Chart { title, series }.svg()
    }

    /// Mean and standard deviation of what each reward of GRPO says.
    fn each_reward(&self) -> String {
        let keys = self.records.iter().flat_map(|record| record.more.keys());
        let names = keys.filter_map(|key| key.strip_prefix(OF_REWARD)?.strip_suffix(MEAN));
        let charts = names.collect::<BTreeSet<_>>().into_iter().map(|name| {
            let [mean, std] = ["mean", "std"].map(|of| format!("{OF_REWARD}{name}/{of}"));
            self.compared(&format!("Reward {name}"), &[&mean, &std])
        });
        charts.collect()
    }

    /// How long the examples are.
    fn lengths(&self) -> String {
        let Some(examples) = self.examples else {
            return String::new();
        };
        let longest = examples.longest();
        let width = (longest + 1).div_ceil(MAX_BARS);
        let mut counts = vec![0usize; longest / width + 1];
        for index in 0..examples.len() {
            counts[examples.length(index) / width] += 1;
        }
        let bars = Bars {
            title: match self.method {
                Method::Grpo => "Prompts by their length in tokens",
                method if method.is_paired() => {
                    "Answers of the pairs, with their prompts, by length in tokens"
                }
                _ => "Examples by their length in tokens",
            },
            counts: &counts,
            width,
        };
        bars.svg()
    }

    fn table(&self) -> String {
        let Summary {
            num_steps,
            num_trainable,
            seconds,
            ..
        } = self.summary;
        let last = self.records.iter().rev();
        let num_tokens = last.clone().find_map(|record| record.num_tokens);
        let loss = |of: fn(&Record) -> Option<f64>| self.first_and_last(of);
        let best = self.summary.best_step.map(|step| {
            let loss = self.summary.best_eval_loss.unwrap_or(f64::NAN);
            match self.summary.best_eval_reward {
                Some(reward) => format!("step {step}, evaluation reward {reward:.4}"),
                None => format!("step {step}, evaluation loss {loss:.4}"),
            }
        });
        let reward = |name: &str| self.first_and_last(|r| r.more.get(name).copied());
        let end = match (&self.failure, &self.summary.stopped) {
            (Some(error), _) => format!("by an error: {error}"),
            (None, Some(_)) => "stopped; --resume goes on".to_owned(),
            (None, None) if self.summary.stopped_early => {
                "stopped early by its evaluations".to_owned()
            }
            (None, None) => "at its last step".to_owned(),
        };
        let (what, num_examples) = match self.method {
            Method::Grpo => ("Prompts", self.examples.map(Examples::len)),
            method if method.is_paired() => {
                ("Pairs", self.examples.map(|all| all.len() / all.per_pair()))
            }
            _ => ("Examples", self.examples.map(Examples::len)),
        };
        let mib = |bytes: Option<u64>| bytes.map(|bytes| format!("{} MiB", bytes >> 20));
        let rows = [
            ("Steps", Some(num_steps.to_string())),
            ("Ended", Some(end)),
            ("Tokens", num_tokens.map(|count| count.to_string())),
            ("Training loss", loss(|r| r.loss)),
            ("Evaluation loss", loss(|r| r.eval_loss)),
            ("Reward", reward("reward")),
            ("Evaluation reward", reward("eval_reward")),
            ("Result", best),
            (what, num_examples.map(|count| count.to_string())),
            ("Trained parameters", Some(num_trainable.to_string())),
            ("Seconds of this process", Some(format!("{seconds:.0}"))),
            ("Peak memory of the process", mib(self.summary.peak_memory)),
            ("Memory of the card in use", mib(self.summary.device_memory)),
        ];
        let rows = rows.into_iter().filter_map(|(name, value)| {
            Some(format!(
                "<tr><th>{name}</th><td>{}</td></tr>\n",
                escape(&value?)
            ))
        });
        format!(
            "<table>\n{}</table>\n{}",
            rows.collect::<String>(),
            self.memory()
        )
    }

    /// The first and the last of some numbers; `None` where there are none.
    fn first_and_last(&self, of: impl Fn(&Record) -> Option<f64>) -> Option<String> {
        let mut all = self.records.iter().filter_map(of);
        let first = all.next()?;
        let last = all.next_back().unwrap_or(first);
        Some(format!("{first:.4} → {last:.4}"))
    }

    /// What memory was expected to be for.
    fn memory(&self) -> String {
        let Some(plan) = &self.summary.planned_memory else {
            return String::new();
        };
        let all = ("all", plan.total() as i64);
        let rows = plan.parts().into_iter().chain([all]);
        let rows = rows.map(|(name, bytes)| {
            format!(
                "<tr><th>{}</th><td>{} MiB</td></tr>\n",
                escape(name),
                bytes >> 20
            )
        });
        let title = match plan.is_exact {
            true => "Memory of the device as planned",
            false => "Memory of the device by an estimate",
        };
        format!(
            "<h2>{title}</h2>\n<table>\n{}</table>\n",
            rows.collect::<String>()
        )
    }
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color-scheme:light dark}\
th{text-align:left;font-weight:normal;padding-right:2em;opacity:.7}pre{overflow:auto;font-size:14px}\
mark{background:#ffd54a;color:#000}.example{white-space:pre-wrap;max-height:20em}svg{display:block;width:100%;margin:1.5em 0}.samples td,.samples th{vertical-align:top;white-space:pre-wrap;width:50%;padding:.3em .8em .3em 0}";

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::data::{Example, Place, Source};

    fn records() -> Vec<Record> {
        let record = |step: usize| Record {
            step,
            loss: Some(3.0 / step as f64),
            eval_loss: step.is_multiple_of(2).then_some(4.0 / step as f64),
            ..Record::default()
        };
        (1..=6).map(record).collect()
    }

    fn example(len: usize) -> Example {
        Example {
            tokens: vec![1; len],
            mask: vec![true; len],
            is_wanted: true,
            source: Source {
                file: Path::new("a.jsonl").into(),
                place: Place::Line(1),
            },
        }
    }

    #[test]
    fn a_report_needs_no_other_file_and_shows_its_numbers() {
        let summary = Summary {
            output: PathBuf::from("adapters/<b>"),
            num_steps: 6,
            best_step: Some(4),
            best_eval_loss: Some(1.0),
            ..Summary::default()
        };
        let report = Report {
            summary: &summary,
            settings: "data = [\"<x>\"]\n",
            records: &records(),
            samples: None,
            examples: Some(&Examples::default()),
            pictures: &[],
            method: Method::Sft,
            failure: None,
        };
        let page = report.html();
        for part in [
            "<title>&lt;b&gt;: training report</title>",
            "3.0000 → 0.5000",
            "step 4, evaluation loss 1.0000",
            "data = [&quot;&lt;x&gt;&quot;]",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(
            !page.contains("http://")
                || page.matches("http://").count()
                    == page.matches("http://www.w3.org/2000/svg").count()
        );
        assert!(!page.contains("<script") && !page.contains("https://"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        let picture = report.loss_svg();
        assert!(picture.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
        assert_eq!(picture.matches("<polyline").count(), 2);
    }

    #[test]
    fn rewards_have_curves_and_rows_and_pairs_are_counted_as_pairs() {
        let numbers = [
            ("reward", 0.25),
            ("eval_reward", 0.5),
            ("reward_std", 0.1),
            ("rewards/length/mean", 0.2),
            ("rewards/length/std", 0.3),
            ("eval_rewards/length/mean", 0.2),
            ("completions/mean_length", 12.0),
        ];
        let more = numbers.map(|(name, value)| (name.to_owned(), value));
        let record = Record {
            more: more.into(),
            ..Record::default()
        };
        let mut examples: Examples = vec![example(3), example(4), example(3), example(5)].into();
        examples.set_pairs(true);
        let mut report = Report {
            summary: &Summary::default(),
            settings: "",
            records: &[record],
            samples: None,
            examples: Some(&examples),
            pictures: &[],
            method: Method::Grpo,
            failure: Some("the <reward> is gone".to_owned()),
        };
        let page = report.html();
        for part in [
            "<title>Reward</title>",
            "<title>Standard deviation of the reward</title>",
            "<title>Reward length</title>",
            ">mean (eval)</text>",
            "<title>Tokens per answer</title>",
            "<title>Prompts by their length in tokens</title>",
            "<th>Reward</th><td>0.2500 → 0.2500</td>",
            "<th>Evaluation reward</th><td>0.5000 → 0.5000</td>",
            "<th>Prompts</th><td>4</td>",
            "<th>Ended</th><td>by an error: the &lt;reward&gt; is gone</td>",
        ] {
            assert!(page.contains(part), "{part}");
        }
        report.method = Method::Dpo;
        let page = report.html();
        assert!(page.contains("<th>Pairs</th><td>2</td>"), "{page}");
        assert!(page.contains("<title>Answers of the pairs, with their prompts, by length"));
    }

    #[test]
    fn memory_is_that_of_the_card_where_it_tells() {
        let mut records = records();
        for record in &mut records {
            record.peak_memory = Some(1 << 30);
        }
        let page = |records: &[Record]| {
            let report = Report {
                summary: &Summary::default(),
                settings: "",
                records,
                samples: None,
                examples: None,
                pictures: &[],
                method: Method::Sft,
                failure: None,
            };
            report.html()
        };
        let [process, card] = [
            "Peak memory of the process (MiB)",
            "Memory of the card in use (MiB)",
        ];
        let without = page(&records);
        assert!(without.contains(process) && !without.contains(card));
        records[2].device_memory = Some(5 << 30);
        let with = page(&records);
        assert!(with.contains(card) && !with.contains(process));
    }

    #[test]
    fn the_longest_example_is_in_the_last_bar() {
        for (longest, last) in [
            (31, "31 to 31: 1"),
            (32, "32 to 33: 1"),
            (64, "63 to 65: 1"),
        ] {
            let examples: Examples = vec![example(1), example(longest)].into();
            let report = Report {
                samples: None,
                summary: &Summary::default(),
                settings: "",
                records: &[],
                examples: Some(&examples),
                pictures: &[],
                method: Method::Sft,
                failure: None,
            };
            let svg = report.lengths();
            assert!(svg.contains(&format!("<title>{last}</title>")), "{svg}");
            assert_eq!(svg.matches("<rect").count(), 2);
        }
    }

    #[test]
    fn a_run_without_numbers_has_a_report() {
        let report = Report {
            summary: &Summary::default(),
            settings: "",
            records: &[],
            samples: None,
            examples: Some(&Examples::default()),
            pictures: &[],
            method: Method::Sft,
            failure: None,
        };
        assert!(report.html().ends_with("</html>\n"));
        assert!(!report.html().contains("NaN"));
        assert_eq!(report.loss_svg(), "");
    }
}
