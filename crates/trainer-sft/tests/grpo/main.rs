//! `--method grpo`: answers, rewards, and what is learnt of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod evaluation;
mod programs;
#[allow(dead_code)]
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::args::Args;
use trainer_sft::config::{Config, GrpoOptions, LossType, Method, MethodConfig};
use trainer_sft::{Summary, TrainError, Training};

fn config(output: &Path) -> Config {
    let mut config = Config::new(output);
    config.method.method = Method::Grpo;
    config.lora.r = 4;
    config.run.batch_size = 8;
    config.run.max_steps = Some(3);
    config.optimizer.learning_rate = Some(5e-3);
    config.grpo.num_generations = Some(4);
    config.grpo.max_completion_length = Some(16);
    config.grpo.rewards = vec!["length:1-3".into()];
    config
}

fn records() -> Vec<Value> {
    let text =
        |i: usize| json!({"prompt": format!("Who is {i}?"), "answer": format!("{i}"), "level": i});
    let chat = json!({"prompt": [{"role": "user", "content": "Hi"}], "answer": "Ahoy"});
    (0..5).map(text).chain([chat]).collect()
}

fn run(config: &Config) -> Result<Summary, TrainError> {
    run_of(config, records())
}

fn run_of(config: &Config, records: Vec<Value>) -> Result<Summary, TrainError> {
    let training = Training::new(config).device(&Device::flex());
    training.records(records).run()
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn adapter(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_reward_rises() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("a"));
    config.run.max_steps = Some(24);
    config.run.batch_size = 16;
    // With a larger one the last digits of a processor's products decide whether the answers collapse.
    config.optimizer.learning_rate = Some(2e-3);
    config.run.report_to = vec!["tensorboard".into()];
    let summary = run(&config).unwrap();
    let rewards = lines(&summary.output);
    let mean = |lines: &[Value]| {
        let rewards = lines.iter().map(|line| line["reward"].as_f64().unwrap());
        rewards.sum::<f64>() / lines.len() as f64
    };
    let (first, last) = (mean(&rewards[..4]), mean(&rewards[20..]));
    assert!(last > first + 0.2, "{first} → {last}");
    assert!(summary.to_string().contains("; reward 0."), "{summary}");
    let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
    for title in ["Reward", "Reward length", "Tokens per answer"] {
        assert!(page.contains(&format!("<title>{title}</title>")), "{title}");
    }
    let (_, shown) = page.split_once("<h2>First prompts</h2>").unwrap();
    assert_eq!(shown.matches("<pre class=\"example\">").count(), 3);
}

#[test]
fn metrics_have_the_names_of_trl() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("a"));
    config.grpo.rewards = vec![
        "exact_match".into(),
        "length:1-3".into(),
        "length:2-9".into(),
    ];
    config.grpo.reward_weights = vec![2.0, 0.5, 0.0];
    config.method.beta = Some(0.1);
    config.grpo.num_iterations = Some(2);
    config.run.max_steps = Some(4);
    let lines = lines(&run(&config).unwrap().output);
    for line in &lines {
        let number = |name: &str| {
            line[name]
                .as_f64()
                .unwrap_or_else(|| panic!("{name}: {line}"))
        };
        for name in [
            "loss",
            "grad_norm",
            "entropy",
            "reward_std",
            "frac_reward_zero_std",
            "completions/min_length",
            "completions/mean_terminated_length",
            "completions/clipped_ratio",
            "clip_ratio/region_mean",
            "rewards/length_2/std",
        ] {
            number(name);
        }
        let expected =
            2.0 * number("rewards/exact_match/mean") + 0.5 * number("rewards/length/mean");
        assert!((number("reward") - expected).abs() < 1e-9, "{line}");
        assert!((1.0..=16.0).contains(&number("completions/mean_length")));
        assert!(line.get("mean_token_accuracy").is_none(), "{line}");
    }
    // The adapter changes nothing at first, and the same answers are learnt again.
    assert!(lines[0]["kl"].as_f64().unwrap().abs() < 1e-9);
    assert!(lines[3]["kl"].as_f64().unwrap() > 0.0, "{}", lines[3]);
    assert_eq!(lines[0]["reward"], lines[1]["reward"]);
}

