//! Command line and `--config` file → `Config`.

#![allow(clippy::unwrap_used)]

mod command_lines;
mod files;
#[path = "../support/mod.rs"]
mod support;
mod values;

use std::path::{Path, PathBuf};
use std::process::Command;

use lora_4bit::ComputeDtype;
use model_qwen::{Dtype, Quantization};
use serde_json::json;
use tempfile::TempDir;
use trainer_sft::Training;
use trainer_sft::args::Args;
use trainer_sft::config::{Config, LrSchedule, Thinking, TrainOn};

fn parse(flags: &str) -> Result<Config, String> {
    Args::parse_config(std::iter::once("trainer-sft").chain(flags.split_whitespace()))
        .map_err(|error| error.to_string())
}

fn error(flags: &str) -> String {
    parse(flags).unwrap_err()
}

fn config_file(text: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path.display().to_string())
}

#[test]
fn the_help_tells_the_true_defaults() {
    let config = parse("--data d.jsonl").unwrap();
    let help = <Args as clap::CommandFactory>::command()
        .render_long_help()
        .to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, default) in [
        ("max-length", config.data.max_length.to_string()),
        ("lora-r", config.lora.r.to_string()),
        ("lora-alpha", config.lora.alpha.to_string()),
        ("lora-dropout", config.lora.dropout().to_string()),
        ("target-modules", config.lora.target_modules.join(",")),
        ("learning-rate", "2e-4".into()),
        ("warmup-ratio", config.optimizer.warmup_ratio.to_string()),
        ("weight-decay", config.optimizer.weight_decay.to_string()),
        ("max-grad-norm", config.optimizer.max_grad_norm.to_string()),
        ("epochs", "3".into()),
        ("batch-size", config.run.batch_size.to_string()),
        (
            "gradient-accumulation",
            config.run.gradient_accumulation.to_string(),
        ),
        ("seed", config.run.seed.to_string()),
        ("log-steps", config.run.log_steps.to_string()),
        ("device", config.model.device),
    ] {
        let own = help
            .split(&format!(" --{flag} <"))
            .nth(1)
            .unwrap_or_else(|| panic!("--{flag} is not in the help"));
        let stated = own
            .split("[default: ")
            .nth(1)
            .unwrap()
            .split([']', ';'])
            .next()
            .unwrap();
        assert!(
            stated == default || stated.starts_with(&format!("{default},")),
            "--{flag}: help {stated}, real {default}"
        );
    }
    assert_eq!(
        config.optimizer.learning_rate,
        Some(2e-3),
        "the bundled model"
    );
    let named = parse("--data d.jsonl --model m").unwrap();
    assert_eq!(named.optimizer.learning_rate, Some(2e-4));
    assert_eq!(
        (config.run.epochs, named.run.epochs),
        (Some(10.0), Some(3.0))
    );
    assert_eq!(config.optimizer.lr_schedule, LrSchedule::Cosine);
    assert_eq!(
        (config.model.quantization, config.model.double_quant),
        (Some(Quantization::Nf4), true)
    );
    assert_eq!(
        (config.data.train_on, config.data.thinking),
        (TrainOn::Assistant, Thinking::Keep)
    );
    assert_eq!(config.run.output, PathBuf::from("adapters/d-1"));
}

/// Settings that depend on the rest are the same whoever asks.
#[test]
fn a_program_gets_the_defaults_of_the_command_line() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("x");
    for (flags, model, full) in [
        ("", None, false),
        ("--full", None, true),
        ("--model m", Some("m"), false),
        ("--model m --full", Some("m"), true),
    ] {
        let line = format!("--data d --output {} {flags}", output.display());
        let mut config = Config::new(&output);
        config.data.train = vec!["d".into()];
        config.model.model = model.map(Into::into);
        config.run.full = full;
        assert_eq!(config.resolved().unwrap(), parse(&line).unwrap(), "{flags}");
    }
}

#[test]
fn underscores_and_aliases_are_accepted() {
    let config = parse("--data a.jsonl --data b_c.jsonl --lora_r=8 --per_device_train_batch_size 3 --no_double_quant --use_rslora --target_modules q_proj,v_proj").unwrap();
    assert_eq!(
        config.data.train,
        [Path::new("a.jsonl"), Path::new("b_c.jsonl")]
    );
    assert_eq!(
        (
            config.lora.r,
            config.run.batch_size,
            config.model.double_quant
        ),
        (8, 3, false)
    );
    assert!(config.lora.use_rslora && !config.lora.is_all_linear());
    assert_eq!(config.lora.target_modules, ["q_proj", "v_proj"]);
}

#[test]
fn unknown_flags_name_the_nearest_one() {
    for (flag, near) in [
        ("--learning_rat", "--learning-rate"),
        ("--lora-ranks", "--lora-rank"),
        ("--epoch", "--epochs"),
        ("--quantisation", "--quantization"),
    ] {
        let message = error(&format!("--data d.jsonl {flag} 3"));
        assert!(message.contains(near), "{message}");
    }
}

