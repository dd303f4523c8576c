//! What a folder with new weights keeps of the model's own.

use burn::tensor::{DType, Device};
use model_qwen::{LoadOptions, QwenConfig, QwenModel};
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
