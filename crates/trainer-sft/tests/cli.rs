//! Command line and `--config` file → `Config`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use lora_4bit::ComputeDtype;
use model_qwen::{Dtype, Quantization};
use tempfile::TempDir;
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
        ("lora-dropout", config.lora.dropout.to_string()),
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
    ] {
        let message = error(&format!("--data d.jsonl {flag} 3"));
        assert!(!message.contains("similar"), "{message}");
    }
}

#[test]
fn values_out_of_range_name_the_flag() {
    for (flags, expected) in [
        ("", "--data is missing"),
        (
            "--data d --lora-r 0",
            "--lora-r: expected a whole number from 1 up, found 0",
        ),
        (
            "--data d --lora-dropout 1.5",
            "--lora-dropout: expected a number from 0 to 0.99, found 1.5",
        ),
        (
            "--data d --learning-rate nan",
            "--learning-rate: expected a number above 0, found NaN",
        ),
        (
            "--data d --epochs -1",
            "--epochs: expected a number above 0, found -1",
        ),
        (
            "--data d --seed -1",
            "'--seed <SEED>': expected a whole number from 0 to 2^64 - 1, found `-1`",
        ),
        (
            "--data d --learning-rate fast",
            "'--learning-rate <LR>': expected a number such as 0.5 or 2e-4, found `fast`",
        ),
        (
            "--data d --epochs=-1",
            "--epochs: expected a number above 0, found -1",
        ),
        (
            "--data d --warmup-ratio 2",
            "--warmup-ratio: expected a number from 0 to 1, found 2",
        ),
        (
            "--data d --max-length 1",
            "--max-length: expected a whole number from 2 up",
        ),
        (
            "--data d --max-steps 0",
            "--max-steps: expected a whole number from 1 up",
        ),
        (
            "--data d --batch-size x",
            "'--batch-size <N>': expected a whole number, 0 or more, found `x`",
        ),
        (
            "--data d --quantization int8",
            "[possible values: nf4, none]",
        ),
        ("--data d --target-modules q_proj,qproj", "found `qproj`"),
        (
            "--data d --full --quantization nf4",
            "--full trains every weight",
        ),
        ("--data d --init-config c.json --tokenizer t", "add --full"),
        ("--data d --full --init-config c.json", "needs --tokenizer"),
        ("--data d --eval-steps 5", "--eval-steps needs --eval-data"),
        (
            "--data d --lr-schedule cosine_with_min_lr",
            "--lr-schedule cosine_with_min_lr needs --min-lr or --min-lr-rate",
        ),
        (
            "--data d --lr-schedule wsd",
            "--lr-schedule warmup_stable_decay needs --lr-decay-steps",
        ),
        (
            "--data d --min-lr 1e-5",
            "--min-lr would have no effect: the --lr-schedule cosine has no such setting",
        ),
        (
            "--data d --lr-schedule polynomial --lr 1e-4 --min-lr 1e-4",
            "--min-lr: expected a number from 0 to below 0.0001, found 0.0001",
        ),
        (
            "--data d --lr-schedule cosine_with_min_lr --min-lr 1e-5 --min-lr-rate 0.1",
            "--min-lr and --min-lr-rate say the same",
        ),
        (
            "--data d --full --loraplus-lr-ratio 16",
            "--loraplus-lr-ratio would have no effect",
        ),
        (
            "--data d --loraplus-lr-ratio 0",
            "--loraplus-lr-ratio: expected a number above 0, found 0",
        ),
        (
            "--data d --neftune-noise-alpha -5",
            "--neftune-noise-alpha: expected a number above 0, found -5",
        ),
        (
            "--data d --report-to wandb",
            "--report-to: expected tensorboard or none, found `wandb`; `wandb sync FOLDER` uploads the event files",
        ),
        (
            "--data d --report-to none --logging-dir l",
            "--logging-dir would have no effect",
        ),
        (
            "--data d --eval-split 1",
            "--eval-split: expected a number between 0 and 1, found 1",
        ),
        (
            "--data d --eval-split 0.1 --eval-data e",
            "--eval-split takes the evaluation data from --data",
        ),
        (
            "--data d --eval-split 0.1 --streaming --max-steps 3",
            "--eval-split draws from all records",
        ),
        (
            "--data d --early-stopping-patience 2",
            "--early-stopping-patience needs --eval-steps",
        ),
        (
            "--data d --eval-split 0.1 --load-best",
            "--load-best needs --eval-steps",
        ),
        (
            "--data d --early-stopping-threshold 0.1",
            "needs --early-stopping-patience",
        ),
        (
            "--data d --save-total-limit 2",
            "--save-total-limit needs --save-steps or --load-best",
        ),
        (
            "--data d --save-steps 5 --save-total-limit 0",
            "--save-total-limit: expected a whole number from 1 up, found 0",
        ),
        (
            "--data d --full --lora-r 8",
            "--lora-r would have no effect",
        ),
        (
            "--data d --quantization none --no-double-quant",
            "--no-double-quant would have no effect",
        ),
        (
            "--data d --columns prompt",
            "--columns: expected PART=FIELD",
        ),
        (
            "--data d --columns question=prompt",
            "--columns: expected one of messages,",
        ),
        ("--data d --streaming", "--streaming needs --max-steps"),
        ("--data d --resume-anyway", "--resume-anyway needs --resume"),
        (
            "--data d --resume no/run",
            "--resume: expected a checkpoint folder, or the folder of a run that has some, found no/run, which is no folder",
        ),
        (
            "--data d --double-quant --no-double-quant",
            "cannot be used with",
        ),
    ] {
        let message = error(flags);
        assert!(message.contains(expected), "{flags}: {message}");
    }
    assert_eq!(
        parse("--data d --full").unwrap().model.quantization,
        Some(Quantization::None)
    );
}

