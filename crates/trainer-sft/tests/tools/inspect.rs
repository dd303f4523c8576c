//! `trainer-sft inspect`.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{adapter, copy, data_folder, edit, fail, program, succeed, text_of};

fn json_of(path: &std::path::Path, code: i32) -> Value {
    let said = program(&["inspect", "--json", text_of(path)]);
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn an_adapter() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    let report = json_of(&path, 0);
    assert_eq!(report["kind"], "adapter");
    assert_eq!(report["problems"], json!([]));
    let facts = &report["adapter"];
    assert_eq!(facts["r"], 4);
    assert_eq!(facts["lora_alpha"], 6.0);
    assert_eq!(facts["scaling"], json!([3.0, 3.0]));
    assert_eq!(
        facts["target_modules"],
        json!(["down_proj", "q_proj", "v_proj"])
    );
    assert_eq!(facts["num_modules"], 24);
    assert_eq!(
        facts["num_parameters"],
        8 * 4 * (320 + 320 + 320 + 64 + 896 + 320)
    );
    assert_eq!(facts["dtypes"], json!(["F32"]));
    assert_eq!(facts["norms"]["v_proj"]["count"], 8);
    assert!(facts["norms"]["v_proj"]["min"].as_f64().unwrap() > 0.0);
    let text = succeed(&["inspect", text_of(&path)]);
    for part in [
        "kind              adapter",
        "alpha / √r (rsLoRA)",
        "  down_proj",
        "none found",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_was_not_compared_is_said() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    edit(&path.join("adapter_config.json"), |json| {
        json["base_model_name_or_path"] = "someone/model".into();
    });
    let report = json_of(&path, 0);
    assert_eq!(report["adapter"]["is_compared"], false);
    let text = succeed(&["inspect", text_of(&path)]);
    assert!(text.contains("not compared: give --model"), "{text}");
}

/// The base model is compared by names and shapes: it needs no lm_head, and weights of another shape are named.
#[test]
fn a_base_without_a_head_is_compared() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    let base = folder.path().join("base");
    copy(&data_folder().join("model"), &base);
    edit(&base.join("config.json"), |json| {
        json["architectures"] = json!(["Qwen2Model"]);
    });
    edit(&path.join("adapter_config.json"), |json| {
        json["base_model_name_or_path"] = text_of(&base).into();
    });
    let report = json_of(&path, 0);
    assert_eq!(report["adapter"]["is_compared"], true);
    assert_eq!(report["problems"], json!([]));

    edit(&base.join("config.json"), |json| {
        json["intermediate_size"] = 1024.into();
    });
    let report = json_of(&path, 1);
    let problem = report["problems"][0].as_str().unwrap();
    assert!(problem.contains("expected shape [1024, 320]"), "{problem}");
}

#[test]
fn a_run_without_a_result_names_its_checkpoint() {
    let folder = TempDir::new().unwrap();
    for step in [8, 12] {
        let checkpoint = folder.path().join(format!("checkpoint-{step}"));
        fs::create_dir(&checkpoint).unwrap();
        fs::write(checkpoint.join("trainer_state.json"), "{}").unwrap();
    }
    fs::write(folder.path().join("run.toml"), "lora_r = 8\n").unwrap();
    let report = json_of(folder.path(), 1);
    assert_eq!(report["kind"], "run");
    let problem = report["problems"][0].as_str().unwrap();
    assert!(problem.ends_with("checkpoint-12"), "{problem}");
}

#[test]
fn models() {
    let report = json_of(&data_folder().join("model"), 0);
    assert_eq!(report["kind"], "model");
    let facts = &report["model"];
    assert_eq!(facts["model_type"], "qwen2");
    assert_eq!(facts["heads"], json!([5, 1]));
    assert_eq!(
        facts["dtypes"]["BF16"]["num_parameters"],
        facts["num_parameters"]
    );
    assert_eq!(facts["has_chat_template"], true);
}

#[test]
fn what_is_wrong_is_named() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    edit(&path.join("adapter_config.json"), |json| {
        json["use_dora"] = true.into()
    });
    let report = json_of(&path, 1);
    // What can be told is told.
    assert_eq!(report["adapter"]["r"], 4);
    let problem = report["problems"][0].as_str().unwrap();
    assert!(problem.contains("lora_magnitude_vector"), "{problem}");
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);

    let weights = path.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..1000]).unwrap();
    edit(&path.join("adapter_config.json"), |json| {
        json["use_dora"] = false.into()
    });
    let report = json_of(&path, 1);
    assert!(
        report["problems"][0]
            .as_str()
            .unwrap()
            .contains("adapter_model.safetensors")
    );

    let model = folder.path().join("model");
    copy(&data_folder().join("model"), &model);
    edit(&model.join("config.json"), |json| {
        json["num_hidden_layers"] = 7.into()
    });
    let report = json_of(&model, 1);
    assert!(
        report["problems"][0]
            .as_str()
            .unwrap()
            .contains("model.layers.7.")
    );

    // What a server would refuse is a problem, too.
    edit(&model.join("config.json"), |json| {
        json["num_hidden_layers"] = 8.into()
    });
    assert_eq!(json_of(&model, 0)["problems"], json!([]));
    let settings = r#"{"repetition_penalty": 0.0}"#;
    fs::write(model.join("generation_config.json"), settings).unwrap();
    let report = json_of(&model, 1);
    let problem = report["problems"][0].as_str().unwrap();
    assert!(problem.contains("repetition_penalty"), "{problem}");

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let report = json_of(&empty, 1);
    assert_eq!(report["kind"], "unknown");
    // A folder around adapters: the newest may be meant.
    for name in ["checkpoint-9", "checkpoint-10"] {
        fs::create_dir(empty.join(name)).unwrap();
        fs::write(empty.join(name).join("adapter_config.json"), "{}").unwrap();
    }
    let report = json_of(&empty, 1);
    let problem = report["problems"][0].as_str().unwrap();
    let meant = format!("did you mean {}?", empty.join("checkpoint-10").display());
    assert!(problem.contains(&meant), "{problem}");
    fail(
        &["inspect", text_of(&folder.path().join("no"))],
        &["found nothing"],
    );
}

#[test]
fn a_run_and_its_checkpoint() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let train = data_folder().join("train.jsonl");
    let flags = [
        "--data",
        text_of(&train),
        "--output",
        text_of(&run),
        "--lora-r",
        "2",
    ];
    let steps = ["--max-steps", "2", "--save-steps", "1", "--batch-size", "1"];
    succeed(&[&flags[..], &steps].concat());
    let report = json_of(&run, 0);
    assert_eq!(report["kind"], "adapter");
    assert_eq!(report["training"]["max_steps"], 2);
    let checkpoint = run.join("checkpoint-2");
    let report = json_of(&checkpoint, 0);
    assert_eq!(
        (&report["kind"], &report["step"]),
        (&json!("checkpoint"), &json!(2))
    );
    assert_eq!(report["training"]["lora_r"], 2);
    assert_eq!(report["adapter"]["num_modules"], 56);
    fs::remove_file(checkpoint.join("optimizer.safetensors")).unwrap();
    let report = json_of(&checkpoint, 1);
    assert!(
        report["problems"][0]
            .as_str()
            .unwrap()
            .contains("optimizer.safetensors")
    );
}
