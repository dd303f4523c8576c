//! Command lines of the program: exit codes, negative numbers, and `check` with the flags of a run.

use std::fs;
use std::path::Path;

use super::*;
use support::{Said, data_folder, program, text_of};

/// Data of the repository, and a folder to work in.
fn place() -> (TempDir, String) {
    let data = data_folder().join("train.jsonl");
    (TempDir::new().unwrap(), text_of(&data).to_owned())
}

#[track_caller]
fn refused(arguments: &[&str], code: i32, expected: &str) -> Said {
    let said = program(arguments);
    assert_eq!(said.code, code, "{arguments:?}: {}{}", said.out, said.err);
    assert!(
        said.err.contains(expected),
        "{arguments:?}: expected {expected:?} in {}",
        said.err
    );
    said
}

/// A negative number is refused by the name of its flag in every command, and not taken for a flag.
#[test]
fn wrong_command_lines_end_with_2_in_every_command_and_wrong_files_with_1() {
    let (folder, data) = place();
    let folder = text_of(folder.path());
    let file = format!("{folder}/run.toml");
    let data = data.as_str();
    for (arguments, expected) in [
        (&["--data", data, "--epochs", "nan"][..], "--epochs: "),
        (&["--data", data, "--output", data], "--output: "),
        (&["--data", data, "--thinking", "empty"], "--thinking empty"),
        (&["--data", data, "--columns", "bogus=x"], "--columns: "),
        (&["--data", data, "--device", "abacus"], "--device: "),
        (
            &["--data", data, "--config", "none.toml"],
            "none.toml: No such",
        ),
        (
            &["--method", "grpo", "--data", data, "--reward", "regex:("],
            "--reward: ",
        ),
        (&["check", data, "--epochs", "-1"], "--epochs: "),
        (&["check", data, "--columns", "bogus=x"], "--columns: "),
        (&["check", data, "--seed", "-1"], "'--seed <SEED>'"),
        (&["check", data, "--eval-split", "-0.1"], "--eval-split: "),
        (
            &["check", data, "--packing", "--method", "dpo"],
            "--packing",
        ),
        (
            &["check", data, "--tokens-per-second", "-1"],
            "--tokens-per-second: ",
        ),
        (&["check", data, "--lora-r", "-1"], "'--lora-r <R>'"),
        (
            &["check", data, "--method", "grpo", "--reward", "length:2-1"],
            "--reward: ",
        ),
        (
            &["init", &file, "--yes", "--data", data, "--epochs", "-1"],
            "--epochs: ",
        ),
        (
            &["init", &file, "--yes", "--data", data, "--device", "-1"],
            "--device: ",
        ),
        (&["chat", "--top-k", "-1"], "'--top-k <K>'"),
        (&["chat", "--max-tokens", "-1"], "'--max-tokens <N>'"),
        (&["chat", "--temperature", "-1"], "--temperature: "),
        (&["chat", "--seed", "-1"], "'--seed <SEED>'"),
        (
            &["eval", "--data", data, "--batch-size", "-1"],
            "'--batch-size <N>'",
        ),
        (
            &["eval", "--data", data, "--max-length", "-1"],
            "'--max-length <TOKENS>'",
        ),
        (
            &["merge", "--adapter", "x", "--output", folder],
            "--output: ",
        ),
        (
            &["export", "--format", "gguf-lora", "--output", &file],
            "--adapter: ",
        ),
    ] {
        refused(arguments, 2, expected);
    }
    for (arguments, expected) in [
        (&["--data", "none.jsonl"][..], "no such file"),
        (&["check", "none.jsonl"], "no such file"),
        (&["eval", "--data", "none.jsonl"], "no such file"),
        (&["inspect", "none"], "none: expected a folder"),
    ] {
        refused(arguments, 1, expected);
    }
    assert!(!Path::new(&file).exists());
}

