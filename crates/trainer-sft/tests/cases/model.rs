//! Models whose files say different things about where a text begins and ends.

use std::collections::BTreeMap;

use burn::tensor::{bf16, f16};
use lora_4bit::bnb::decode_floats;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::*;

/// Two steps of full training of `model`; the output folder.
fn trained(model: &Path, flags: &[&str]) -> (TempDir, PathBuf, Said) {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out");
    let data = data_folder().join("train.jsonl");
    let all = [
        "--device",
        "cpu",
        "--max-steps",
        "2",
        "--batch-size",
        "1",
        "--max-length",
        "64",
        "--model",
        text_of(model),
    ];
    let rest = ["--data", text_of(&data), "--output", text_of(&output)];
    let said = program(&[&all[..], &rest, flags].concat());
    assert!(said.is_success(), "{}", said.err);
    (folder, output, said)
}

#[test]
fn the_end_of_an_answer_reaches_the_server() {
    let model = TempDir::new().unwrap();
    copy_model(model.path());
    for name in ["config.json", "generation_config.json"] {
        edit(model.path(), name, |fields| {
            fields.insert("eos_token_id".into(), 0.into());
        });
    }
    edit(model.path(), "tokenizer_config.json", |fields| {
        fields.insert("eos_token".into(), "<|endoftext|>".into());
    });
    let (_folder, _, said) = trained(model.path(), &["--lora-r", "2"]);
    let warning = "the chat template ends an answer with `<|im_end|>`, and no file of the model says that a text ends there";
    assert!(
        said.err.contains(warning) && said.err.contains("\"stop_token_ids\": [2]"),
        "{}",
        said.err
    );
    let (_folder, output, said) = trained(model.path(), &["--full"]);
    assert!(said.err.contains(warning), "{}", said.err);
    let generation = fs::read_to_string(output.join("generation_config.json")).unwrap();
    let generation: Value = serde_json::from_str(&generation).unwrap();
    assert_eq!(generation["eos_token_id"], json!([0, 2]));
}

/// The values of a file of floats, by the name of their tensor, and the dtype of all.
fn floats(path: &Path) -> (Dtype, BTreeMap<String, Vec<f32>>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut dtypes: Vec<Dtype> = file.iter().map(|(_, view)| view.dtype()).collect();
    dtypes.dedup();
    assert_eq!(dtypes.len(), 1, "{dtypes:?}");
    let tensors = file.iter().map(|(name, view)| {
        let (_, values) = decode_floats(view.dtype(), view.data()).unwrap();
        (name.to_owned(), values)
    });
    (dtypes[0], tensors.collect())
}

#[test]
fn a_model_is_written_in_the_dtype_that_it_had() {
    let model = TempDir::new().unwrap();
    copy_model(model.path());
    let weights = model.path().join("model.safetensors");
    let (_, tensors) = floats(&weights);
    let bytes = fs::read(&weights).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // A learning rate of nearly zero changes no weight by as much as a rounding would.
    let flags = ["--full", "--learning-rate", "1e-12"];
    for (dtype, name, scale) in [
        (Dtype::F32, "float32", 1.001),
        (Dtype::F16, "float16", 1.001),
        (Dtype::BF16, "bfloat16", 1.0),
    ] {
        let change = |values: &[f32]| -> Vec<u8> {
            let values = values.iter().map(|value| value * scale);
            let bytes = values.map(|value| match dtype {
                Dtype::F32 => value.to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                _ => bf16::from_f32(value).to_le_bytes().to_vec(),
            });
            bytes.flatten().collect()
        };
        let changed: BTreeMap<&String, Vec<u8>> = tensors
            .iter()
            .map(|(name, values)| (name, change(values)))
            .collect();
        let views = changed.iter().map(|(name, bytes)| {
            let shape = file.tensor(name).unwrap().shape().to_vec();
            (*name, TensorView::new(dtype, shape, bytes).unwrap())
        });
        let written = safetensors::serialize(views, None).unwrap();
        fs::remove_file(&weights).unwrap();
        fs::write(&weights, written).unwrap();
        let (_, before) = floats(&weights);
        let (_folder, output, said) = trained(model.path(), &flags);
        let told = format!("the result will be written in {dtype:?}");
        assert!(said.err.contains(&told), "{}", said.err);
        let (found, after) = floats(&output.join("model.safetensors"));
        assert_eq!(found, dtype);
        assert_eq!(before.len(), after.len());
        for (tensor, values) in &before {
            let pairs = values.iter().zip(&after[tensor]);
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference <= 1e-7, "{dtype:?} {tensor}: {difference}");
        }
        let config = fs::read_to_string(output.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let named = config.get("dtype").or_else(|| config.get("torch_dtype"));
        assert_eq!(named, Some(&json!(name)));
    }
}

#[test]
fn a_text_ends_as_the_server_ends_it() {
    let model = TempDir::new().unwrap();
    copy_model(model.path());
    edit(model.path(), "config.json", |fields| {
        fields.remove("eos_token_id");
    });
    let flags = ["--model", text_of(model.path())];
    let said = preview(&[json!({"text": "The gull sleeps."})], &flags);
    assert!(
        learnt(&said)[0].ends_with("sleeps.<|im_end|>"),
        "{}",
        said.out
    );
}

#[test]
fn a_text_has_one_beginning() {
    let model = TempDir::new().unwrap();
    copy_model(model.path());
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    edit(model.path(), "tokenizer.json", |fields| {
        let post = json!({"type": "TemplateProcessing", "single": [special("<|endoftext|>"), sequence("A")],
            "pair": [special("<|endoftext|>"), sequence("A"), sequence("B")],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
        fields.insert("post_processor".into(), post);
    });
    let flags = ["--model", text_of(model.path())];
    let said = preview(
        &[
            json!({"text": "<|endoftext|>A gull."}),
            json!({"text": "A gull."}),
        ],
        &flags,
    );
    assert_eq!(said.out.matches("<|endoftext|>").count(), 2, "{}", said.out);
}

#[test]
fn a_template_in_a_file_of_its_own_is_copied() {
    let model = TempDir::new().unwrap();
    copy_model(model.path());
    edit(model.path(), "tokenizer_config.json", |fields| {
        let template = fields.remove("chat_template").unwrap();
        let file = model.path().join("chat_template.json");
        fs::write(file, json!({"chat_template": template}).to_string()).unwrap();
    });
    let (_folder, output, _) = trained(model.path(), &["--full"]);
    let read = |folder: &Path| fs::read(folder.join("chat_template.json")).unwrap();
    assert_eq!(read(&output), read(model.path()));
}
