//! `--sample-prompts`: answers before, while and after the model trains.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code)]
#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use lora_4bit::ComputeDtype;
use lora_4bit::peft::LoraAdapter;
use model_qwen::{
    GenerateRequest, LoadOptions, Quantization, QwenModel, SamplingParams, bundled_model_dir,
    generate,
};
use serde_json::{Value, json};
use trainer_sft::burn::tensor::Device;
use trainer_sft::chat_format::ChatFormat;
use trainer_sft::config::{Config, InitLora, Method};
use trainer_sft::prompts::Prompt;
use trainer_sft::{Summary, TrainError, Training};

const PROMPTS: &str = "Who are you?\n\n{\"prompt\": \"Tell me a story.\"}\n\
    {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ahoy\"}]}\n";

fn config(dir: &Path, prompts: &str) -> Config {
    let file = dir.join("prompts.txt");
    fs::write(&file, prompts).unwrap();
    let mut config = Config::new(dir.join("out"));
    config.lora.r = 4;
    config.run.max_steps = Some(4);
    config.run.batch_size = 2;
    config.samples.prompts = Some(file);
    config.samples.max_tokens = Some(12);
    config
}

fn records() -> Vec<Value> {
    let record = |i: usize| json!({"prompt": format!("Who is {i}?"), "completion": "I am the captain of this ship."});
    (0..6).map(record).collect()
}

fn run(config: &Config) -> Result<Summary, TrainError> {
    let training = Training::new(config).device(&Device::flex());
    training.records(records()).run()
}

fn answers(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("samples.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn steps(answers: &[Value]) -> Vec<u64> {
    answers
        .iter()
        .map(|answer| answer["step"].as_u64().unwrap())
        .collect()
}

#[test]
fn answers_are_those_of_the_adapter_that_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), PROMPTS);
    config.optimizer.learning_rate = Some(2e-2);
    config.samples.steps = Some(2);
    config.run.save_steps = Some(2);
    let summary = run(&config).unwrap();
    let answers = answers(&summary.output);
    assert_eq!(steps(&answers), [0, 0, 0, 2, 2, 2, 4, 4, 4]);
    assert_eq!(answers[2]["prompt"].as_array().unwrap().len(), 1);

    let format = ChatFormat::load(&config).unwrap();
    let options = LoadOptions {
        quantization: Quantization::Nf4,
        double_quant: true,
        ..LoadOptions::default()
    };
    let folder = bundled_model_dir().unwrap();
    let mut model = QwenModel::load(&folder, &options, &Device::flex()).unwrap();
    model.set_compute_dtype(ComputeDtype::Bf16);
    // A checkpoint has the adapter to the bit, the result rounds it to bf16.
    let adapter = LoraAdapter::load(&summary.output.join("checkpoint-2")).unwrap();
    model.add_adapter(0, &adapter).unwrap();
    for (number, line) in answers[..6].iter().enumerate() {
        let slot = (number >= 3).then_some(0);
        let prompt = Prompt::new(line["prompt"].clone(), None, &format).unwrap();
        let request = GenerateRequest {
            prompt: prompt.tokens,
            sampling: SamplingParams::greedy(),
            max_tokens: 12,
            stop_token_ids: format.limits.eos_token_ids.clone(),
            adapter: slot,
        };
        let tokens = generate(&model, &request, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(line["completion"], format.text_of(&tokens), "{line}");
    }
    assert!((0..3).any(|i| answers[i]["completion"] != answers[6 + i]["completion"]));

    let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
    assert!(page.contains("<h2>Samples</h2>") && page.contains("After (step 4)"));
    let settings = fs::read_to_string(summary.output.join("run.toml")).unwrap();
    assert!(settings.contains("sample_steps = 2"), "{settings}");
}

/// Each answer is a line of the log, where its prompt stands beside it.
#[test]
fn the_log_has_every_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (prompts, out) = (dir.path().join("prompts.txt"), dir.path().join("out"));
    fs::write(&prompts, "Who are you?\nWhat do cats eat?\n").unwrap();
    let data = support::data_folder().join("train.jsonl");
    let [data, prompts, output] = [&data, &prompts, &out].map(|path| support::text_of(path));
    let said = support::program(&[
        "--data",
        data,
        "--output",
        output,
        "--sample-prompts",
        prompts,
        "--sample-max-tokens",
        "8",
        "--device",
        "cpu",
        "--max-steps",
        "1",
        "--batch-size",
        "1",
        "--lora-r",
        "2",
    ]);
    assert!(said.is_success(), "{}", said.err);
    let answers = answers(&out);
    assert_eq!(steps(&answers), [0, 0, 1, 1]);
    for answer in &answers {
        let line = format!(
            "step {}, sample {} of 2: {:?} → {:?}",
            answer["step"],
            answer["index"].as_u64().unwrap() + 1,
            answer["prompt"].as_str().unwrap(),
            answer["completion"].as_str().unwrap(),
        );
        assert_eq!(said.err.matches(&line).count(), 1, "{line}: {}", said.err);
    }
}