/// The command line of a run works with `check`: what decides about data counts, and the rest is refused where a run refuses it.
#[test]
fn check_takes_the_flags_of_a_run() {
    let (folder, data) = place();
    let output = folder.path().join("out");
    let output = text_of(&output);
    let prompts = folder.path().join("prompts.txt");
    fs::write(&prompts, "Hello?\n").unwrap();
    let run = [
        "--data",
        &data,
        "--lora-r",
        "4",
        "--lora-alpha=8",
        "--use-dora",
        "--learning-rate",
        "1e-3",
        "--quantization",
        "none",
        "--device",
        "cpu",
        "--optim",
        "adamw_8bit",
        "--lr-schedule",
        "linear",
        "--max_steps",
        "3",
        "--save-steps",
        "1",
        "--sample-prompts",
        text_of(&prompts),
        "--output",
        output,
    ];
    let said = program(&[&["check", "--preview", "0"][..], &run].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("3 steps"), "{}", said.out);
    assert!(!said.out.contains("would refuse"), "{}", said.out);
    assert!(!Path::new(output).exists());
    // What a run refuses is refused, or said where it depends on the machine and the folder.
    let full = ["check", &data, "--full", "--use-dora"];
    refused(&full, 2, "--use-dora would have no effect");
    let there = ["check", &data, "--output", text_of(folder.path())];
    let said = program(&there);
    assert!(
        said.code == 0
            && said
                .out
                .contains("would refuse --output: expected a new or empty folder"),
        "{}{}",
        said.out,
        said.err
    );
    #[cfg(target_os = "linux")]
    {
        let said = program(&["check", &data, "--output", "/proc/x"]);
        let expected = "would refuse --output: expected a folder that can be made";
        assert!(
            said.code == 0 && said.out.contains(expected),
            "{}",
            said.out
        );
        refused(
            &["--data", &data, "--output", "/proc/x"],
            2,
            "--output: expected a folder that can be made",
        );
    }
    let missing = ["check", &data, "--sample-prompts", "none.txt"];
    let said = program(&missing);
    assert!(
        said.code == 1 && said.out.contains("--sample-prompts: "),
        "{}{}",
        said.out,
        said.err
    );
    // Help lists what decides about data, and says that there is more.
    let help = program(&["check", "--help"]).out;
    assert!(
        help.contains("--max-length") && !help.contains("--lora-r"),
        "{help}"
    );
    assert!(
        help.contains("Every other flag of a run is taken"),
        "{help}"
    );
    let near = refused(&["check", &data, "--lora-rr", "4"], 2, "--lora-r");
    assert!(!near.err.contains("-- --lora-rr"), "{}", near.err);
}

#[test]
fn what_is_no_run_cannot_be_gone_on_with() {
    let (folder, data) = place();
    let none = folder.path().join("none");
    for path in [&none, &folder.path().to_path_buf()] {
        let arguments = ["--resume", text_of(path)];
        refused(&arguments, 2, "--resume: expected a checkpoint folder");
        let arguments = ["--resume", text_of(path), "--data", &data];
        refused(&arguments, 2, "--resume: expected a checkpoint folder");
    }
    let checkpoint = folder.path().join("checkpoint-1");
    fs::create_dir(&checkpoint).unwrap();
    fs::write(checkpoint.join("trainer_state.json"), "{}").unwrap();
    let arguments = ["--resume", text_of(folder.path())];
    refused(
        &arguments,
        2,
        "with the settings of the run in run.toml; found",
    );
    // A run that has ended is not blamed on a flag that nobody gave.
    fs::write(folder.path().join("run.toml"), format!("data = {data:?}")).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), "").unwrap();
    refused(&arguments, 2, "--resume: expected a run that has not ended");
}

#[test]
fn settings_without_an_effect_are_refused_by_name() {
    for (flags, expected) in [
        (
            "--target-modules q_proj,all-linear",
            "--target-modules: expected `all-linear` or a list",
        ),
        (
            "--method dpo --loss-type robust",
            "--loss-type robust would have no effect without --label-smoothing",
        ),
        (
            "--method dpo --loss-type robust --label-smoothing 0",
            "--loss-type robust would have no effect",
        ),
        (
            "--method grpo --reward json --reward-weights 0",
            "--reward-weights are all 0",
        ),
        (
            "--method grpo --reward json --reward-weights 1e300",
            "--reward-weights: expected a number from -1000000 to 1000000",
        ),
    ] {
        let found = error(&format!("--data d {flags}"));
        assert!(found.contains(expected), "{flags}: {found}");
    }
    let config = parse("--data d --method grpo --reward json").unwrap();
    assert_eq!(config.method.beta, Some(0.0));
    assert_eq!(
        config.method.loss_type,
        Some(trainer_sft::config::LossType::Dapo)
    );
}

#[test]
fn a_dry_run_says_what_memory_a_run_takes_and_writes_nothing() {
    let (folder, data) = place();
    let output = text_of(&folder.path().join("o")).to_owned();
    let start = ["--data", data.as_str(), "--output", &output, "--dry-run"];
    let said = program(&[&start[..], &["--batch-size", "auto"]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    for part in [
        "weights",
        "driver and program",
        "4 at once, 1 times per step",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let said = program(&[&start[..], &["--device-memory", "1MiB"]].concat());
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.out.contains("no batch or length fits"), "{}", said.out);
    refused(&[&start[..], &["--preview"]].concat(), 2, "--preview");
    refused(
        &["check", data.as_str(), "--dry-run"],
        2,
        "--dry-run would have no effect",
    );
    assert!(!Path::new(&output).exists());
}
