//! What evaluations decide: the records they take, the best checkpoint, the end of a run.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::Config;
use trainer_sft::{Summary, TrainError, Training};

fn records(range: std::ops::Range<usize>) -> Vec<Value> {
    range
        .map(|i| json!({"prompt": format!("Who is number {i}?"), "completion": format!("Number {i} is the captain of ship {}.", i * 7)}))
        .collect()
}

fn config(output: PathBuf) -> Config {
    let mut config = Config::new(output);
    config.lora.r = 2;
    config.run.batch_size = 1;
    config.run.max_steps = Some(6);
    config.run.eval_steps = Some(1);
    config.data.eval_split = Some(0.25);
    config
}

fn run(config: &Config) -> Result<Summary, TrainError> {
    let training = Training::new(config).device(&Device::flex());
    training.records(records(0..8)).run()
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Step and loss of each evaluation.
fn evaluations(folder: &Path) -> Vec<(u64, f64)> {
    let of = |line: &Value| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?));
    lines(folder).iter().filter_map(of).collect()
}

fn adapter(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

fn checkpoints(folder: &Path) -> Vec<usize> {
    let names = fs::read_dir(folder).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    let mut numbers: Vec<usize> = names
        .filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok())
        .collect();
    numbers.sort();
    numbers
}

#[test]
fn a_part_of_the_records_is_measured_with_the_names_of_trl() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("a"));
    config.run.max_steps = Some(2);
    config.run.save_steps = Some(2);
    config.run.report_to = vec!["tensorboard".into()];
    let summary = run(&config).unwrap();
    let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
    assert!(page.contains("Evaluation loss") && page.contains("Examples by their length"));
    assert!(page.contains("eval_split = 0.25"));
    let picture = fs::read_to_string(summary.output.join("loss.svg")).unwrap();
    assert_eq!(picture.matches("<polyline").count(), 2);
    let events = fs::read_dir(summary.output.join("runs")).unwrap().count();
    assert_eq!(events, 1);
    let found = lines(&summary.output);
    assert_eq!(found.len(), 4);
    for line in &found {
        let names: &[&str] = match line.get("eval_loss") {
            Some(_) => &["eval_loss", "eval_mean_token_accuracy", "eval_entropy"],
            None => &["loss", "mean_token_accuracy", "entropy"],
        };
        let values: Vec<f64> = names.iter().map(|n| line[*n].as_f64().unwrap()).collect();
        assert!(
            values[0] > 0.0 && (0.0..=1.0).contains(&values[1]),
            "{line}"
        );
        // At most that of guessing at random.
        assert!(values[2] > 0.0 && values[2] < 12.0, "{line}");
        assert!(line["num_tokens"].as_u64().unwrap() > 10, "{line}");
    }
    let state = fs::read(summary.output.join("checkpoint-2/trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["log_history"], Value::from(found));
    assert_eq!(state["num_input_tokens_seen"], summary.num_tokens);
}

#[test]
fn a_run_ends_when_its_evaluations_no_longer_improve() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("a"));
    config.run.early_stopping_patience = Some(2);
    // No loss is so far below another one.
    config.run.early_stopping_threshold = Some(100.0);
    let summary = run(&config).unwrap();
    assert!(summary.stopped_early && summary.stopped.is_none());
    assert_eq!(summary.num_steps, 3);
    assert!(summary.output.join("adapter_model.safetensors").is_file());
    assert!(summary.to_string().contains("stopped early"), "{summary}");
    let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
    assert!(page.contains("<td>stopped early by its evaluations</td>"));
}