#[test]
fn a_resumed_run_equals_one_without_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = config(&dir.path().join("whole"));
    whole.run.max_steps = Some(6);
    whole.grpo.num_iterations = Some(2);
    whole.grpo.epsilon = Some(0.1);
    let mut parts = whole.clone();
    parts.run.output = dir.path().join("parts");
    run(&whole).unwrap();
    // Asked to stop in the middle of the answers of a step, it stops at their end.
    let stop = AtomicBool::new(false);
    let training = Training::new(&parts)
        .device(&Device::flex())
        .records(records());
    let training = training.stop_when(&stop).on_step(|step| {
        stop.store(step.step >= 3, Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let summary = training.run().unwrap();
    assert_eq!(summary.num_steps, 4);
    parts.run.resume = summary.stopped;
    run(&parts).unwrap();
    assert_eq!(adapter(&whole.run.output), adapter(&parts.run.output));
    let rewards = |folder: &Path| {
        let rewards = lines(folder).into_iter().map(|line| line["reward"].clone());
        rewards.collect::<Vec<_>>()
    };
    assert_eq!(rewards(&whole.run.output), rewards(&parts.run.output));
}

#[test]
fn records_without_a_prompt_or_an_answer_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("a"));
    config.grpo.rewards = vec!["exact_match".into()];
    let records = [
        json!({"prompt": "a", "answer": "b"}),
        json!({"prompt": "a"}),
        json!({"answer": "b"}),
        json!(3),
    ];
    let named = config.clone();
    let refused = |records: Vec<Value>| run_of(&named, records).unwrap_err().to_string();
    let said = refused(records[..3].to_vec());
    for expected in [
        "the data has 2 malformed records",
        "records[1]: field `answer`: --reward exact_match expected a text or a number, found no such field",
        "records[2]: expected a record with `prompt` or `messages`, found `answer`",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(
        refused(records[3..].to_vec())
            .contains("records[0]: expected an object, found the number 3")
    );
    for (prompt, expected) in unreadable_prompts() {
        let mut record = prompt.clone();
        record["answer"] = "4".into();
        let said = refused(vec![record]);
        assert!(said.contains(expected), "{prompt}: {said}");
    }
    let training = Training::new(&config).device(&Device::flex());
    let training = training
        .records(records[..1].to_vec())
        .eval_records([json!({"answer": "4"})]);
    let said = training.run().unwrap_err().to_string();
    assert!(said.contains("eval_records[0]"), "{said}");
    // A column of a reward may have any name that a prompt does not use.
    let subject = json!({"prompt": "a", "history": "of Rome", "answer": "b"});
    let run = tempfile::tempdir().unwrap();
    let mut other = config.clone();
    (other.run.output, other.run.max_steps) = (run.path().join("a"), Some(1));
    run_of(&other, vec![subject]).unwrap();
    let long = json!({"prompt": "a b ".repeat(5000), "answer": "b"});
    let said = refused(vec![long]);
    assert!(
        said.contains("leaves no room for --max-completion-length 16"),
        "{said}"
    );
}

/// Prompts that the model would not see as they are.
fn unreadable_prompts() -> Vec<(Value, &'static str)> {
    let turns = |turns: Value| json!({"prompt": turns});
    let with = |key: &str, value: Value| json!({"prompt": "Hi?", key: value});
    let function = json!([{"type": "function", "function": {"name": "look"}}]);
    vec![
        (
            turns(json!([{"role": "banana", "content": "x"}])),
            "field `prompt[0].role`: expected one of system",
        ),
        (
            turns(json!([{"from": "human", "value": 5}])),
            "field `prompt[0].value`: expected text, found the number 5",
        ),
        (
            turns(json!([{"role": "user", "content": "x", "weight": 0.5}])),
            "field `prompt[0].weight`: expected 0 or 1",
        ),
        (
            turns(json!([{"role": "user", "content": [{"type": "image_url"}]}])),
            "found a part of type `image_url`",
        ),
        (
            turns(
                json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "look", "arguments": "{}"}}]}, {"role": "tool", "content": "y"}]),
            ),
            "field `messages[1].tool_calls`: the model's chat template does not write",
        ),
        (
            with("tools", json!("nonsense")),
            "field `tools`: expected a list of functions, found the text \"nonsense\"",
        ),
        (
            with("tools", json!({"a": 1})),
            "field `tools`: expected a list of functions, found an object",
        ),
        (
            with("tools", function.to_string().into()),
            "field `tools`: the model's chat template does not write function schemas",
        ),
        (
            with("functions", json!([{"name": "look"}])),
            "field `tools`: the model's chat template does not write function schemas",
        ),
        (
            with("chat_template_kwargs", json!(3)),
            "field `chat_template_kwargs`: expected an object",
        ),
        (
            with("image", json!("x.png")),
            "pictures or sounds in `image`",
        ),
        (
            with("weight", json!(0.5)),
            "field `weight`: expected 0 or 1",
        ),
        (with("weight", json!(0)), "`weight` is 0"),
    ]
}

