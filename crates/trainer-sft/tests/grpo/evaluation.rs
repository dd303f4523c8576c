//! Evaluations of GRPO: the mean reward of answers to held-out prompts, and what it decides.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::Config;
use trainer_sft::{Summary, TrainError, Training};

use super::programs::server;
use super::support::{program, text_of};
use super::{adapter, config, lines, records};

fn held_out() -> Vec<Value> {
    let prompts = ["What do cats eat?", "Good night!", "Do you like cake?"];
    prompts
        .iter()
        .map(|prompt| json!({"prompt": prompt}))
        .collect()
}

fn run(config: &Config) -> Result<Summary, TrainError> {
    let training = Training::new(config).device(&Device::flex());
    training.records(records()).eval_records(held_out()).run()
}

/// Step and mean reward of each evaluation.
fn evaluations(folder: &Path) -> Vec<(u64, f64)> {
    let of = |line: &Value| Some((line["step"].as_u64()?, line["eval_reward"].as_f64()?));
    lines(folder).iter().filter_map(of).collect()
}

#[test]
fn held_out_prompts_are_answered_and_not_learnt() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("with"));
    config.run.eval_steps = Some(2);
    let with = run(&config).unwrap();
    let found = evaluations(&with.output);
    let steps: Vec<u64> = found.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [2, 3]);
    assert_eq!(with.eval_reward, Some(found[1].1));
    assert!(with.to_string().contains("; eval reward 0."), "{with}");
    let all = lines(&with.output);
    let line = all.iter().find(|line| line.get("eval_reward").is_some());
    for name in [
        "eval_reward_std",
        "eval_rewards/length/mean",
        "eval_completions/mean_length",
        "eval_completions/clipped_ratio",
        "eval_frac_reward_zero_std",
    ] {
        assert!(line.unwrap()[name].is_number(), "{name}: {line:?}");
    }
    let page = fs::read_to_string(with.output.join("report.html")).unwrap();
    let (_, reward) = page.split_once("<title>Reward</title>").unwrap();
    let (reward, _) = reward.split_once("</svg>").unwrap();
    assert!(reward.contains("evaluation"), "{reward}");

    config.run.output = dir.path().join("without");
    config.run.eval_steps = None;
    let training = Training::new(&config).device(&Device::flex());
    let without = training.records(records()).run().unwrap();
    assert!(
        adapter(&with.output) == adapter(&without.output),
        "evaluations change the run"
    );
    assert!(evaluations(&without.output).is_empty() && without.eval_reward.is_none());
}

#[test]
fn the_best_reward_is_the_result_and_a_run_ends_without_a_gain() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("best"));
    // So large that the answers get worse again.
    config.optimizer.learning_rate = Some(0.05);
    config.run.max_steps = Some(6);
    config.run.eval_steps = Some(1);
    config.run.save_steps = Some(1);
    config.run.load_best = true;
    let summary = run(&config).unwrap();
    let all = evaluations(&summary.output);
    let highest = all
        .iter()
        .map(|(_, reward)| *reward)
        .fold(f64::MIN, f64::max);
    let best = all.iter().find(|(_, reward)| *reward == highest).unwrap().0 as usize;
    assert_eq!(summary.best_step, Some(best), "{all:?}");
    assert_eq!(summary.best_eval_reward, Some(highest));
    let kept = summary.output.join(format!("checkpoint-{best}"));
    assert!(best < 6, "no step was worse than the one before: {all:?}");
    assert!(adapter(&summary.output) == adapter(&kept));
    let told = format!("the result is step {best} with eval reward");
    assert!(summary.to_string().contains(&told), "{summary}");

    config.run.output = dir.path().join("early");
    config.run.load_best = false;
    config.run.early_stopping_patience = Some(2);
    // No reward is so far above another one.
    config.run.early_stopping_threshold = Some(100.0);
    let summary = run(&config).unwrap();
    assert!(summary.stopped_early && summary.num_steps == 3, "{summary}");
    assert!(
        summary.to_string().contains("reward no longer rose"),
        "{summary}"
    );
}