#[test]
fn the_best_checkpoint_is_the_result_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("a"));
    // So large that the loss rises in the end.
    config.optimizer.learning_rate = Some(0.03);
    config.optimizer.warmup_steps = Some(0);
    config.run.load_best = true;
    config.run.save_steps = Some(1);
    config.run.save_total_limit = Some(1);
    let prompts = dir.path().join("prompts.txt");
    fs::write(&prompts, "Who is number 3?\n").unwrap();
    config.samples.prompts = Some(prompts);
    config.samples.max_tokens = Some(8);
    let summary = run(&config).unwrap();
    let all = evaluations(&summary.output);
    let lowest = all.iter().map(|(_, loss)| *loss).fold(f64::MAX, f64::min);
    let best = all.iter().find(|(_, loss)| *loss == lowest).unwrap().0 as usize;
    assert!(best < 6, "the last step is the best one: {all:?}");
    assert_eq!(summary.best_step, Some(best));
    let kept = summary.output.join(format!("checkpoint-{best}"));
    assert!(
        adapter(&summary.output) == adapter(&kept),
        "another adapter"
    );
    let mut expected = vec![best, 6];
    expected.dedup();
    assert_eq!(checkpoints(&summary.output), expected);
    let told = format!("the result is step {best}");
    assert!(summary.to_string().contains(&told), "{summary}");
    // The last answers are those of the result, and say so.
    let text = fs::read_to_string(summary.output.join("samples.jsonl")).unwrap();
    let answers = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let mut answers: Vec<Value> = answers.collect();
    let last = answers.pop().unwrap();
    let steps: Vec<u64> = answers
        .iter()
        .map(|a| a["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5]);
    assert_eq!(last, answers[best]);
    let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
    let after = format!("<th>After (step {best})</th>");
    assert!(page.contains(&after), "{page}");
    assert!(
        page.contains("<summary>4 answers in between</summary>"),
        "{page}"
    );
}

#[test]
fn the_last_checkpoint_says_that_it_is_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("a"));
    config.run.eval_steps = Some(100);
    config.run.load_best = true;
    config.run.save_steps = Some(6);
    let summary = run(&config).unwrap();
    assert_eq!(summary.best_step, Some(6));
    let state = fs::read(summary.output.join("checkpoint-6/trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["best_model_checkpoint"], "checkpoint-6");
    assert_eq!(state["best_global_step"], 6);
}

#[test]
fn a_resumed_run_is_measured_on_the_same_records() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("eval.jsonl");
    let write = |range| {
        let lines: Vec<String> = records(range).iter().map(Value::to_string).collect();
        fs::write(&file, lines.join("\n")).unwrap();
    };
    write(0..2);
    let mut config = config(dir.path().join("a"));
    config.data.eval_split = None;
    config.data.eval = vec![file.clone()];
    config.run.load_best = true;
    config.run.save_steps = Some(2);
    let summary = run(&config).unwrap();
    write(2..4);
    config.run.resume = Some(summary.output.join("checkpoint-4"));
    config.run.output = dir.path().join("b");
    let error = run(&config).unwrap_err().to_string();
    assert!(
        error.contains("--eval-data: ") && !error.contains("--data: "),
        "{error}"
    );
}

#[test]
fn a_resumed_run_decides_as_one_without_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str| {
        let mut config = config(dir.path().join(name));
        config.optimizer.learning_rate = Some(0.03);
        config.run.load_best = true;
        config.run.early_stopping_patience = Some(3);
        config
    };
    let whole = run(&with("whole")).unwrap();
    let is_decided = whole.stopped_early || whole.best_step != Some(6);
    assert!(is_decided, "the evaluations decide nothing: {whole}");
    let parts = with("parts");
    let training = Training::new(&parts).device(&Device::flex());
    let stopped = training
        .records(records(0..8))
        .on_step(|step| match step.step {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
    let stopped = stopped.run().unwrap();
    // A checkpoint that was written before a setting existed goes on with its default.
    let path = stopped.stopped.as_ref().unwrap().join("trainer_state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for name in ["neftune_noise_alpha", "lr_power"] {
        let settings = state["run"]["settings"].as_object_mut().unwrap();
        assert_eq!(settings.shift_remove(name), Some(Value::Null));
    }
    fs::write(&path, state.to_string()).unwrap();
    let mut resumed = parts.clone();
    resumed.run.resume = stopped.stopped;
    let resumed = run(&resumed).unwrap();
    assert!(
        adapter(&whole.output) == adapter(&resumed.output),
        "the adapters differ"
    );
    assert_eq!(
        (whole.num_steps, whole.best_step, whole.stopped_early),
        (resumed.num_steps, resumed.best_step, resumed.stopped_early)
    );
    assert_eq!(evaluations(&whole.output), evaluations(&resumed.output));
    let tokens = |folder| lines(folder).last().unwrap()["num_tokens"].clone();
    assert_eq!(tokens(&whole.output), tokens(&resumed.output));
}