#[test]
fn settings_that_do_not_go_together_are_named() {
    let grpo = ["--data", "d.jsonl", "--method", "grpo", "--reward", "json"];
    for (flags, expected) in [
        (
            vec!["--max-length", "5"],
            "--max-length would have no effect",
        ),
        (vec!["--train-on", "all"], "--train-on would have no effect"),
        (
            vec!["--packing"],
            "--packing would have no effect with --method grpo",
        ),
        (
            vec!["--eval-split", "0.1"],
            "--eval-split would have no effect with --method grpo",
        ),
        (
            vec!["--preview"],
            "--preview would have no effect with --method grpo",
        ),
        (
            vec!["--epsilon", "0.1"],
            "--epsilon would have no effect: with --num-iterations 1",
        ),
        (
            vec!["--batch-size", "3"],
            "expected a multiple of --num-generations 8, found 3 × 1",
        ),
        (
            vec!["--num-generations", "1"],
            "--num-generations: expected a whole number from 2 to 65536",
        ),
        (
            vec!["--temperature", "0"],
            "--temperature: expected a number from 0.01 to 100",
        ),
        (
            vec!["--reward-weights", "1,2"],
            "--reward-weights: expected 1, one for each",
        ),
        (
            vec!["--reward-timeout", "2"],
            "--reward-timeout needs --reward-url",
        ),
        (
            vec!["--full", "--beta", "0.1"],
            "--beta compares with the model without its adapter",
        ),
        (
            vec!["--num-iterations", "2", "--save-steps", "3"],
            "--save-steps: expected a multiple of --num-iterations 2",
        ),
        (
            vec![
                "--eval-data",
                "e",
                "--num-iterations",
                "2",
                "--eval-steps",
                "3",
                "--load-best",
            ],
            "--eval-steps: expected a multiple of --num-iterations 2",
        ),
        (
            vec!["--loss-type", "hinge"],
            "--loss-type: expected a loss of --method grpo (grpo, dr_grpo, dapo), found hinge",
        ),
        (vec!["--beta", "-1"], "--beta: expected a number, 0 or more"),
        (
            vec!["--label-smoothing", "0.1"],
            "--label-smoothing would have no effect: --method grpo",
        ),
        (vec!["--reward", "jsons"], "--reward: expected exact_match"),
        (
            vec!["--reward-url", "https://a"],
            "--reward-url: expected an address",
        ),
    ] {
        let said = support::program(&[&grpo[..], &flags].concat());
        assert_eq!(said.code, 2, "{flags:?}: {}", said.err);
        assert!(said.err.contains(expected), "{flags:?}: {}", said.err);
    }
    let said = support::program(&grpo[..4]);
    assert!(
        said.err
            .contains("--method grpo learns from rewards: give --reward"),
        "{}",
        said.err
    );
    for (flag, value) in [("--num-generations", "4"), ("--reward", "json")] {
        let said = support::program(&["--data", "d.jsonl", flag, value]);
        let expected = format!("{flag} would have no effect: it is a setting of --method grpo");
        assert!(said.err.contains(&expected), "{}", said.err);
    }
    for (flag, value) in [("--beta", "0.1"), ("--loss-type", "dapo")] {
        let said = support::program(&["--data", "d.jsonl", flag, value]);
        let expected = format!("{flag} would have no effect: --method sft has no such setting");
        assert!(said.err.contains(&expected), "{}", said.err);
    }
    let said = support::program(&[
        "--data",
        "d.jsonl",
        "--method",
        "dpo",
        "--loss-type",
        "dapo",
    ]);
    let expected =
        "--loss-type: expected a loss of --method dpo (sigmoid, ipo, hinge, robust), found dapo";
    assert!(said.err.contains(expected), "{}", said.err);
}