#[test]
fn the_report_has_every_part_that_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), "Who are you?\n");
    config.run.max_steps = Some(2);
    config.run.eval_steps = Some(1);
    config.data.eval_split = Some(0.2);
    let summary = run(&config).unwrap();
    let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
    let svg = |title: &str| {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 260\" role=\"img\"><title>{title}</title>"
        )
    };
    for title in [
        "Loss (nats per token)",
        "Token accuracy",
        "Entropy (nats)",
        "Learning rate",
        "Norm of the gradients",
        "Tokens per second",
        "Peak memory of the process (MiB)",
        "Examples by their length in tokens",
    ] {
        assert!(page.contains(&svg(title)), "{title}");
    }
    for part in [
        "<th>Steps</th><td>2</td>",
        "<th>Peak memory of the process</th>",
        "Memory of the device by an estimate",
        "<h2>Samples</h2>\n<h3>Who are you?</h3>",
        "Before (step 0)</th><th>After (step 2)",
        "<h2>Settings</h2>",
        "eval_split = 0.2",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // The first three examples: what is learnt is the answer and its end.
    let (_, shown) = page.split_once("<h2>First examples</h2>").unwrap();
    let (shown, _) = shown.split_once("<h2>").unwrap();
    let learnt = "<mark>I am the captain of this ship.&lt;|im_end|&gt;";
    assert_eq!(shown.matches(learnt).count(), 3, "{shown}");
    assert_eq!(shown.matches("<pre class=\"example\">").count(), 3);
    assert_eq!(shown.matches("Who is ").count(), 3);
}

/// The form of the adapter makes no difference: answers while training are those of the folder that is written. (Those of OLoRA to
/// rounding: the base without what the adapter starts as is bf16. So the prompts have answers without near ties.)
#[test]
fn answers_of_every_form_of_adapter_are_those_of_what_is_written() {
    type Change = fn(&mut Config);
    let forms: [(&str, Change); 3] = [
        ("dora", |config| config.lora.use_dora = true),
        ("saved", |config| {
            config.lora.modules_to_save = vec!["embed_tokens".into(), "lm_head".into()];
        }),
        ("olora", |config| config.lora.init = InitLora::Olora),
    ];
    for (name, change) in forms {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), "Who are you?\nWhat do cats eat?\n");
        config.model.quantization = Some(Quantization::None);
        config.optimizer.learning_rate = Some(5e-3);
        config.run.save_steps = Some(2);
        config.samples.steps = Some(2);
        change(&mut config);
        let summary = run(&config).unwrap();
        let answers = answers(&summary.output);
        assert_eq!(steps(&answers), [0, 0, 2, 2, 4, 4]);
        assert_ne!(answers[0]["completion"], answers[2]["completion"], "{name}");

        let format = ChatFormat::load(&config).unwrap();
        let folder = bundled_model_dir().unwrap();
        let options = LoadOptions::default();
        let mut model = QwenModel::load(&folder, &options, &Device::flex()).unwrap();
        model.set_compute_dtype(ComputeDtype::Bf16);
        let adapter = LoraAdapter::load(&summary.output.join("checkpoint-2")).unwrap();
        trainer_sft::lora::put_adapter(&mut model, 0, adapter).unwrap();
        for line in &answers[2..4] {
            let prompt = Prompt::new(line["prompt"].clone(), None, &format).unwrap();
            let request = GenerateRequest {
                prompt: prompt.tokens,
                sampling: SamplingParams::greedy(),
                max_tokens: 12,
                stop_token_ids: format.limits.eos_token_ids.clone(),
                adapter: Some(0),
            };
            let tokens = generate(&model, &request, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(line["completion"], format.text_of(&tokens), "{name}");
        }
    }
}

