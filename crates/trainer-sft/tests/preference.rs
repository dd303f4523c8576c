//! Runs that compare answers: what they read, say, write and go on from.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trainer_sft::args::Args;
use trainer_sft::burn::tensor::Device;
use trainer_sft::chat_format::ChatFormat;
use trainer_sft::config::{Config, LossType, Method};
use trainer_sft::data::{Dataset, Example};
use trainer_sft::{Summary, TrainError, Training};

/// Prompts with a wanted answer and another one.
fn texts() -> Vec<[String; 3]> {
    let text = |i: usize| {
        let captain = format!("I am captain number {i} of a ship.");
        let duck = format!("I am a duck and {i} years old.");
        [format!("Who is number {i}?"), captain, duck]
    };
    (0..8).map(text).collect()
}

fn pairs() -> Vec<Value> {
    let texts = texts().into_iter();
    let pair = |[prompt, chosen, rejected]: [String; 3]| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});
    texts.map(pair).collect()
}

fn judged() -> Vec<Value> {
    let texts = texts().into_iter();
    let both = |[prompt, good, bad]: [String; 3]| {
        [(good, true), (bad, false)]
            .map(|(text, label)| json!({"prompt": prompt, "completion": text, "label": label}))
    };
    texts.flat_map(both).collect()
}

fn config(output: PathBuf, method: Method) -> Config {
    let mut config = Config::new(output);
    config.method.method = method;
    config.lora.r = 2;
    config.optimizer.learning_rate = Some(2e-3);
    config.optimizer.warmup_steps = Some(0);
    config.run.batch_size = 2;
    config.run.max_steps = Some(6);
    config
}

