//! What cannot be merged or exported is refused by name, and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use tempfile::TempDir;
use trainer_sft::program::Commands;
use trainer_sft::tools::Tool;

use super::{adapter, copy, data_folder, edit, end_with, fail, names, refuse, succeed, text_of};

/// `merge` of an adapter that `change` has broken.
#[track_caller]
fn broken(parts: &[&str], change: impl FnOnce(&Path)) {
    broken_with(1, parts, change);
}

fn broken_with(code: i32, parts: &[&str], change: impl FnOnce(&Path)) {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    change(&path);
    let output = folder.path().join("out");
    let output = text_of(&output);
    for command in [
        &["merge"][..],
        &["export", "--format", "gguf"],
        &["export", "--format", "gguf-lora"],
        &["export", "--format", "ollama"],
    ] {
        let flags = ["--adapter", text_of(&path), "--output", output];
        end_with(code, &[command, &flags].concat(), parts);
        assert_eq!(names(folder.path()), ["adapter"]);
    }
}

#[test]
fn broken_adapters() {
    let config = "adapter_config.json";
    let weights = "adapter_model.safetensors";
    broken(&["adapter", weights], |path| {
        let bytes = fs::read(path.join(weights)).unwrap();
        fs::write(path.join(weights), &bytes[..bytes.len() - 100]).unwrap();
    });
    broken(&[weights], |path| {
        fs::remove_file(path.join(weights)).unwrap()
    });
    broken(&[config], |path| fs::write(path.join(config), "{").unwrap());
    broken(&["lora_magnitude_vector"], |path| {
        edit(&path.join(config), |json| json["use_dora"] = true.into());
    });
    broken(&["modules_to_save"], |path| {
        edit(&path.join(config), |json| {
            json["modules_to_save"] = json!(["lm_head"])
        });
    });
    broken(&["target_modules"], |path| {
        edit(&path.join(config), |json| {
            json["target_modules"] = json!(["wqkv"])
        });
    });
    broken(&["shape", "rank 8"], |path| {
        edit(&path.join(config), |json| json["r"] = 8.into());
    });
    broken_with(
        2,
        &["--model", "no/where/model", "base_model_name_or_path"],
        |path| {
            edit(&path.join(config), |json| {
                json["base_model_name_or_path"] = "no/where/model".into();
            });
        },
    );
    broken_with(2, &["--model", "base_model_name_or_path"], |path| {
        edit(&path.join(config), |json| {
            json["base_model_name_or_path"] = json!(null)
        });
    });
}

#[test]
fn adapters_of_another_model() {
    let folder = TempDir::new().unwrap();
    let own = adapter(folder.path());
    let output = folder.path().join("out");
    let tiny = data_folder().join("golden/peft/model");
    let tiny_adapter = data_folder().join("golden/peft/adapter");
    let bundled = data_folder().join("model");
    for (adapter, model) in [(&own, &tiny), (&tiny_adapter, &bundled)] {
        let flags = ["--model", text_of(model), "--output", text_of(&output)];
        let adapter = ["--adapter", text_of(adapter)];
        let parts = ["adapter module `model.layers."];
        fail(&[&["merge"], &adapter[..], &flags].concat(), &parts);
        for format in ["gguf-lora", "ollama", "hf"] {
            fail(
                &[&["export", "--format", format], &adapter[..], &flags].concat(),
                &parts,
            );
        }
    }
    assert!(!output.exists());
}

#[test]
fn nothing_is_overwritten() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let [file, taken] = ["file", "taken"].map(|name| folder.path().join(name));
    fs::write(&file, "mine").unwrap();
    fs::create_dir(&taken).unwrap();
    for output in [&file, &taken, &adapter] {
        let parts = [text_of(output), "nothing is overwritten"];
        let flags = ["--adapter", text_of(&adapter), "--output", text_of(output)];
        refuse(&[&["merge"], &flags[..]].concat(), &parts);
        for format in ["hf", "gguf", "gguf-lora", "ollama"] {
            refuse(
                &[&["export", "--format", format], &flags[..]].concat(),
                &parts,
            );
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(names(folder.path()), ["adapter", "file", "taken"]);
}

#[test]
fn values_that_a_dtype_cannot_hold() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    edit(&adapter.join("adapter_config.json"), |json| {
        json["lora_alpha"] = json!(1e9);
    });
    let output = folder.path().join("out");
    let flags = ["--adapter", text_of(&adapter), "--output", text_of(&output)];
    let tensor = "tensor `model.layers.0.";
    let parts = [tensor, "too large for f16"];
    fail(&[&["merge", "--dtype", "f16"], &flags[..]].concat(), &parts);
    let gguf = |kind| ["export", "--format", "gguf", "--type", kind];
    for (kind, name) in [("f16", "F16"), ("q8_0", "Q8_0"), ("q4_0", "Q4_0")] {
        let parts = [tensor, &format!("too large for {name}")];
        fail(&[&gguf(kind), &flags[..]].concat(), &parts);
    }
    assert_eq!(names(folder.path()), ["adapter"]);
    // In blocks, only the scales are in f16.
    edit(&adapter.join("adapter_config.json"), |json| {
        json["lora_alpha"] = json!(1e7);
    });
    let parts = [tensor, "too large for F16"];
    fail(&[&gguf("f16"), &flags[..]].concat(), &parts);
    succeed(&[&gguf("q8_0"), &flags[..]].concat());
}