/// GRPO draws its answers from the adapter, whatever its form is.
#[test]
fn grpo_learns_every_form_of_adapter() {
    type Change = fn(&mut Config);
    let forms: [Change; 3] = [
        |config| config.lora.use_dora = true,
        |config| config.lora.modules_to_save = vec!["lm_head".into()],
        |config| config.lora.init = InitLora::Olora,
    ];
    for change in forms {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), "Who are you?\n");
        config.method.method = Method::Grpo;
        config.model.quantization = Some(Quantization::None);
        change(&mut config);
        config.run.batch_size = 4;
        config.run.max_steps = Some(2);
        config.grpo.num_generations = Some(4);
        config.grpo.max_completion_length = Some(8);
        config.grpo.rewards = vec!["length:1-3".into()];
        let summary = run(&config).unwrap();
        assert_eq!(answers(&summary.output).len(), 2);
        config.run.output = dir.path().join("beta");
        config.method.beta = Some(0.1);
        let refused = run(&config);
        match config.lora.use_dora {
            true => assert!(refused.is_ok()),
            false => {
                let message = refused.unwrap_err().to_string();
                let expected = "cannot be used with --method grpo with --beta";
                assert!(message.contains(expected), "{message}");
            }
        }
    }
}

#[test]
fn answers_change_nothing_of_the_run_and_come_at_evaluations() {
    let dir = tempfile::tempdir().unwrap();
    let mut with = config(dir.path(), PROMPTS);
    with.data.eval_split = Some(0.3);
    with.run.eval_steps = Some(3);
    let mut without = with.clone();
    without.samples = Default::default();
    without.run.output = dir.path().join("without");
    let (with, without) = (run(&with).unwrap(), run(&without).unwrap());
    assert_eq!(steps(&answers(&with.output)), [0, 0, 0, 3, 3, 3, 4, 4, 4]);
    let adapter =
        |summary: &Summary| fs::read(summary.output.join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&with), adapter(&without));
    assert!(!without.output.join("samples.jsonl").exists());
}

#[test]
fn a_resumed_run_goes_on_with_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), "Who are you?\n");
    config.samples.steps = Some(1);
    let stop = AtomicBool::new(false);
    let training = Training::new(&config)
        .device(&Device::flex())
        .records(records());
    let training = training.stop_when(&stop).on_step(|step| {
        stop.store(step.step == 2, std::sync::atomic::Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let stopped = training.run().unwrap().stopped.unwrap();
    assert_eq!(steps(&answers(&config.run.output)), [0, 1, 2]);
    config.run.resume = Some(stopped);
    run(&config).unwrap();
    assert_eq!(steps(&answers(&config.run.output)), [0, 1, 2, 3, 4]);
}

#[test]
fn prompts_that_cannot_be_answered_are_named() {
    let long = "a b ".repeat(5000);
    for (text, expected) in [
        ("", "which has no prompt"),
        (
            "ok\n{\"text\": 1}\n",
            ":2: expected a record with `prompt` or `messages`, found `text`",
        ),
        (
            "{\"prompt\": 3}\n",
            ":1: field `prompt`: expected a text, or a list of messages",
        ),
        (
            "{\"messages\": [{\"role\": \"user\"}]}\n",
            ":1: field `messages[0].content`: expected text, found nothing",
        ),
        (
            "{\"prompt\": \"hi\", \"system\": \"X\", \"temperature\": 3}\n",
            ":1: field `temperature`: expected none but prompt, messages",
        ),
        (
            "[{\"role\": \"bird\", \"content\": \"hi\"}]\n",
            ":1: field `prompt[0].role`: expected one of system, user, assistant, tool",
        ),
        ("{nonsense}\n", ":1: invalid JSON"),
        (
            "{\"prompt\": \"hi\", \"x\": NaN}\n",
            ":1: invalid JSON: found NaN in field `x`",
        ),
        (
            "{\"prompt\": \"hi\", \"history\": \"long ago\"}\n",
            ":1: field `history`: expected pairs of texts, beside `prompt`",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"history\": [[\"a\", \"b\"]]}\n",
            ":1: field `history`: expected pairs of texts, beside `prompt`",
        ),
        (long.as_str(), ":1: a prompt of"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let refused = run(&config(dir.path(), text)).unwrap_err().to_string();
        assert!(
            refused.starts_with("--sample-prompts: expected a file"),
            "{refused}"
        );
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn settings_without_prompts_are_refused() {
    for flag in ["--sample-steps", "--sample-max-tokens"] {
        let said = support::program(&["--data", "data/train.jsonl", flag, "3"]);
        assert_eq!(said.code, 2);
        assert!(
            said.err.contains(&format!("{flag} needs --sample-prompts")),
            "{}",
            said.err
        );
    }
    let said = support::program(&[
        "--data",
        "d.jsonl",
        "--sample-prompts",
        "p",
        "--sample-steps",
        "0",
    ]);
    assert!(
        said.err
            .contains("--sample-steps: expected a whole number from 1 up, found 0"),
        "{}",
        said.err
    );
}
