//! Weights that cannot be read are named for what they are.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;

use burn::tensor::{DType, Device, bf16};
use lora_4bit::Weight;
use model_qwen::{
    ChatTemplate, LoadOptions, MergedWeights, Quantization, QwenConfig, QwenModel, ScoreHead,
    ScoreTokens, Tokenizer, bundled_model_dir, is_headless, score_weights,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::Folder;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0\nsize 4096\n";

/// Replaces the weights by zeros of these names and shapes.
fn with_tensors(folder: &Folder, tensors: &[(&str, Dtype, &[usize])]) {
    let zeros = vec![0; 8 << 20];
    let views = tensors.iter().map(|&(name, dtype, shape)| {
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (
            name,
            TensorView::new(dtype, shape.to_vec(), &zeros[..len]).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    folder.remove("model.safetensors");
    fs::write(folder.file("model.safetensors"), bytes).unwrap();
}

/// Writes the tensors of a file, as `change` makes them, as the weights of `folder`.
fn change_tensors<'a>(
    folder: &Folder,
    bytes: &'a [u8],
    change: impl FnOnce(&mut BTreeMap<String, TensorView<'a>>),
) {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut views: BTreeMap<String, TensorView<'a>> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view))
        .collect();
    change(&mut views);
    folder.remove("model.safetensors");
    let written = safetensors::serialize(views, None).unwrap();
    fs::write(folder.file("model.safetensors"), written).unwrap();
}

/// In f16 it would be an infinity.
#[test]
fn a_weight_that_f16_cannot_hold_is_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let folder = Folder::new();
    let original = fs::read(folder.file("model.safetensors")).unwrap();
    let load = |dtype| {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::default()
        };
        QwenModel::load(folder.path(), &options, &Device::flex())
    };
    for (dtype, large) in [
        (Dtype::BF16, bf16::from_f32(99840.0).to_le_bytes().to_vec()),
        (Dtype::F32, 99840.0f32.to_le_bytes().to_vec()),
    ] {
        let file = safetensors::SafeTensors::deserialize(&original).unwrap();
        let shape = file.tensor(name).unwrap().shape().to_vec();
        let mut bytes = vec![0; shape.iter().product::<usize>() * large.len()];
        bytes[7 * large.len()..8 * large.len()].copy_from_slice(&large);
        change_tensors(&folder, &original, |tensors| {
            let view = TensorView::new(dtype, shape.clone(), bytes.leak()).unwrap();
            tensors.insert(name.to_owned(), view);
        });
        let expected = format!(
            "tensor `{name}`: 99840 is too large for f16, expected at most 65504: choose bf16 or f32"
        );
        let error = load(model_qwen::Dtype::F16).unwrap_err().to_string();
        assert!(error.contains(&expected), "{error}");
        assert!(load(model_qwen::Dtype::Bf16).is_ok());
        let model = load(model_qwen::Dtype::F32).unwrap();
        let output = tempfile::tempdir().unwrap();
        let error = model.save(output.path(), DType::F16).unwrap_err();
        let expected = format!("tensor `{name}`: 99840 is too large for f16");
        assert!(error.to_string().contains(&expected), "{error}");
        assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
        assert!(model.save(output.path(), DType::BF16).is_ok());
    }
}

#[test]
fn quantized_weights_are_named_before_their_tensors() {
    let projection = "model.layers.0.self_attn.q_proj";
    let names = |parts: [&'static str; 2]| parts.map(|part| format!("{projection}.{part}"));
    for (config, parts, expected) in [
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128}),
            ["qweight", "g_idx"],
            "found `gptq`",
        ),
        (
            json!({"quant_method": "awq", "bits": 4}),
            ["qweight", "qzeros"],
            "found `awq`",
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
            ["SCB", "weight_format"],
            "LLM.int8",
        ),
        (
            json!({"quant_method": "fp8"}),
            ["weight_scale_inv", "input_scale"],
            "found `fp8`",
        ),
    ] {
        let folder = Folder::new();
        folder.set("config.json", "quantization_config", config);
        let [a, b] = names(parts);
        with_tensors(&folder, &[(&a, Dtype::I32, &[4]), (&b, Dtype::I32, &[4])]);
        let error = folder.refusal();
        assert!(
            error.contains("config.json: field `quantization_config."),
            "{error}"
        );
        assert!(
            error.contains(expected) && error.contains("bitsandbytes NF4"),
            "{error}"
        );
    }
    let folder = Folder::new();
    folder.write("quantize_config.json", r#"{"bits": 4}"#);
    let error = folder.refusal();
    assert!(
        error.contains("quantize_config.json") && error.contains("quantized"),
        "{error}"
    );
}

#[test]
fn git_lfs_pointers_are_named() {
    let expected = "Git LFS pointer";
    let folder = Folder::new();
    folder.write("model.safetensors", POINTER);
    let error = folder.refusal();
    assert!(
        error.contains("model.safetensors") && error.contains(expected),
        "{error}"
    );

    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let folder = Folder::new();
        folder.write(name, POINTER);
        let error = match name {
            "config.json" => folder.refusal(),
            "generation_config.json" => folder.generation_config().unwrap_err().to_string(),
            "tokenizer.json" => Tokenizer::from_dir(folder.path()).unwrap_err().to_string(),
            _ => ChatTemplate::from_dir(folder.path())
                .unwrap_err()
                .to_string(),
        };
        assert!(error.contains(name) && error.contains(expected), "{error}");
        assert!(error.contains("git lfs pull"), "{error}");
    }
    let folder = Folder::new();
    folder.remove("model.safetensors");
    folder.write(
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "model-1.safetensors"}}"#,
    );
    folder.write("model-1.safetensors", POINTER);
    let error = folder.refusal();
    assert!(
        error.contains("model-1.safetensors") && error.contains(expected),
        "{error}"
    );
}

