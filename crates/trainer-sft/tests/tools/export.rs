//! `trainer-sft export`.

use std::fs;
use std::path::Path;

use lora_4bit::peft::LoraAdapter;
use model_qwen::gguf::{TensorType, gguf_name};
use model_qwen::{RUN_FILES, Tokenizer};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::gguf_file::GgufFile;
use super::{adapter, bf16s, copy, data_folder, edit, f32s, names, succeed, tensors, text_of};

#[test]
fn a_gguf_file_has_the_model_in_it() {
    let folder = TempDir::new().unwrap();
    let model = data_folder().join("model");
    let stored = tensors(&model.join("model.safetensors"));
    for (kind, id, file_type) in [
        ("bf16", 30, 32),
        ("f16", 1, 1),
        ("f32", 0, 0),
        ("q8_0", 8, 7),
        ("q4_0", 2, 2),
    ] {
        let path = folder.path().join(kind);
        succeed(&[
            "export",
            "--format",
            "gguf",
            "--type",
            kind,
            "--name",
            "Stories",
            "--output",
            text_of(&path),
        ]);
        let file = GgufFile::read(&path);
        assert_eq!(file.tensors.len(), stored.len());
        assert_eq!(file.metadata["general.file_type"], file_type);
        for (name, (_, shape, bytes)) in &stored {
            let found = &file.tensors[&gguf_name(name).unwrap()];
            let dims: Vec<u64> = shape.iter().rev().map(|len| *len as u64).collect();
            assert_eq!(found.dims, dims, "{name}");
            let values = bf16s(bytes);
            let expected = match (shape.len(), kind, name.as_str()) {
                (1, ..) => 0,
                // The head, which is the embedding here, has more bits.
                (_, "q4_0", "model.embed_tokens.weight") => 8,
                _ => id,
            };
            assert_eq!(found.kind, expected, "{name}");
            match expected {
                0 => assert_eq!(f32s(&found.bytes), values, "{name}"),
                30 => assert_eq!(&found.bytes, bytes, "{name}"),
                other => {
                    let kind = match other {
                        1 => TensorType::F16,
                        2 => TensorType::Q4_0,
                        _ => TensorType::Q8_0,
                    };
                    let mut encoded = Vec::new();
                    kind.encode(&values, &mut encoded);
                    assert_eq!(found.bytes, encoded, "{name}");
                }
            }
        }
    }
    check_metadata(&GgufFile::read(&folder.path().join("bf16")), &model);
    assert_eq!(names(folder.path()), ["bf16", "f16", "f32", "q4_0", "q8_0"]);
}