#[test]
fn flags_that_a_setting_of_the_file_makes_ineffective_are_refused() {
    for (file, flags, flag) in [
        ("full = true\n", "--lora-r 8", "--lora-r"),
        ("full = true\n", "--lora-dropout 0.1", "--lora-dropout"),
        ("full = true\n", "--dtype bf16", "--dtype"),
        ("full = true\n", "--compute-dtype f32", "--compute-dtype"),
        ("full = true\n", "--double-quant", "--double-quant"),
        (
            "adapter = \"a\"\n",
            "--target-modules q_proj",
            "--target-modules",
        ),
        (
            "quantization = \"none\"\n",
            "--no-double-quant",
            "--no-double-quant",
        ),
        // And the other way round: a flag that makes another one ineffective, whatever the file says.
        ("full = false\n", "--full --use-rslora", "--use-rslora"),
    ] {
        let (_folder, path) = config_file(file);
        let message = error(&format!("--data d --config {path} {flags}"));
        let expected = format!("{flag} would have no effect");
        assert!(message.starts_with(&expected), "{file}{flags}: {message}");
    }
    // A flag that takes the setting of the file back.
    let (_folder, path) = config_file("full = true\nquantization = \"none\"\n");
    let config = parse(&format!("--data d --config {path} --full=false --lora-r 8"));
    assert_eq!(config.unwrap().lora.r, 8);
    // Settings of a file may be without effect: `run.toml` has all of them.
    let (_folder, path) = config_file("full = true\nlora_r = 8\ncompute_dtype = \"bfloat16\"\n");
    parse(&format!("--data d --config {path}")).unwrap();
}

