//! How long grammars take: `bench_constraint MODEL FOLDER [STEP]`.
//!
//! FOLDER has files of JSON as in <https://github.com/guidance-ai/jsonschemabench>'s `maskbench/data`: a `schema`, and `tests` with
//! `data` that is `valid` or not. Each STEP-th file is taken. The data is gone through token by token, as if a model wrote it.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model_qwen::{Constraint, ConstraintFactory, Grammar, QwenConfig, Tokenizer, end_tokens};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(folder)) = (args.next(), args.next()) else {
        return Err("expected MODEL FOLDER [STEP]".into());
    };
    let step = match args.next() {
        Some(step) => step.to_string_lossy().parse()?,
        None => 1,
    };
    let tokenizer = Tokenizer::from_dir(&model)?;
    let vocab_size = QwenConfig::load(&model)?.vocab_size;
    let ends = end_tokens(&model, &tokenizer, None)?;
    let start = Instant::now();
    let factory = ConstraintFactory::new(&tokenizer, vocab_size, &ends)?;
    println!("factory of {vocab_size} tokens: {:?}", start.elapsed());

    let files = std::fs::read_dir(folder)?.map(|file| file.map(|file| file.path()));
    let mut files: Vec<PathBuf> = files.collect::<Result<_, _>>()?;
    files.sort();
    let mut times = Times::default();
    for file in files.iter().step_by(step) {
        // Copies may be cut off.
        let Ok(case) = serde_json::from_str::<Value>(&std::fs::read_to_string(file)?) else {
            continue;
        };
        let grammar = Grammar::JsonSchema(case["schema"].clone());
        let start = Instant::now();
        let compiled = factory.compile(&grammar, None);
        let elapsed = start.elapsed();
        if elapsed > Duration::from_secs(2) {
            println!("{}: {elapsed:?}", file.display());
        }
        let constraint = match compiled {
            Ok(constraint) => constraint,
            Err(error) => {
                times.refuse(elapsed, &error.to_string());
                continue;
            }
        };
        times.compile.push(elapsed);
        for test in case["tests"].as_array().into_iter().flatten() {
            let text = test["data"].to_string();
            let start = Instant::now();
            let mut copy = constraint.clone();
            times.clone.push(start.elapsed());
            let accepted = times.accepts(&mut copy, &tokenizer.encode(&text, false)?);
            if let Some(error) = copy.error() {
                println!("{}: {error}", file.display());
            }
            let place = 2 * usize::from(test["valid"] == true) + usize::from(accepted);
            times.verdicts[place] += 1;
        }
    }
    times.print();
    Ok(())
}

#[derive(Default)]
struct Times {
    compile: Vec<Duration>,
    refusal: Vec<Duration>,
    clone: Vec<Duration>,
    mask: Vec<Duration>,
    consume: Vec<Duration>,
    /// Invalid refused, invalid accepted, valid refused, valid accepted.
    verdicts: [usize; 4],
    reasons: std::collections::BTreeMap<String, usize>,
}

impl Times {
    fn refuse(&mut self, elapsed: Duration, reason: &str) {
        self.refusal.push(elapsed);
        let short: String = reason.chars().take(60).collect();
        *self.reasons.entry(short).or_default() += 1;
    }

    fn accepts(&mut self, constraint: &mut Constraint, ids: &[u32]) -> bool {
        for &id in ids {
            let start = Instant::now();
            let mask = constraint.mask();
            self.mask.push(start.elapsed());
            if !mask.is_some_and(|mask| mask.allows(id)) {
                return false;
            }
            let start = Instant::now();
            constraint.consume(id);
            self.consume.push(start.elapsed());
        }
        constraint.may_stop()
    }

    fn print(&mut self) {
        for (name, times) in [
            ("compile", &mut self.compile),
            ("refuse", &mut self.refusal),
            ("clone", &mut self.clone),
            ("mask", &mut self.mask),
            ("consume", &mut self.consume),
        ] {
            times.sort_unstable();
            let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
            let sum: Duration = times.iter().sum();
            let mean = sum.checked_div(times.len() as u32).unwrap_or_default();
            println!(
                "{name}: {} times, mean {mean:?}, median {:?}, 90 % {:?}, 99 % {:?}, longest {:?}",
                times.len(),
                at(0.5).unwrap_or_default(),
                at(0.9).unwrap_or_default(),
                at(0.99).unwrap_or_default(),
                times.last().copied().unwrap_or_default(),
            );
        }
        let [
            invalid_refused,
            invalid_accepted,
            valid_refused,
            valid_accepted,
        ] = self.verdicts;
        println!(
            "valid data: {valid_accepted} accepted, {valid_refused} refused; invalid data: {invalid_refused} refused, \
             {invalid_accepted} accepted"
        );
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, num)| std::cmp::Reverse(**num));
        for (reason, num) in reasons.into_iter().take(25) {
            println!("{num:6} {reason}");
        }
    }
}