fn check_metadata(file: &GgufFile, model: &Path) {
    let found = |key: &str| &file.metadata[key];
    for (key, expected) in [
        ("general.architecture", json!("qwen2")),
        ("general.type", json!("model")),
        ("general.name", json!("Stories")),
        ("general.quantization_version", json!(2)),
        ("qwen2.block_count", json!(8)),
        ("qwen2.context_length", json!(1024)),
        ("qwen2.embedding_length", json!(320)),
        ("qwen2.feed_forward_length", json!(896)),
        ("qwen2.attention.head_count", json!(5)),
        ("qwen2.attention.head_count_kv", json!(1)),
        ("qwen2.rope.freq_base", json!(10000.0)),
        ("qwen2.attention.layer_norm_rms_epsilon", json!(1e-6f32)),
        ("tokenizer.ggml.model", json!("gpt2")),
        ("tokenizer.ggml.pre", json!("qwen2")),
        ("tokenizer.ggml.bos_token_id", json!(0)),
        ("tokenizer.ggml.eos_token_id", json!(2)),
        ("tokenizer.ggml.padding_token_id", json!(0)),
        ("tokenizer.ggml.add_bos_token", json!(false)),
        ("tokenizer.ggml.add_eos_token", json!(false)),
    ] {
        assert_eq!(found(key), &expected, "{key}");
    }
    let tokenizer = Tokenizer::from_dir(model).unwrap();
    let tokens = found("tokenizer.ggml.tokens").as_array().unwrap();
    assert_eq!(tokens.len(), 8192);
    for id in [0, 1, 2, 3, 500, 8191] {
        assert_eq!(
            tokens[id as usize],
            json!(tokenizer.id_to_token(id)),
            "{id}"
        );
    }
    let types = found("tokenizer.ggml.token_type").as_array().unwrap();
    assert_eq!(types.len(), 8192);
    // Control tokens, then plain ones.
    assert_eq!(types[..4], [json!(3), json!(3), json!(3), json!(1)]);
    let json = fs::read(model.join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap();
    let written = found("tokenizer.ggml.merges").as_array().unwrap();
    assert_eq!(written.len(), merges.len());
    let text = |merge: &Value| match merge.as_array() {
        Some(pieces) => format!(
            "{} {}",
            pieces[0].as_str().unwrap(),
            pieces[1].as_str().unwrap()
        ),
        None => merge.as_str().unwrap().to_owned(),
    };
    assert_eq!(written[100], text(&merges[100]));
    let template = found("tokenizer.chat_template").as_str().unwrap();
    assert!(template.contains("<|im_start|>"), "{template}");
}

#[test]
fn ends_and_further_templates_of_a_tokenizer_are_written() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    copy(&data_folder().join("model"), &model);
    let special = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
    let part = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let (bos, eos) = ("<|endoftext|>", "<|im_end|>");
    edit(&model.join("tokenizer_config.json"), |json| {
        json["chat_template"] = json!([
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "with tools"},
        ]);
    });
    // The token that ends a text is also the first one of config.json.
    for (parts, end, expected) in [
        (json!([text, part(bos)]), bos, (false, true)),
        (json!([part(bos), text]), eos, (true, false)),
        (json!([part(bos), text, part(eos)]), eos, (true, true)),
    ] {
        edit(&model.join("tokenizer.json"), |json| {
            json["post_processor"] = json!({
                "type": "TemplateProcessing", "single": parts, "pair": [text, text],
                "special_tokens": {bos: special(bos, 0), eos: special(eos, 2)},
            });
        });
        edit(&model.join("tokenizer_config.json"), |json| {
            json["eos_token"] = json!(end)
        });
        let path = folder.path().join("x.gguf");
        let flags = ["--model", text_of(&model), "--output", text_of(&path)];
        succeed(&[&["export", "--format", "gguf"], &flags[..]].concat());
        let file = GgufFile::read(&path);
        let flag = |name: &str| file.metadata[&format!("tokenizer.ggml.{name}")] == json!(true);
        assert_eq!(
            (flag("add_bos_token"), flag("add_eos_token")),
            expected,
            "{parts}"
        );
        for (key, expected) in [
            ("chat_template", json!("plain")),
            ("chat_template.tool_use", json!("with tools")),
            ("chat_templates", json!(["tool_use"])),
        ] {
            assert_eq!(file.metadata[&format!("tokenizer.{key}")], expected);
        }
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn an_adapter_can_be_merged_on_the_way() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let [merged, direct, after] =
        ["merged", "direct", "after"].map(|name| folder.path().join(name));
    let adapter = ["--adapter", text_of(&adapter)];
    let gguf = ["export", "--format", "gguf", "--output"];
    succeed(&[&gguf[..], &[text_of(&direct), "--name", "x"], &adapter].concat());
    let hf = ["export", "--format", "hf", "--output", text_of(&merged)];
    succeed(&[&hf[..], &adapter].concat());
    let flags = [text_of(&after), "--name", "x", "--model", text_of(&merged)];
    succeed(&[&gguf[..], &flags].concat());
    assert_eq!(fs::read(direct).unwrap(), fs::read(after).unwrap());
}

#[test]
fn adapters_keep_their_product() {
    let folder = TempDir::new().unwrap();
    // rsLoRA, and ranks and alphas by pattern.
    let path = data_folder().join("golden/peft/adapter");
    let output = folder.path().join("adapter.gguf");
    succeed(&[
        "export",
        "--format",
        "gguf-lora",
        "--adapter",
        text_of(&path),
        "--model",
        text_of(&data_folder().join("golden/peft/model")),
        "--output",
        text_of(&output),
    ]);
    let file = GgufFile::read(&output);
    assert_eq!(file.metadata["general.type"], "adapter");
    assert_eq!(file.metadata["general.architecture"], "qwen2");
    assert_eq!(file.metadata["adapter.type"], "lora");
    let alpha = file.metadata["adapter.lora.alpha"].as_f64().unwrap();
    let adapter = LoraAdapter::load(&path).unwrap();
    assert_eq!(file.tensors.len(), 2 * adapter.modules.len());
    for (module, matrices) in &adapter.modules {
        let name = gguf_name(&format!("{module}.weight")).unwrap();
        let [a, b] = ["lora_a", "lora_b"].map(|end| &file.tensors[&format!("{name}.{end}")]);
        let (r, inner, outer) = (
            matrices.r as u64,
            matrices.in_features as u64,
            matrices.out_features as u64,
        );
        assert_eq!((&a.dims, &b.dims), (&vec![inner, r], &vec![r, outer]));
        assert_eq!(f32s(&a.bytes), matrices.a);
        // llama.cpp multiplies by alpha / rank.
        let (scaling, factor) = (adapter.config.scaling_for(module), alpha / r as f64);
        for (found, expected) in f32s(&b.bytes).iter().zip(&matrices.b) {
            let (found, expected) = (f64::from(*found) * factor, f64::from(*expected) * scaling);
            assert!(
                (found - expected).abs() <= 1e-6 * expected.abs(),
                "{module}"
            );
        }
    }
}