/// A file's settings of GRPO are none of another method that a flag names.
#[test]
fn a_flag_takes_the_method_of_a_file_away() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    let settings = "data = \"d.jsonl\"\nmethod = \"grpo\"\nreward = \"json\"\nnum_generations = 4\nbeta = 0.0\n\
                    loss_type = \"dr_grpo\"\ntemperature = 0.7\n";
    fs::write(&file, settings).unwrap();
    let of = |flags: &[&str]| {
        let words = [
            "trainer-sft",
            "--config",
            file.to_str().unwrap(),
            "--output",
        ];
        let output = dir.path().join("out");
        let words = words.into_iter().chain([output.to_str().unwrap()]);
        Args::parse_config(words.chain(flags.iter().copied())).unwrap()
    };
    let own = of(&[]);
    assert_eq!(own.method.method, Method::Grpo);
    assert_eq!(own.method.loss_type, Some(LossType::DrGrpo));
    assert_eq!((own.grpo.num_generations, own.run.batch_size), (Some(4), 4));
    let other = of(&["--method", "sft"]);
    assert_eq!(other.method, MethodConfig::default());
    assert_eq!(other.grpo, GrpoOptions::default());
    let other = of(&["--method", "dpo"]);
    assert_eq!(other.method.beta, Some(0.1));
    assert_eq!(other.method.loss_type, Some(LossType::Sigmoid));
    let changed = of(&["--beta", "0.2"]);
    assert_eq!(changed.method.beta, Some(0.2));

    // Without a method, the settings are for the one that a flag names.
    let settings = "data = \"d.jsonl\"\nbeta = 0.2\nloss_type = \"ipo\"\n";
    fs::write(&file, settings).unwrap();
    let dpo = of(&["--method", "dpo"]).method;
    assert_eq!((dpo.beta, dpo.loss_type), (Some(0.2), Some(LossType::Ipo)));
    for (settings, method, expected) in [
        (
            "loss_type = \"ipo\"\nreward = \"json\"",
            "grpo",
            "--loss-type: expected a loss of --method grpo",
        ),
        (
            "num_generations = 4",
            "dpo",
            "--num-generations would have no effect",
        ),
        (
            "label_smoothing = 0.1",
            "kto",
            "--label-smoothing would have no effect",
        ),
    ] {
        fs::write(&file, settings).unwrap();
        let path = file.to_str().unwrap();
        let words = [
            "trainer-sft",
            "--data",
            "d.jsonl",
            "--config",
            path,
            "--method",
            method,
        ];
        let refused = Args::parse_config(words).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}
