//! `trainer-sft check`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use model_qwen::{LoadOptions, Quantization, QwenModel};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{copy, data_folder, fail, program, refuse, succeed, text_of};

/// Lines as a file.
pub(super) fn file(folder: &TempDir, name: &str, lines: &[&str]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[track_caller]
pub(super) fn json_of(arguments: &[&str], code: i32) -> Value {
    let said = program(&[&["check", "--json"], arguments].concat());
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// Lines 1 and 2 say the same, and line 3 answers the question of line 1 otherwise.
#[track_caller]
pub(super) fn compares_lines(found: &Value, path: &Path) {
    for (kind, other) in [("duplicates", 2), ("conflicts", 3)] {
        let places = [1, other].map(|line| format!("{}:{line}", path.display()));
        assert_eq!(
            found[kind],
            json!([{"count": 2, "places": places}]),
            "{kind}"
        );
    }
}

/// Five records to learn, of three formats: one is there twice, and two answer the same question.
const MIXED: [&str; 7] = [
    r#"{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]}"#,
    r#"{"prompt": "Who?", "completion": "Ann."}"#,
    r#"{"instruction": "Who?", "output": "Bob."}"#,
    r#"{"instruction": "What?", "output": ""}"#,
    r#"{"text": "The sea is blue."}"#,
    r#"{"text": "The sea is wide."}"#,
    r#"{"prompt": "When?", "completion": ""}"#,
];

#[test]
fn records_are_counted_compared_and_named_by_their_lines() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "t.jsonl", &MIXED);
    let found = json_of(&[text_of(&path)], 0);
    assert_eq!(found["num_records"], 7);
    assert_eq!(found["num_examples"], 5);
    assert_eq!(
        found["formats"],
        json!({"messages (OpenAI)": 1, "prompt/completion": 1, "instruction/input/output (Alpaca)": 1, "text": 2})
    );
    assert_eq!(found["files"][0]["num_records"], 7);
    let place = |line: usize| format!("{}:{line}", path.display());
    // The same words in another format say the same. Texts have no prompt that they could share.
    assert_eq!(found["num_duplicates"], 1);
    compares_lines(&found, &path);
    let left_out = found["left_out"].as_array().unwrap();
    let lines: Vec<&Value> = left_out.iter().map(|own| &own["places"]).collect();
    let lines = Value::from_iter(lines.iter().flat_map(|own| own.as_array().unwrap().clone()));
    // In the order of the reasons: `completion`, `output`.
    assert_eq!(lines, json!([place(7), place(4)]));
    assert_eq!(found["problems"], json!([]));
    let text = succeed(&["check", text_of(&path)]);
    for part in [
        "5 from 7 records",
        "duplicates   1 (what an earlier record says)",
        "same prompt  1 (with different answers)",
        "left out",
        "none: a run takes this data",
        "── ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // With --strict, a run ends at what it would leave out.
    let strict = json_of(&[text_of(&path), "--strict"], 1);
    assert_eq!(strict["problems"].as_array().unwrap().len(), 2);
}

/// The exit code says whether a run takes the data.
#[test]
fn all_malformed_records_are_named_and_a_run_refuses_them_too() {
    let folder = TempDir::new().unwrap();
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let mut lines = vec![good, "{", r#"{"prompt": 3, "completion": "b"}"#];
    lines.extend([r#"{"what": "x"}"#; 15]);
    for (name, lines, num) in [
        ("bad.jsonl", &lines[..], 17),
        ("good.jsonl", &[good, good], 0),
        ("array.json", &["[", good, ", ", good], 1),
        (
            "nothing.jsonl",
            &[r#"{"prompt": "a", "completion": ""}"#],
            1,
        ),
        ("empty.jsonl", &[], 1),
    ] {
        let path = file(&folder, name, lines);
        let code = i32::from(num > 0);
        let found = json_of(&[text_of(&path)], code);
        let problems = found["problems"].as_array().unwrap();
        assert_eq!(problems.len(), num, "{name}: {problems:?}");
        let run = program(&["--data", text_of(&path), "--preview"]);
        assert_eq!(run.code, code, "{name}: {}", run.err);
        if let Some(first) = problems.first() {
            assert!(
                first.as_str().unwrap().contains(name) || name == "nothing.jsonl",
                "{first}"
            );
        }
    }
    let bad = folder.path().join("bad.jsonl");
    let text = program(&["check", text_of(&bad)]).out;
    assert!(text.contains("bad.jsonl:2: invalid JSON"), "{text}");
    assert!(text.contains("bad.jsonl:18"), "{text}");
    fail(&["check", "no-such-file.jsonl"], &["no such file"]);
    refuse(&["check"], &["--data is missing"]);
}

#[test]
fn what_is_cut_is_named_with_the_length_that_would_do() {
    let folder = TempDir::new().unwrap();
    let long = format!(
        r#"{{"prompt": "{}", "completion": "Yes."}}"#,
        "go on and on ".repeat(60)
    );
    let short = r#"{"prompt": "Hi", "completion": "Hello."}"#;
    let path = file(&folder, "t.jsonl", &[short, &long]);
    let found = json_of(&[text_of(&path), "--max-seq-length", "40"], 0);
    let place = format!("{}:2", path.display());
    assert_eq!(
        found["truncated"],
        json!({"count": 1, "places": [place]}),
        "{found}"
    );
    assert_eq!(found["lengths"]["max"], 40);
    let longest = found["longest"].to_string();
    let found = json_of(&[text_of(&path), "--max-length", &longest], 0);
    assert_eq!(found["truncated"]["count"], 0);
    assert_eq!(found["lengths"]["max"].to_string(), longest);
    let histogram = found["lengths"]["histogram"].as_array().unwrap();
    let counts = histogram.iter().map(|bar| bar["count"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), 2);
}

/// Steps and tokens are those of the run.
#[test]
fn the_cost_is_what_a_run_takes() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("out");
    for (number, flags) in [
        &["--batch-size", "16", "--epochs", "1"][..],
        &[
            "--batch-size",
            "5",
            "--gradient-accumulation",
            "4",
            "--eval-split",
            "0.5",
            "--epochs",
            "0.9",
            "--packing",
            "--max-length",
            "200",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let output = output.join(number.to_string());
        let run = ["--data", text_of(&data)];
        let said = succeed(&[&run, flags, &["--output", text_of(&output)]].concat());
        let found = json_of(&[&run[..], flags].concat(), 0);
        let steps = format!("{} steps, ", found["cost"]["steps"]);
        assert!(said.starts_with(&steps), "{said}: {}", found["cost"]);
        if number == 0 {
            let steps = format!("{steps}{} tokens in", found["cost"]["tokens"]);
            assert!(said.starts_with(&steps), "{said}: {}", found["cost"]);
        }
    }
}

#[test]
fn times_are_computed_from_a_speed_and_never_made_up() {
    let data = data_folder().join("train.jsonl");
    let found = json_of(&[text_of(&data)], 0);
    assert_eq!(found["cost"]["seconds"], Value::Null);
    let found = json_of(&[text_of(&data), "--tokens-per-second", "100"], 0);
    let tokens = found["num_tokens"].as_f64().unwrap();
    assert_eq!(found["cost"]["seconds_per_epoch"], tokens / 100.0);
    for speed in ["0", "nan", "inf"] {
        refuse(
            &["check", text_of(&data), "--tokens-per-second", speed],
            &["--tokens-per-second: expected a number above 0"],
        );
    }
}

/// A model without its weights is enough, and the settings of a run are read from its file.
#[test]
fn no_weights_are_read_and_a_config_file_is() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    copy(&data_folder().join("model"), &model);
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let data = data_folder().join("train.jsonl");
    let settings = format!(
        "data = [{:?}]\nmodel = {:?}\nmax_length = 64\nepochs = 2.0\noutput = {:?}\n",
        text_of(&data),
        text_of(&model),
        text_of(&data_folder())
    );
    let config = folder.path().join("run.toml");
    fs::write(&config, settings).unwrap();
    let config = ["--config", text_of(&config)];
    let found = json_of(&config, 0);
    assert_eq!(found["max_length"], 64);
    assert_eq!(found["model"], text_of(&model));
    assert_eq!(found["cost"]["epochs"], 2.0);
    let found = json_of(&[&config[..], &["--max-length", "99"]].concat(), 0);
    assert_eq!(found["max_length"], 99);
}

#[test]
fn what_is_measured_and_learnt_at_once_is_said() {
    let folder = TempDir::new().unwrap();
    let train = file(&folder, "t.jsonl", &MIXED);
    let eval = file(
        &folder,
        "e.jsonl",
        &[MIXED[2], MIXED[5], r#"{"text": "New."}"#],
    );
    let found = json_of(&[text_of(&train), "--eval-data", text_of(&eval)], 0);
    assert_eq!(found["evaluation"]["num_examples"], 3);
    assert_eq!(found["evaluation"]["num_shared"], 2);
    let bad = file(&folder, "b.jsonl", &["{"]);
    let found = json_of(&[text_of(&train), "--eval-data", text_of(&bad)], 1);
    let problem = found["problems"][0].as_str().unwrap();
    assert!(problem.contains("b.jsonl:1"), "{problem}");
}

#[test]
fn previews_show_the_mask() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "t.jsonl", &MIXED);
    let found = json_of(&[text_of(&path), "--preview", "1"], 0);
    let previews = found["previews"].as_array().unwrap();
    assert_eq!(previews.len(), 1);
    let segments = previews[0]["segments"].as_array().unwrap();
    let learnt = segments.iter().filter(|own| own["learnt"] == true);
    let learnt: Vec<&str> = learnt.map(|own| own["text"].as_str().unwrap()).collect();
    assert_eq!(learnt, ["Ann.<|im_end|>"]);
    let text = succeed(&["check", text_of(&path), "--preview", "0"]);
    assert!(!text.contains("── "), "{text}");
}

/// The weights are as large as those of the loaded model, to the byte.
#[test]
fn the_memory_of_a_model_is_known_without_loading_it() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    for (quantization, double_quant) in [
        (Quantization::Nf4, true),
        (Quantization::Nf4, false),
        (Quantization::None, true),
    ] {
        let name = match quantization {
            Quantization::Nf4 => "nf4",
            Quantization::None => "none",
        };
        let config = folder.path().join("run.toml");
        let settings = format!("quantization = {name:?}\ndouble_quant = {double_quant}\n");
        fs::write(&config, settings).unwrap();
        let found = json_of(&[text_of(&data), "--config", text_of(&config)], 0);
        let options = LoadOptions {
            quantization,
            double_quant,
            ..LoadOptions::default()
        };
        let model = data_folder().join("model");
        let model = QwenModel::load(&model, &options, &Device::flex()).unwrap();
        assert_eq!(found["memory"]["weights"], model.num_bytes(), "{options:?}");
        // Four numbers in f32 for each of the 729,088 that a run trains.
        assert_eq!(found["memory"]["trained"], 16 * 729_088);
    }
}

/// What is trained is counted as a run counts it, in each form of adapter.
#[test]
fn the_memory_of_each_form_of_adapter_is_known() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let (plain, table) = (729_088, 8192 * 320);
    for (settings, trained, tables) in [
        ("", 16 * plain, 0),
        ("modules_to_save = [\"lm_head\"]", 16 * (plain + table), 0),
        (
            "modules_to_save = [\"lm_head\", \"embed_tokens\"]",
            16 * (plain + 2 * table),
            1,
        ),
    ] {
        let config = file(&folder, "run.toml", &["quantization = \"none\"", settings]);
        let found = json_of(&[text_of(&data), "--config", text_of(&config)], 0);
        let folder = data_folder().join("model");
        let model = QwenModel::load(&folder, &LoadOptions::default(), &Device::flex()).unwrap();
        let size = model.embed_tokens.dtype().size();
        let weights = model.num_bytes() - tables * table * size;
        assert_eq!(found["memory"]["trained"], trained, "{settings}");
        assert_eq!(found["memory"]["weights"], weights, "{settings}");
    }
    // DoRA: a number for each row. Eight bits: two codes, and two scales of 256 of them.
    let of = |settings: &str| {
        let config = file(&folder, "run.toml", &[settings]);
        let found = json_of(&[text_of(&data), "--config", text_of(&config)], 0);
        found["memory"]["trained"].as_u64().unwrap() as usize
    };
    let rows = of("use_dora = true") - 16 * plain;
    assert!(rows > 0 && rows.is_multiple_of(16 * 8), "{rows}");
    let saved = "modules_to_save = [\"lm_head\"]\noptim = \"adamw_8bit\"";
    let bytes = of(saved) - of("optim = \"adamw_8bit\"");
    assert_eq!(bytes, table * 8 + 2 * (table + 4 * table / 256));
}

#[test]
fn a_schedule_that_does_not_fit_the_run_is_a_problem() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "t.jsonl", &[MIXED[0]]);
    let flags = ["--lr-schedule", "wsd", "--lr-decay-steps", "1000"];
    let found = json_of(&[&[text_of(&path)][..], &flags].concat(), 1);
    let problems = found["problems"].to_string();
    assert!(
        problems.contains("--lr-decay-steps: expected at most"),
        "{problems}"
    );
}

/// The same answer in two forms is the same to the model.
#[test]
fn duplicates_are_found_behind_their_forms() {
    let folder = TempDir::new().unwrap();
    let call = r#"{"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann."}]}"#;
    let parts = r#"{"messages": [{"content": [{"type": "text", "text": "Who?"}], "role": "user"}, {"role": "assistant", "content": "Bob."}]}"#;
    let path = file(&folder, "t.jsonl", &[MIXED[0], call, parts]);
    let found = json_of(&[text_of(&path)], 0);
    assert_eq!(found["duplicates"][0]["count"], 2, "{found}");
    assert_eq!(found["conflicts"][0]["count"], 2, "{found}");
}
