//! What a folder with new weights keeps of the model's own.

use burn::tensor::{DType, Device};
use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, SavedModule, TargetModules};
use model_qwen::merge::{MergeProgress, MergedWeights};
use model_qwen::{Dtype, LoadOptions, QwenConfig, QwenModel};
use serde_json::{Value, json};

use crate::Folder;

/// A model that was trained whole has a `config.json` that says what the first one said, and another dtype.
#[test]
fn unknown_keys_of_a_config_are_kept() {
    let folder = Folder::new();
    folder.edit("config.json", |json| {
        json.remove("torch_dtype");
        json.insert("dtype".to_owned(), json!("float32"));
        json.insert("pad_token_id".to_owned(), json!(0));
        json.insert("id2label".to_owned(), json!({"0": "good"}));
        json.insert("some_key".to_owned(), json!([1, 2]));
    });
    let model = folder.load().unwrap();
    let output = tempfile::tempdir().unwrap();
    model
        .save_as(output.path(), DType::BF16, Some(folder.path()))
        .unwrap();
    let read = |path: &std::path::Path| -> Value {
        let text = std::fs::read_to_string(path.join("config.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let mut expected = read(folder.path());
    expected["dtype"] = json!("bfloat16");
    assert_eq!(read(output.path()), expected);
    let again = QwenModel::load(output.path(), &LoadOptions::default(), &Device::flex()).unwrap();
    let written = QwenConfig {
        dtype: DType::BF16,
        ..model.config.clone()
    };
    assert_eq!(again.config, written);
}

/// An adapter with the embedding that no list names, as PEFT writes it where tokens were added: the head is still the embedding.
#[test]
fn a_tied_model_stays_tied_where_its_embedding_is_saved() {
    let folder = Folder::new();
    let model = folder.load().unwrap();
    let shape = [model.config.vocab_size, model.config.hidden_size];
    let table = SavedModule {
        weight: (0..shape[0] * shape[1]).map(|i| (i % 7) as f32).collect(),
        shape,
    };
    let (name, linear) = model.linears().into_iter().next().unwrap();
    let (in_features, out_features) = (linear.in_features(), linear.out_features());
    let matrices = LoraMatrices {
        a: vec![0.5; in_features],
        b: vec![0.5; out_features],
        r: 1,
        in_features,
        out_features,
        magnitude: None,
    };
    for (lists, is_tied) in [(false, true), (true, false)] {
        let adapter = LoraAdapter {
            config: LoraConfig {
                r: 1,
                target_modules: TargetModules::List(vec![name.clone()]),
                ..LoraConfig::default()
            },
            modules: [(name.clone(), matrices.clone())].into(),
            saved: [("model.embed_tokens".to_owned(), table.clone())].into(),
        };
        let (config, weights) = adapter.to_bytes().unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        if lists {
            config["modules_to_save"] = json!(["embed_tokens"]);
        }
        let adapter = LoraAdapter::from_bytes(config.to_string().as_bytes(), &weights).unwrap();
        let merged = MergedWeights::open(folder.path(), Some(adapter)).unwrap();
        let output = tempfile::tempdir().unwrap();
        let going_on = |_: MergeProgress<'_>| std::ops::ControlFlow::Continue(());
        merged.write(output.path(), Dtype::Auto, going_on).unwrap();
        let config = QwenConfig::load(output.path()).unwrap();
        assert_eq!(config.tie_word_embeddings, is_tied);
        let written =
            QwenModel::load(output.path(), &LoadOptions::default(), &Device::flex()).unwrap();
        let embedding: Vec<f32> = written.embed_tokens.into_data().iter::<f32>().collect();
        assert_eq!(embedding, table.weight);
    }
}