#[test]
fn a_resumed_run_decides_as_one_without_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str| {
        let mut config = config(&dir.path().join(name));
        config.run.max_steps = Some(4);
        config.run.eval_steps = Some(1);
        config.run.load_best = true;
        config
    };
    let whole = run(&with("whole")).unwrap();
    let parts = with("parts");
    let training = Training::new(&parts).device(&Device::flex());
    let training = training.records(records()).eval_records(held_out());
    let stopped = training.on_step(|step| match step.step {
        2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let stopped = stopped.run().unwrap();
    let mut resumed = parts.clone();
    resumed.run.resume = stopped.stopped;
    let resumed = run(&resumed).unwrap();
    assert_eq!(evaluations(&whole.output), evaluations(&resumed.output));
    assert_eq!(whole.best_step, resumed.best_step);
    assert!(
        adapter(&whole.output) == adapter(&resumed.output),
        "the adapters differ"
    );
}

/// A server of rewards, which does `on_evaluation` where they are of held-out prompts; `None` is a failure.
fn rewards(on_evaluation: impl Fn() -> Option<()> + Send + 'static) -> Vec<String> {
    let is_held_out = |body: &Value| {
        let prompt = body["prompts"][0].to_string();
        held_out()
            .iter()
            .any(|held| prompt.contains(held["prompt"].as_str().unwrap()))
    };
    let url = server(move |_, body| {
        let texts = body["completions"].as_array().unwrap().iter();
        let rewards: Vec<usize> = texts.map(|text| text.to_string().len()).collect();
        match is_held_out(&body) && on_evaluation().is_none() {
            true => (500, String::new()),
            false => (200, json!({ "rewards": rewards }).to_string()),
        }
    });
    vec![url]
}

fn judged_by(mut config: Config, urls: Vec<String>) -> Config {
    config.grpo.rewards.clear();
    config.grpo.reward_urls = urls;
    config.run.eval_steps = Some(1);
    config
}

#[test]
fn a_run_that_is_told_to_stop_comes_to_the_end_of_its_evaluation() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let urls = rewards(|| {
        STOP.store(true, Ordering::SeqCst);
        Some(())
    });
    let config = judged_by(config(&dir.path().join("a")), urls);
    let training = Training::new(&config).device(&Device::flex());
    let training = training.records(records()).eval_records(held_out());
    let stopped = training.stop_when(&STOP).run().unwrap();
    assert_eq!(
        stopped.stopped,
        Some(config.run.output.join("checkpoint-1"))
    );
    assert_eq!(evaluations(&stopped.output).len(), 1);
}

/// What goes on from a checkpoint must not lack an evaluation that decides.
#[test]
fn an_evaluation_that_fails_leaves_a_checkpoint_only_where_it_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for load_best in [false, true] {
        let output = dir.path().join(load_best.to_string());
        let mut config = judged_by(config(&output), rewards(|| None));
        config.run.load_best = load_best;
        let failed = run(&config).unwrap_err().to_string();
        assert!(failed.contains("found 500"), "{failed}");
        assert_eq!(output.join("checkpoint-1").is_dir(), !load_best);
    }
}

#[test]
fn held_out_prompts_are_looked_at_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let [train, eval] = ["train.jsonl", "eval.jsonl"].map(|name| dir.path().join(name));
    fs::write(&train, "{\"prompt\": \"Who?\"}\n{\"prompt\": \"Where?\"}\n").unwrap();
    fs::write(&eval, "{\"prompt\": \"Who?\"}\n").unwrap();
    let check = [
        "check",
        text_of(&train),
        "--method",
        "grpo",
        "--reward",
        "json",
    ];
    let check = [&check[..], &["--json", "--eval-data", text_of(&eval)]].concat();
    let said = program(&check);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(found["evaluation"]["num_examples"], 1, "{}", said.out);
    assert_eq!(found["evaluation"]["num_shared"], 1, "{}", said.out);
    fs::write(&eval, "{\"question\": \"Who?\"}\n").unwrap();
    let said = program(&check);
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.out.contains("eval.jsonl:1"), "{}", said.out);
}