#[test]
fn files_of_a_run_are_no_files_of_its_model() {
    let folder = TempDir::new().unwrap();
    let [run, output] = ["run", "out"].map(|name| folder.path().join(name));
    let data = data_folder().join("train.jsonl");
    let train = [
        "--full",
        "--max-steps",
        "1",
        "--save-steps",
        "1",
        "--device",
        "cpu",
    ];
    let files = ["--data", text_of(&data), "--output", text_of(&run)];
    succeed(&[&train[..], &files].concat());
    let export = ["export", "--format", "hf", "--output", text_of(&output)];
    succeed(&[&export[..], &["--model", text_of(&run)]].concat());
    assert_eq!(names(&output), names(&data_folder().join("model")));
    let is_left_out = |name: &String| RUN_FILES.contains(&name.as_str());
    let files = names(&run)
        .into_iter()
        .filter(|name| run.join(name).is_file());
    let left_out: Vec<String> = files.filter(is_left_out).collect();
    assert_eq!(
        left_out,
        ["loss.svg", "metrics.jsonl", "report.html", "run.toml"]
    );
}

#[test]
fn frequencies_and_splitters_have_names() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    let export = |name: &str| {
        let output = folder.path().join(name);
        let flags = ["--model", text_of(&model), "--output", text_of(&output)];
        succeed(&[&["export", "--format", "gguf"], &flags[..]].concat());
        GgufFile::read(&output).metadata
    };
    copy(&data_folder().join("model"), &model);
    edit(&model.join("config.json"), |json| {
        json["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    });
    let linear = export("linear");
    assert_eq!(linear["qwen2.rope.scaling.type"], "linear");
    assert_eq!(linear["qwen2.rope.scaling.factor"], 2.0);
    edit(&model.join("config.json"), |json| {
        json["rope_scaling"] =
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256});
    });
    let yarn = export("yarn");
    assert_eq!(yarn["qwen2.rope.scaling.type"], "yarn");
    assert_eq!(yarn["qwen2.rope.scaling.factor"], 4.0);
    assert_eq!(yarn["qwen2.rope.scaling.original_context_length"], 256);
    assert_eq!(yarn["tokenizer.ggml.pre"], "qwen2");
    // The marks of DeepSeek-R1.
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let path = model.join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            path,
            text.replace("<|endoftext|>", "<｜begin▁of▁sentence｜>"),
        )
        .unwrap();
    }
    assert_eq!(export("deepseek")["tokenizer.ggml.pre"], "deepseek-r1-qwen");
}

/// A decoder that was saved alone has no `model.` in its names.
#[test]
fn names_without_their_prefix_are_read() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    copy(&data_folder().join("model"), &model);
    let path = model.join("model.safetensors");
    let stored = tensors(&path);
    let views = stored.iter().map(|(name, (_, shape, bytes))| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
        (name.strip_prefix("model.").unwrap_or(name), view)
    });
    let written = safetensors::serialize(views, None).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, written).unwrap();
    let export = |model: &Path, to: &str| {
        let to = folder.path().join(to);
        let model = ["--model", text_of(model), "--output", text_of(&to)];
        succeed(
            &[
                &[
                    "export", "--format", "gguf", "--type", "q8_0", "--name", "x",
                ],
                &model[..],
            ]
            .concat(),
        );
        GgufFile::read(&to)
    };
    let found = export(&model, "found");
    let expected = export(&data_folder().join("model"), "expected");
    assert_eq!(found.tensors.len(), expected.tensors.len());
    for (name, tensor) in &expected.tensors {
        assert_eq!(found.tensors[name].bytes, tensor.bytes, "{name}");
    }
}

#[test]
fn ollama_gets_a_folder() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let output = folder.path().join("ollama");
    succeed(&[
        "export",
        "--format",
        "ollama",
        "--type",
        "q8_0",
        "--adapter",
        text_of(&adapter),
        "--output",
        text_of(&output),
    ]);
    assert_eq!(names(&output), ["Modelfile", "adapter.gguf", "model.gguf"]);
    let modelfile = fs::read_to_string(output.join("Modelfile")).unwrap();
    for line in [
        "FROM ./model.gguf\n",
        "ADAPTER ./adapter.gguf\n",
        "TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}\n",
        "PARAMETER temperature 0.7\n",
        "PARAMETER top_k 40\n",
        "PARAMETER repeat_penalty 1.1\n",
        "PARAMETER stop \"<|im_end|>\"\n",
    ] {
        assert!(modelfile.contains(line), "{line} {modelfile}");
    }
    GgufFile::read(&output.join("adapter.gguf"));
    // The adapter is a file of its own: the model is the plain one.
    let plain = folder.path().join("plain.gguf");
    succeed(&[
        "export",
        "--format",
        "gguf",
        "--type",
        "q8_0",
        "--output",
        text_of(&plain),
    ]);
    let both = [plain, output.join("model.gguf")].map(|path| fs::read(path).unwrap());
    assert_eq!(both[0], both[1]);
}
