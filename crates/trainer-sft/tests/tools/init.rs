//! `trainer-sft init`, without a terminal.

use std::fs;

use tempfile::TempDir;

use super::{data_folder, fail, program, refuse, succeed, text_of};

#[test]
fn flags_make_a_file_that_a_run_and_a_check_take_at_once() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("out");
    let file = folder.path().join("my run.toml");
    let model = data_folder().join("model");
    let own = ["init", text_of(&file), "--data", text_of(&data)];
    let all = [
        &own[..],
        &["--model", text_of(&model), "--device", "cpu"],
        &["--epochs", "0.1", "--output", text_of(&output)],
    ]
    .concat();
    // All is said: nothing is left to ask.
    let said = succeed(&all);
    assert!(
        said.contains("Train: cargo run -p trainer-sft -- --config '/"),
        "{said}"
    );
    let checked = succeed(&["check", "--config", text_of(&file)]);
    assert!(checked.contains("none: a run takes this data"), "{checked}");
    let run = succeed(&["--config", text_of(&file), "--lora-r", "2"]);
    assert!(run.starts_with("2 steps"), "{run}");
    assert!(output.join("adapter_model.safetensors").is_file());
}

#[test]
fn nothing_is_overwritten_unless_it_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let file = folder.path().join("run.toml");
    fs::write(&file, "mine").unwrap();
    let own = ["init", text_of(&file), "--yes", "--data", text_of(&data)];
    refuse(&own, &["give --force to overwrite it"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    succeed(&[&own[..], &["--force"]].concat());
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\ndevice = \"auto\"\n"), "{text}");
    assert!(text.contains("\n#epochs = 10.0\n"), "{text}");
}

#[test]
fn without_a_terminal_the_flags_are_named() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let file = folder.path().join("run.toml");
    let own = ["init", text_of(&file)];
    refuse(
        &own,
        &["--yes", "--model, --data, --device, --epochs, --output"],
    );
    refuse(
        &[&own[..], &["--yes"]].concat(),
        &["--data: expected records that a run of this --method would take, found none"],
    );
    let data = ["--yes", "--data", text_of(&data)];
    for (flags, expected) in [
        (&["--device", "gpu9"][..], "--device: expected auto, cpu"),
        (
            &["--model", "./nowhere"],
            "--model: expected a model folder",
        ),
        (&["--epochs", "0"], "--epochs: expected a number above 0"),
        (
            &["--output", text_of(&data_folder())],
            "--output: expected a new or empty folder",
        ),
    ] {
        refuse(&[&own[..], &data, flags].concat(), &[expected]);
    }
    fail(
        &[&own[..], &["--yes", "--data", "nothing.jsonl"]].concat(),
        &["no such file"],
    );
    assert!(!file.exists());
    // A model that is not here is downloaded by the run.
    let model = ["--model", "Qwen/Qwen2.5-0.5B-Instruct"];
    let said = program(&[&own[..], &data, &model].concat());
    assert!(said.is_success(), "{}", said.err);
}

#[test]
fn columns_are_taken_or_found() {
    let folder = TempDir::new().unwrap();
    let (data, file) = (
        folder.path().join("t.jsonl"),
        folder.path().join("run.toml"),
    );
    let own = [
        "init",
        text_of(&file),
        "--yes",
        "--force",
        "--data",
        text_of(&data),
    ];
    let question = "{\"question\": \"Hi?\", \"answer\": \"Yes.\"}\n";
    let pair = "{\"problem\": \"Hi?\", \"chosen\": \"Yes.\", \"rejected\": \"No.\"}\n";
    let grpo = ["--method", "grpo", "--reward", "exact_match"];
    for (text, flags, expected) in [
        (
            question,
            &[][..],
            &["prompt=question", "completion=answer"][..],
        ),
        (question, &grpo, &["prompt=question"]),
        (
            pair,
            &["--method", "dpo"],
            &["prompt=problem", "chosen=chosen", "rejected=rejected"],
        ),
        (
            question,
            &["--columns", "prompt=answer,completion=question"],
            &["prompt=answer", "completion=question"],
        ),
    ] {
        fs::write(&data, text).unwrap();
        succeed(&[&own[..], flags].concat());
        let written = fs::read_to_string(&file).unwrap();
        let settings: toml::Table = written.parse().unwrap();
        let columns = settings["columns"].as_array().unwrap().iter();
        let columns: Vec<&str> = columns.map(|column| column.as_str().unwrap()).collect();
        assert_eq!(columns, expected, "{written}");
        succeed(&["check", "--config", text_of(&file)]);
    }
    let wrong = [&own[..], &["--columns", "bogus=x"]].concat();
    refuse(&wrong, &["--columns: expected one of"]);
    // FILE has no flag, and --data takes all words after it.
    let wrong = ["init", "--yes", "--data", text_of(&data), text_of(&file)];
    refuse(
        &wrong,
        &["--data: expected data", "run.toml", "before --data"],
    );
}