#[test]
fn models_that_gguf_has_no_words_for() {
    let folder = TempDir::new().unwrap();
    let [model, output] = ["model", "out"].map(|name| folder.path().join(name));
    copy(&data_folder().join("model"), &model);
    let export = ["export", "--format", "gguf", "--output", text_of(&output)];
    let flags = ["--model", text_of(&model)];
    edit(&model.join("config.json"), |json| {
        json["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
    });
    fail(
        &[&export[..], &flags].concat(),
        &["rope_scaling", "dynamic"],
    );
    copy(&data_folder().join("model"), &model);
    edit(&model.join("config.json"), |json| {
        json["architectures"] = json!(["Qwen2Model"]);
    });
    fail(&[&export[..], &flags].concat(), &["without lm_head"]);
    copy(&data_folder().join("model"), &model);
    let tokenizer = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let other = tokenizer.replace(r"\\p{N}| ?[^", r"\\p{N}{1,3}| ?[^");
    assert_ne!(other, tokenizer);
    fs::write(model.join("tokenizer.json"), other).unwrap();
    fail(&[&export[..], &flags].concat(), &["splits text", "Qwen2"]);
    let digits = json!({"type": "Digits", "individual_digits": true});
    let end = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    });
    type Edit<'a> = &'a dyn Fn(&mut serde_json::Value);
    let edits: [(Edit<'_>, &str); 7] = [
        (
            &|json| json["normalizer"] = json!({"type": "Lowercase"}),
            "normalizer",
        ),
        (
            &|json| {
                let parts = json["pre_tokenizer"]["pretokenizers"].as_array_mut();
                parts.unwrap().push(digits.clone());
            },
            "pre_tokenizer",
        ),
        (
            &|json| json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into(),
            "pre_tokenizer",
        ),
        (
            &|json| json["pre_tokenizer"]["pretokenizers"][0]["invert"] = true.into(),
            "pre_tokenizer",
        ),
        (
            &|json| json["model"]["ignore_merges"] = true.into(),
            "model.ignore_merges",
        ),
        (
            &|json| json["model"]["dropout"] = 0.5.into(),
            "model.dropout",
        ),
        (
            &|json| json["post_processor"] = end.clone(),
            "post_processor",
        ),
    ];
    for (change, field) in edits {
        let mut json: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
        change(&mut json);
        fs::write(model.join("tokenizer.json"), json.to_string()).unwrap();
        let field = format!("the tokenizer's `{field}`");
        fail(&[&export[..], &flags].concat(), &[&field]);
    }
    assert_eq!(names(folder.path()), ["model"]);
}

#[test]
fn flags_that_fit_nothing() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let output = folder.path().join("out");
    let flags = ["--adapter", text_of(&adapter), "--output", text_of(&output)];
    refuse(
        &[&["merge", "--no-double-quant"], &flags[..]].concat(),
        &["--no-double-quant", "nf4"],
    );
    refuse(
        &[&["export", "--format", "hf", "--type", "q4_0"], &flags[..]].concat(),
        &["--type", "q4_0"],
    );
    refuse(
        &[
            &["export", "--format", "gguf-lora", "--type", "q8_0"],
            &flags[..],
        ]
        .concat(),
        &["--type", "q8_0", "f32, f16 or bf16"],
    );
    let output = ["--output", text_of(&output)];
    refuse(
        &[&["export", "--format", "gguf-lora"], &output[..]].concat(),
        &["--adapter"],
    );
    assert_eq!(names(folder.path()), ["adapter"]);
}

#[test]
fn what_is_stopped_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    let output = folder.path().join("out");
    for command in [
        "merge",
        "merge --quantization nf4",
        "export --format hf",
        "export --format gguf",
        "export --format gguf-lora",
        "export --format ollama",
    ] {
        let words = ["trainer-sft"].into_iter().chain(command.split(' '));
        let flags = ["--adapter", text_of(&path), "--output", text_of(&output)];
        let tool = Tool::parse(words.chain(flags).map(Into::into)).unwrap();
        let stop = AtomicBool::new(true);
        let error = tool.unwrap().run(&stop, Commands::OF_CARGO);
        let error = error.unwrap_err();
        assert!(error.is_stopped(), "{command}: {error}");
        assert_eq!(names(folder.path()), ["adapter"], "{command}");
    }
}

#[test]
fn a_name_needs_a_format_that_has_one() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    let output = folder.path().join("out");
    let flags = ["--adapter", text_of(&path), "--output", text_of(&output)];
    for (format, name) in [("hf", "Parrot"), ("gguf-lora", "Parrot"), ("gguf", " ")] {
        let command = ["export", "--format", format, "--name", name];
        refuse(
            &[&command[..], &flags].concat(),
            &["--name", "--format gguf or ollama"],
        );
    }
    assert_eq!(names(folder.path()), ["adapter"]);
}