#[test]
fn a_flag_of_another_program_is_translated_and_any_other_points_nowhere() {
    for (flag, here) in [
        ("--bs", "--batch-size"),
        ("--4bit", "--quantization"),
        ("--load_in_4bit", "--quantization"),
        ("--dataset", "--data"),
        ("--bf16", "--compute-dtype"),
        ("--mask-prompt", "--train-on"),
        ("--enable_thinking", "--thinking"),
        ("--iters", "--max-steps"),
        ("--alpha", "--lora-alpha"),
        ("--val_set_size", "--eval-split"),
        ("--dataset_text_field", "--columns"),
    ] {
        let message = error(&format!("--data d.jsonl {flag} 3"));
        let expected = format!("a similar argument exists: '{here}'");
        assert!(message.contains(&expected), "{message}");
    }
    for flag in [
        "--zzzzzz",
        "--do-train",
        "--deepspeed",
        "--warmth",
        "--fp16",
        "--adam-beta2",
    ] {
        let message = error(&format!("--data d.jsonl {flag} 3"));
        assert!(!message.contains("similar"), "{message}");
        assert!(
            message.contains("Usage: trainer-sft [OPTIONS]"),
            "{message}"
        );
    }
    for (flag, expected) in [
        (
            "--chat-template",
            "tip: the chat template is the one in the model's folder",
        ),
        (
            "--use_peft",
            "tip: an adapter is trained unless `full` is given",
        ),
        ("--fp16", "tip: there is no training in f16"),
        ("--adam-beta2", "tip: AdamW has the betas 0.9 and 0.999"),
        (
            "--overwrite_output_dir",
            "tip: a folder with a result is not overwritten",
        ),
    ] {
        let message = error(&format!("--data d.jsonl {flag} 3"));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn full_training_computes_in_what_suits_the_device() {
    let compute = |flags: &str| parse(flags).unwrap().model.compute_dtype;
    assert_eq!(compute("--data d"), ComputeDtype::Bf16);
    assert_eq!(compute("--data d --full"), ComputeDtype::Auto);
    assert_eq!(compute("--data d --compute-dtype f32"), ComputeDtype::F32);
    let mut config = Config::new("/tmp/none/x");
    config.run.full = true;
    config.model.device = "cpu".into();
    config.model.compute_dtype = ComputeDtype::Bf16;
    let message = Training::new(&config)
        .records([json!({"prompt": "a", "completion": "b"})])
        .run()
        .unwrap_err()
        .to_string();
    let expected = "--compute-dtype: expected f32 or auto with --full on a CPU";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn a_trained_adapter_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), "").unwrap();
    let message = error(&format!("--data d --output {}", folder.path().display()));
    assert!(
        message.contains("--output: expected a new or empty folder, found"),
        "{message}"
    );
}

#[test]
fn numbers_of_steps() {
    let config = parse("--data d --epochs 1.5 --warmup-ratio 0.1").unwrap();
    assert_eq!(config.run.num_steps(7), 11);
    assert_eq!(config.optimizer.num_warmup_steps(11), 2);
    assert_eq!(parse("--data d --max-steps 3").unwrap().run.num_steps(7), 3);
    // A ratio leaves a step that learns.
    for (flags, steps, warmup) in [
        ("", 1, 0),
        ("", 2, 1),
        ("--warmup-ratio 1", 4, 3),
        ("--warmup-steps 1", 1, 1),
    ] {
        let optimizer = parse(&format!("--data d {flags}")).unwrap().optimizer;
        assert_eq!(optimizer.num_warmup_steps(steps), warmup, "{flags}");
    }
    assert_eq!(
        parse("--data d --warmup-steps 9")
            .unwrap()
            .optimizer
            .num_warmup_steps(5),
        5
    );
}

#[test]
fn the_program_explains_itself_and_its_errors() {
    let program = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let help = program(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--lora-r <R>"));
    let missing = program(&[]);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--data is missing"));
    let unknown = program(&["--data", "d", "--lora-rnk", "3"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("--lora-r"));
}

#[test]
fn numbers_that_no_run_can_have_are_refused_by_the_flag() {
    for (flags, expected) in [
        (vec!["--lora-r", "100000"], "--lora-r"),
        (vec!["--batch-size", "18446744073709551615"], "--batch-size"),
        (
            vec!["--gradient-accumulation", "18446744073709551615"],
            "--gradient-accumulation",
        ),
        (
            vec![
                "--method",
                "grpo",
                "--reward",
                "json",
                "--num-generations",
                "99999999999",
            ],
            "--num-generations",
        ),
        (
            vec!["--init-lora-weights", "pissa_niter_99999999999"],
            "at most 1000",
        ),
    ] {
        let words = ["trainer-sft", "--data", "a.jsonl"]
            .into_iter()
            .chain(flags);
        let refused = Args::parse_config(words).unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}