fn run(config: &Config, records: Vec<Value>) -> Result<Summary, TrainError> {
    let training = Training::new(config).device(&Device::flex());
    training.records(records).run()
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn number(line: &Value, name: &str) -> f64 {
    let value = line[name].as_f64();
    value.unwrap_or_else(|| panic!("no {name} in {line}"))
}

fn adapter(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

/// A data file with these records.
fn file(folder: &Path, name: &str, records: &[Value]) -> PathBuf {
    let lines = records.iter().map(|record| format!("{record}\n"));
    let path = folder.join(name);
    fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

/// The examples of records, or what is wrong with them.
fn read(records: &[Value], method: Method, max_length: usize) -> Result<Vec<Example>, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path().join("o"), method);
    config.data.train = vec![file(folder.path(), "d.jsonl", records)];
    config.data.max_length = max_length;
    let format = ChatFormat::load(&config).unwrap();
    let data = Dataset::of(&config, &format).map_err(|error| {
        let folder = format!("{}/", folder.path().display());
        error.to_string().replace(&folder, "")
    })?;
    Ok(data.examples.iter().map(Result::unwrap).collect())
}

fn tokens(examples: &[Example]) -> Vec<(Vec<u32>, Vec<bool>, bool)> {
    let parts = examples.iter().cloned();
    parts.map(|e| (e.tokens, e.mask, e.is_wanted)).collect()
}

#[test]
fn pairs_are_told_apart_and_measured_with_the_names_of_trl() {
    let dir = tempfile::tempdir().unwrap();
    for (method, records, more) in [
        (Method::Dpo, pairs(), "rewards/accuracies"),
        (Method::Orpo, pairs(), "log_odds_chosen"),
        (Method::Kto, judged(), "kl"),
    ] {
        let mut config = config(dir.path().join(method.name()), method);
        config.run.eval_steps = Some(3);
        config.run.save_steps = Some(6);
        config.data.eval_split = Some(0.25);
        config.run.max_steps = Some(12);
        let summary = run(&config, records).unwrap();
        let found = lines(&summary.output);
        let names = [
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "logps/chosen",
            "logps/rejected",
            more,
        ];
        let evaluations: Vec<&Value> = found
            .iter()
            .filter(|line| !line["eval_loss"].is_null())
            .collect();
        assert_eq!(evaluations.len(), 4);
        for line in &evaluations {
            for name in names {
                number(line, &format!("eval_{name}"));
            }
        }
        let margin = |line: &Value| number(line, "eval_rewards/margins");
        let last = evaluations[3];
        assert!(
            margin(last) > margin(evaluations[0]),
            "{method:?}: {found:?}"
        );
        assert!(number(last, "eval_rewards/margins") > 0.0);
        let first = &found[0];
        match method {
            // The adapter changes nothing yet, so that model and reference agree.
            Method::Dpo => {
                assert!((number(first, "loss") - std::f64::consts::LN_2).abs() < 1e-6);
                assert_eq!(number(first, "rewards/chosen"), 0.0);
            }
            Method::Kto => assert!((number(first, "loss") - 0.5).abs() < 1e-6),
            _ => {
                let parts = number(first, "nll_loss") - 0.1 * number(first, "log_odds_ratio");
                assert!((number(first, "loss") - parts).abs() < 1e-6);
            }
        }
        let state = fs::read(summary.output.join("checkpoint-12/trainer_state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        assert_eq!(state["log_history"], Value::from(found.clone()));
        let page = fs::read_to_string(summary.output.join("report.html")).unwrap();
        for title in ["Rewards", "Reward margin", "Loss of the comparison"] {
            assert!(page.contains(title), "{title}");
        }
        // A quarter is held out.
        let count = format!("<th>Pairs</th><td>{}</td>", pairs().len() * 3 / 4);
        assert_eq!(page.contains(&count), method != Method::Kto, "{page}");
        let settings = fs::read_to_string(summary.output.join("run.toml")).unwrap();
        assert!(settings.contains(&format!("method = \"{}\"", method.name())));
        assert!(settings.contains("beta = 0.1"), "{settings}");
    }
}

#[test]
fn micro_batches_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (method, records) in [
        (Method::Dpo, pairs()),
        (Method::Orpo, pairs()),
        (Method::Kto, judged()),
    ] {
        let [whole, split] = [(4, 1), (1, 4)].map(|(rows, steps)| {
            let name = format!("{}-{rows}", method.name());
            let mut config = config(dir.path().join(name), method);
            config.run.batch_size = rows;
            config.run.gradient_accumulation = steps;
            config.run.max_steps = Some(3);
            config.model.quantization = Some(model_qwen::Quantization::None);
            config.model.compute_dtype = lora_4bit::ComputeDtype::F32;
            let summary = run(&config, records.clone()).unwrap();
            lines(&summary.output)
        });
        for (whole, split) in whole.iter().zip(&split) {
            for name in ["loss", "grad_norm", "rewards/margins"] {
                if whole[name].is_null() && split[name].is_null() {
                    continue;
                }
                let (a, b) = (number(whole, name), number(split, name));
                assert!(
                    (a - b).abs() < 2e-3 * a.abs().max(0.1),
                    "{method:?}, {name}: {a}, {b}"
                );
            }
        }
    }
}

#[test]
fn a_resumed_run_keeps_its_reference_and_ends_bit_for_bit_as_one_without_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let data = file(dir.path(), "pairs.jsonl", &pairs());
    let first = config(dir.path().join("first"), Method::Dpo);
    let first = run(&first, pairs()).unwrap().output;
    let parse = |flags: Vec<String>| {
        let words = std::iter::once("trainer-sft".to_owned()).chain(flags);
        Args::parse_config(words).unwrap()
    };
    let flags = |output: &str| {
        let (data, first) = (data.display(), first.display());
        let output = dir.path().join(output);
        let all = format!(
            "--data {data} --method dpo --adapter {first} --lr 2e-3 --max-steps 6 --batch-size 2 --save-steps 3 --device cpu --output {}",
            output.display()
        );
        all.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let whole = parse(flags("whole"));
    assert_eq!(whole.method.ref_adapter.as_ref(), Some(&first));
    let whole = Training::new(&whole).run().unwrap().output;
    let found = lines(&whole);
    // The adapter is its own reference, and not the model without it.
    assert_eq!(number(&found[0], "rewards/chosen"), 0.0);
    let resume = format!("--resume {}/checkpoint-3", whole.display());
    let resume = format!("{resume} --output {}", dir.path().join("resumed").display());
    let resumed = parse(resume.split(' ').map(ToOwned::to_owned).collect());
    assert_eq!(resumed.method.method, Method::Dpo);
    assert_eq!(resumed.method.ref_adapter.as_ref(), Some(&first));
    let resumed = Training::new(&resumed).run().unwrap().output;
    assert!(adapter(&whole) == adapter(&resumed), "the adapters differ");
    let last = |folder: &Path| lines(folder).last().unwrap()["rewards/margins"].clone();
    assert_eq!(last(&whole), last(&resumed));

    // Another adapter in the folder of the reference would change what is learnt.
    let weights = first.join("adapter_model.safetensors");
    std::fs::copy(whole.join("adapter_model.safetensors"), &weights).unwrap();
    let resume = format!("--resume {}/checkpoint-3", whole.display());
    let resume = format!("{resume} --output {}", dir.path().join("other").display());
    let resumed = parse(resume.split(' ').map(ToOwned::to_owned).collect());
    let refused = Training::new(&resumed).run().unwrap_err().to_string();
    assert!(
        refused.contains("the files of --ref-adapter ("),
        "{refused}"
    );
}

#[test]
fn texts_messages_and_a_prompt_within_the_answers_say_the_same() {
    let user = |text: &str| json!({"role": "user", "content": text});
    let says = |text: &str| json!({"role": "assistant", "content": text});
    let text = json!({"prompt": "Hi", "chosen": "Yes.", "rejected": "No."});
    let expected = tokens(&read(std::slice::from_ref(&text), Method::Dpo, 100).unwrap());
    assert_eq!(expected.len(), 2);
    assert!(expected[0].2 && !expected[1].2);
    for same in [
        json!({"prompt": [user("Hi")], "chosen": [says("Yes.")], "rejected": [says("No.")]}),
        json!({"chosen": [user("Hi"), says("Yes.")], "rejected": [user("Hi"), says("No.")]}),
        // A text of the prompt beside whole conversations, as in ultrafeedback_binarized.
        json!({"prompt": "Hi", "chosen": [user("Hi"), says("Yes.")], "rejected": [user("Hi"), says("No.")]}),
        json!({"prompt": "Hi", "chosen": [says("Yes.")], "rejected": says("No.")}),
    ] {
        let found = read(std::slice::from_ref(&same), Method::Orpo, 100).unwrap();
        assert_eq!(tokens(&found), expected, "{same}");
    }
    // Earlier turns of the assistant are no part of the answer.
    let long = json!({
        "chosen": [user("Hi"), says("What?"), user("Well?"), says("Yes.")],
        "rejected": [user("Hi"), says("What?"), user("Well?"), says("No.")],
    });
    let found = read(&[long], Method::Dpo, 100).unwrap();
    let learnt = |example: &Example| example.num_targets();
    assert_eq!(
        learnt(&found[0]),
        expected[0].1.iter().filter(|m| **m).count()
    );
    assert!(found[0].tokens.len() > expected[0].0.len());
    // KTO takes the same answers one by one.
    let one = |text: &str, label| json!({"prompt": "Hi", "completion": text, "label": label});
    let judged = [one("Yes.", json!(true)), one("No.", json!(0))];
    for records in [&judged[..], &[text]] {
        let found = read(records, Method::Kto, 100).unwrap();
        assert_eq!(tokens(&found), expected, "{records:?}");
    }
    // Texts that begin alike go on without a template.
    let plain = json!({"chosen": "The sky is blue.", "rejected": "The sky is green."});
    let found = read(&[plain], Method::Dpo, 100).unwrap();
    assert_eq!(found[0].tokens[..3], found[1].tokens[..3]);
    assert_eq!(found[0].mask[..3], [false; 3]);
}

#[test]
fn long_answers_lose_their_end_and_long_prompts_their_record() {
    let answer = |text: &str| text.repeat(20);
    let record = json!({"prompt": "Hi", "chosen": answer("yes "), "rejected": "No."});
    let whole = read(std::slice::from_ref(&record), Method::Dpo, 1000).unwrap();
    let cut = read(&[record], Method::Dpo, 20).unwrap();
    assert_eq!(cut[0].tokens[..], whole[0].tokens[..20]);
    assert_eq!(cut[0].mask[..], whole[0].mask[..20]);
    assert_eq!(tokens(&cut)[1], tokens(&whole)[1]);
    let long = json!({"prompt": answer("why "), "chosen": "Yes.", "rejected": "No."});
    let message = read(&[long], Method::Dpo, 20).unwrap_err();
    assert!(
        message.ends_with("d.jsonl:1: its prompt alone fills --max-length 20"),
        "{message}"
    );
}

#[test]
fn wrong_records_name_line_field_expected_and_found() {
    for (record, method, expected) in [
        (
            json!({"prompt": "a", "chosen": "b"}),
            Method::Dpo,
            "d.jsonl:1: field `rejected`: expected text or messages, found nothing",
        ),
        (
            json!({"prompt": "a", "chosen": "b", "rejected": 5}),
            Method::Orpo,
            "d.jsonl:1: field `rejected`: expected text or messages, found the number 5",
        ),
        (
            json!({"prompt": "a", "chosen": [{"role": "assistant", "content": 7}], "rejected": "b"}),
            Method::Dpo,
            "d.jsonl:1: field `chosen[0].content`: expected text, found the number 7",
        ),
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "b"}),
            Method::Dpo,
            "`chosen` and `rejected` say the same",
        ),
        (
            json!({"prompt": "a", "completion": "b", "label": true}),
            Method::Dpo,
            "--method dpo: expected `prompt`, `chosen` and `rejected`, found `prompt`, `completion`, `label` (these are judged answers, which --method kto learns from)",
        ),
        (
            json!({"prompt": "a", "completion": "b", "label": "maybe"}),
            Method::Kto,
            "d.jsonl:1: field `label`: expected true or false, found \"maybe\"",
        ),
        (
            json!({"prompt": "a", "completion": "b"}),
            Method::Kto,
            "d.jsonl:1: field `label`: expected true or false, found nothing",
        ),
        (
            json!({"completion": "b", "label": true}),
            Method::Kto,
            "d.jsonl:1: field `prompt`: expected text, found nothing",
        ),
        (
            json!({"chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
                   "rejected": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}]}),
            Method::Dpo,
            "field `chosen[0]`: expected the turn that `rejected` begins with, since there is no `prompt`",
        ),
        (
            json!("x"),
            Method::Dpo,
            "expected `prompt`, `chosen` and `rejected`, found \"x\"",
        ),
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            Method::Sft,
            "--method dpo or orpo learns from pairs",
        ),
    ] {
        let message = read(std::slice::from_ref(&record), method, 100).unwrap_err();
        assert!(message.contains(expected), "{record}: {message}");
    }
}