#[test]
fn full_training_computes_in_f32() {
    let compute = |flags: &str| parse(flags).unwrap().model.compute_dtype;
    assert_eq!(compute("--data d"), ComputeDtype::Bf16);
    assert_eq!(compute("--data d --full"), ComputeDtype::F32);
    assert_eq!(compute("--data d --compute-dtype f32"), ComputeDtype::F32);
    let mut config = Config::new("/tmp/none/x");
    config.run.full = true;
    let config = config.resolved().unwrap();
    assert_eq!(config.model.compute_dtype, ComputeDtype::F32);
    let message = error("--data d --full --compute-dtype bf16");
    let expected = "--compute-dtype would have no effect: --full trains in f32";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn flags_win_over_the_file() {
    let (_folder, path) = config_file(
        "data = \"f.jsonl\"\nlora_r = 4\nlearning_rate = 1e-3\nquantization = \"none\"\ndtype = \"f32\"\nepochs = 2\n",
    );
    let config = parse(&format!("--config {path} --lora-r 8")).unwrap();
    assert_eq!(
        (
            config.lora.r,
            config.optimizer.learning_rate,
            config.run.epochs
        ),
        (8, Some(1e-3), Some(2.0))
    );
    assert_eq!(
        (config.model.quantization, config.model.dtype),
        (Some(Quantization::None), Dtype::F32)
    );
    assert_eq!(config.data.train, [Path::new("f.jsonl")]);
    assert_eq!(
        parse(&format!("--config {path} --data g.jsonl"))
            .unwrap()
            .data
            .train,
        [Path::new("g.jsonl")]
    );
}

#[test]
fn a_flag_takes_the_settings_of_what_it_replaces_back() {
    let (_folder, path) = config_file(
        "report_to = [\"tensorboard\"]\nlogging_dir = \"l\"\nlr_schedule = \"warmup_stable_decay\"\nlr_decay_steps = 2\nmin_lr_rate = 0.1\n",
    );
    let with = |flags: &str| parse(&format!("--data d --config {path} {flags}")).unwrap();
    let config = with("--report-to none");
    assert_eq!(
        (config.run.logging_dir, config.run.report_to),
        (None, vec!["none".to_owned()])
    );
    assert!(with("--report-to tensorboard").run.logging_dir.is_some());
    let shape = |flags: &str| {
        let optimizer = with(flags).optimizer;
        (optimizer.lr_decay_steps, optimizer.min_lr_rate)
    };
    assert_eq!(shape("--lr-schedule cosine"), (None, None));
    // Other schedules have this setting, too.
    assert_eq!(shape("--lr-schedule polynomial"), (None, Some(0.1)));
    assert_eq!(
        shape("--lr-schedule warmup_stable_decay"),
        (Some(2), Some(0.1))
    );
}

#[test]
fn errors_in_the_file_name_the_line() {
    for (text, expected) in [
        (
            "data = \"f\"\nlora_rr = 4\n",
            "line 2: unknown setting `lora_rr`; the nearest one is `lora_r`",
        ),
        (
            "learning-rate = 4\n",
            "line 1: unknown setting `learning-rate`; the nearest one is `learning_rate`",
        ),
        (
            "data = \"f\"\n\nlora_r = \"many\"\n",
            "line 3: invalid type: string \"many\"",
        ),
        ("data = ", "line 1: "),
    ] {
        let (_folder, path) = config_file(text);
        let message = error(&format!("--config {path}"));
        assert!(
            message.contains(&path) && message.contains(expected),
            "{message}"
        );
    }
    assert!(error("--config no/such.toml").starts_with("no/such.toml: "));
}

#[test]
fn a_written_configuration_gives_the_same_run() {
    let config = parse("--data a.jsonl --eval-data e.jsonl --lr-schedule warmup_stable_decay --lr-decay-steps 2 --min-lr-rate 0.1 --eval-steps 2 --load-best --early-stopping-patience 3 --report-to tensorboard --logging-dir l --packing --full --max-steps 5 --weight-decay 0.1 --output /tmp/none/x").unwrap();
    let (_folder, path) = config_file(&config.to_toml());
    assert_eq!(
        parse(&format!("--config {path} --output /tmp/none/x")).unwrap(),
        config,
        "{}",
        config.to_toml()
    );
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