#[test]
fn every_spelling_of_a_dtype_loads() {
    for (field, value) in [
        ("torch_dtype", json!("auto")),
        ("torch_dtype", json!("torch.bfloat16")),
        ("torch_dtype", json!(null)),
        ("dtype", json!("bfloat16")),
        ("dtype", json!("torch.float16")),
    ] {
        let folder = Folder::new();
        folder.edit("config.json", |json| {
            json.remove("torch_dtype");
            json.insert(field.to_owned(), value.clone());
        });
        folder.load().unwrap();
    }
    let folder = Folder::new();
    folder.set("config.json", "torch_dtype", json!("float8_e4m3fn"));
    assert!(folder.refusal().contains("field `torch_dtype`"));
}

/// A bias or a norm that the architecture doesn't have must not be dropped in silence.
#[test]
fn tensors_without_a_place_are_refused() {
    let folder = Folder::new();
    let bytes = fs::read(folder.file("model.safetensors")).unwrap();
    let zeros = vec![0; 4 * 896];
    for (name, len) in [
        ("model.layers.0.mlp.gate_proj.bias", 896),
        ("model.layers.0.self_attn.o_proj.bias", 320),
        ("model.layers.7.self_attn.q_norm.weight", 64),
        ("lm_head.bias", 8),
        ("model.layers.0.mlp.up_proj.weight.foo", 8),
        ("model.embed_tokens.weight.absmax", 8),
        ("model.layers.0.input_layernorm.weight.absmax", 8),
    ] {
        let extra = TensorView::new(Dtype::F32, vec![len], &zeros[..4 * len]).unwrap();
        change_tensors(&folder, &bytes, |views| {
            views.insert(name.to_owned(), extra);
        });
        let error = folder.refusal();
        assert!(
            error.contains("no place for") && error.contains(name),
            "{error}"
        );
    }
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Where `config.json` says that head and embedding are the same, the files have the last word, as in transformers.
#[test]
fn a_head_that_is_no_embedding_is_not_tied() {
    let folder = Folder::new();
    let bytes = fs::read(folder.file("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = file.tensor(EMBEDDING).unwrap();
    let reversed: Vec<u8> = embedding
        .data()
        .as_chunks::<2>()
        .0
        .iter()
        .rev()
        .flatten()
        .copied()
        .collect();
    let other = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &reversed).unwrap();
    for (head, is_alone, is_tied) in [
        (embedding.clone(), false, true),
        (other, false, false),
        (embedding.clone(), true, true),
    ] {
        let expected = head.data().to_vec();
        change_tensors(&folder, &bytes, |views| {
            if is_alone {
                views.remove(EMBEDDING);
            }
            views.insert(HEAD.to_owned(), head);
        });
        let model = folder.load().unwrap();
        assert_eq!(model.config.tie_word_embeddings, is_tied);
        let Weight::Dense(weight) = &model.lm_head.weight else {
            panic!("it is dense");
        };
        assert_eq!(weight.to_data().bytes().to_vec(), expected);
        assert_eq!(
            model.embed_tokens.to_data().bytes().to_vec(),
            embedding.data()
        );
        assert!(!is_headless(folder.path()).unwrap());

        let output = tempfile::tempdir().unwrap();
        let merged = MergedWeights::open(folder.path(), None).unwrap();
        let going_on = |_: model_qwen::merge::MergeProgress<'_>| ControlFlow::Continue(());
        merged
            .write(output.path(), model_qwen::Dtype::Auto, going_on)
            .unwrap();
        let written =
            QwenModel::load(output.path(), &LoadOptions::default(), &Device::flex()).unwrap();
        assert_eq!(written.config.tie_word_embeddings, is_tied);
        let config = QwenConfig::load(output.path()).unwrap();
        assert_eq!(config.tie_word_embeddings, is_tied);
    }

    // The same values in another dtype.
    assert_eq!(embedding.dtype(), Dtype::BF16);
    let pairs = embedding.data().as_chunks::<2>().0.iter();
    let wide: Vec<u8> = pairs.flat_map(|[low, high]| [0, 0, *low, *high]).collect();
    let wide = TensorView::new(Dtype::F32, embedding.shape().to_vec(), &wide).unwrap();
    change_tensors(&folder, &bytes, |views| {
        views.insert(HEAD.to_owned(), wide);
    });
    assert!(folder.load().unwrap().config.tie_word_embeddings);
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let folder = Folder::new();
    let bytes = fs::read(folder.file("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, place, bits, found) in [
        (EMBEDDING, 100_000, 0x7fc0u16, "value 100000 is NaN"),
        ("model.norm.weight", 3, 0x7f80, "value 3 is inf"),
        (
            "model.layers.7.mlp.down_proj.weight",
            0,
            0xff80,
            "value 0 is -inf",
        ),
        (
            "model.layers.0.self_attn.q_proj.bias",
            1,
            0x7fc0,
            "value 1 is NaN",
        ),
    ] {
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::BF16);
        let mut values = view.data().to_vec();
        values[2 * place..][..2].copy_from_slice(&bits.to_le_bytes());
        let broken = TensorView::new(Dtype::BF16, view.shape().to_vec(), &values).unwrap();
        change_tensors(&folder, &bytes, |views| {
            views.insert(name.to_owned(), broken);
        });
        let expected = format!("tensor `{name}`: {found}, expected a finite number");
        let error = folder.refusal();
        assert!(error.contains(&expected), "{error}");
        let nf4 = LoadOptions {
            quantization: Quantization::Nf4,
            ..LoadOptions::default()
        };
        let error = QwenModel::load(folder.path(), &nf4, &Device::flex())
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains(&expected), "{error}");
        // What stays in the mapped file may wait.
        let later = LoadOptions {
            check_finite_now: false,
            ..LoadOptions::default()
        };
        let loaded = QwenModel::load(folder.path(), &later, &Device::flex());
        assert_eq!(loaded.is_ok(), name.ends_with("down_proj.weight"), "{name}");
        let error = MergedWeights::open(folder.path(), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_model_without_lm_head_generates_no_text() {
    let folder = Folder::new();
    let without = LoadOptions {
        lm_head: false,
        ..LoadOptions::default()
    };
    let load = |options: &LoadOptions| {
        let loaded = QwenModel::load(folder.path(), options, &Device::flex());
        loaded.map(drop).map_err(|error| error.to_string())
    };
    for class in ["Qwen2Model", "Qwen2ForSequenceClassification"] {
        folder.set("config.json", "architectures", json!([class]));
        let error = load(&LoadOptions::default()).unwrap_err();
        assert!(error.contains("--runner pooling"), "{error}");
        assert_eq!(load(&without), Ok(()));
    }
    assert!(!is_headless(folder.path()).unwrap());
    // A tensor that is missing is no reason to take the model for another one.
    folder.set("config.json", "architectures", json!(["Qwen2ForCausalLM"]));
    folder.set("config.json", "tie_word_embeddings", json!(false));
    let error = load(&LoadOptions::default()).unwrap_err();
    assert!(error.contains("lm_head.weight"), "{error}");
    assert!(!is_headless(folder.path()).unwrap());
    folder.set("config.json", "tie_word_embeddings", json!(true));
    let score = score_weights(folder.path(), ScoreHead::Label).unwrap_err();
    assert!(score.to_string().contains("score.weight"), "{score}");
    let tokens = ScoreTokens {
        positive: 9_000_000,
        negative: None,
    };
    let score = score_weights(folder.path(), ScoreHead::Tokens(tokens)).unwrap_err();
    assert!(score.to_string().contains("[9000000]"), "{score}");
}

/// A proxy or a mirror answers with a page where it wants something else.
#[test]
fn web_pages_are_named() {
    let page = "\n<!DOCTYPE html>\n<html><body>Sign in</body></html>";
    for name in ["model.safetensors", "config.json"] {
        let folder = Folder::new();
        folder.write(name, page);
        let error = folder.refusal();
        assert!(
            error.contains(name) && error.contains("a web page"),
            "{error}"
        );
    }
}

#[test]
fn missing_shards_are_all_named() {
    let folder = Folder::new();
    folder.remove("model.safetensors");
    let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    folder.write("model.safetensors.index.json", index);
    let error = folder.refusal();
    let expected = "2 of 2 are missing: m-1.safetensors, m-2.safetensors";
    assert!(error.contains(expected), "{error}");
}

/// An empty file says what a missing one says.
#[test]
fn an_empty_template_is_none() {
    let folder = Folder::new();
    folder.write("chat_template.jinja", "\n");
    folder.write(
        "tokenizer_config.json",
        r#"{"chat_template": "from the config"}"#,
    );
    let template = ChatTemplate::from_dir(folder.path()).unwrap().unwrap();
    let text = template.render(
        &[serde_json::json!({"role": "user", "content": "x"})],
        &Default::default(),
    );
    assert_eq!(text.unwrap(), "from the config");
}

#[test]
fn a_load_tells_each_layer_that_is_there() {
    let told = std::sync::Mutex::new(Vec::new());
    let progress = |num_layers, of| told.lock().unwrap().push((num_layers, of));
    let folder = bundled_model_dir().unwrap();
    let options = LoadOptions::default();
    let model =
        QwenModel::load_with_progress(&folder, &options, &Device::flex(), &progress).unwrap();
    let of = model.config.num_hidden_layers;
    let expected: Vec<_> = (0..=of).map(|num_layers| (num_layers, of)).collect();
    assert_eq!(told.into_inner().unwrap(), expected);
}