#[test]
fn settings_without_effect_are_refused_by_name() {
    let error = |flags: &str| {
        let words = ["trainer-sft", "--data", "d"].into_iter();
        let words = words.chain(flags.split_whitespace());
        Args::parse_config(words).unwrap_err().to_string()
    };
    for (flags, expected) in [
        ("--beta 0.2", "--beta would have no effect: --method sft"),
        (
            "--method orpo --loss-type ipo",
            "--loss-type would have no effect: --method orpo",
        ),
        (
            "--method dpo --desirable-weight 2",
            "--desirable-weight would have no effect: --method dpo",
        ),
        (
            "--method orpo --ref-adapter a",
            "--ref-adapter would have no effect: --method orpo",
        ),
        (
            "--method dpo --init-lora-weights pissa --quantization none",
            "--init-lora-weights pissa cannot be used with --method dpo: the reference",
        ),
        (
            "--method kto --modules-to-save lm_head",
            "--modules-to-save lm_head cannot be used with --method kto: the reference",
        ),
        (
            "--method dpo --loss-type hinge --label-smoothing 0.1",
            "--label-smoothing would have no effect",
        ),
        (
            "--method dpo --label-smoothing 0.5",
            "--label-smoothing: expected a number from 0 to below 0.5, found 0.5",
        ),
        ("--method dpo --beta 0", "--beta: expected a number above 0"),
        ("--method dpo --full", "take --method orpo"),
        ("--method kto --full", "take --method orpo"),
        ("--method dpo --packing", "--packing cannot be used with"),
        (
            "--method kto --train-on all",
            "--train-on cannot be used with --method kto",
        ),
        (
            "--method orpo --neftune-noise-alpha 5",
            "--neftune-noise-alpha cannot be used with",
        ),
        (
            "--method dpo --lora-dropout 0.1",
            "--lora-dropout cannot be used with",
        ),
        ("--method kto --batch-size 1", "has to be 2 or more"),
        (
            "--method kto --desirable-weight 0 --undesirable-weight 0",
            "are both 0",
        ),
    ] {
        let message = error(flags);
        assert!(message.contains(expected), "{flags}: {message}");
    }
}

#[test]
fn a_file_has_the_same_settings_and_those_of_another_method_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let text = "method = \"dpo\"\nbeta = 0.3\nloss_type = \"ipo\"\ndata = \"d\"\n";
    fs::write(&path, text).unwrap();
    let parse = |flags: &str| {
        let all = format!("trainer-sft --config {} {flags}", path.display());
        Args::parse_config(all.split_whitespace()).unwrap().method
    };
    let same = parse("");
    assert_eq!((same.method, same.beta), (Method::Dpo, Some(0.3)));
    assert_eq!(same.loss_type, Some(LossType::Ipo));
    let other = parse("--method orpo");
    assert_eq!((other.beta, other.loss_type), (Some(0.3), None));
    let other = parse("--method sft");
    assert_eq!((other.beta, other.loss_type), (None, None));
}
