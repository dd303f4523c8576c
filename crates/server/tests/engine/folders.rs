//! What the files of a model folder say of its model.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Server;
use crate::model::TestModel;

fn set(folder: &Path, file: &str, field: &str, value: Value) {
    let path = folder.join(file);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// The bundled model, whose head is tied, saved with names without `model.`.
fn without_prefix() -> TempDir {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/model");
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(bundled).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let header = 8..8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let text = str::from_utf8(&file[header.clone()]).unwrap();
    let mut text = text.replace("\"model.", "\"").into_bytes();
    text.resize(header.len(), b' ');
    file[header].copy_from_slice(&text);
    fs::write(path, file).unwrap();
    folder
}

#[test]
fn a_tied_model_generates_text_whatever_its_weights_are_called() {
    let folder = without_prefix();
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0 });
    let text = |server: &Server| {
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].clone()
    };
    let expected = text(&Server::start_bundled(&[]));
    assert_eq!(text(&Server::start_in(folder.path(), &[])), expected);

    // Without a head, the model has no text, and the refusal says how it was taken for such a model.
    set(
        folder.path(),
        "config.json",
        "tie_word_embeddings",
        json!(false),
    );
    let server = Server::start_in(folder.path(), &[]);
    let (status, answer) = server.post("/v1/completions", &body);
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    for part in ["its folder has no lm_head", "--runner generate"] {
        assert!(message.contains(part), "{message}");
    }
}

/// Only chats need a template.
#[test]
fn named_templates_without_a_default_refuse_chats() {
    let model = TestModel::new();
    let templates = json!([
        { "name": "rag", "template": "R" },
        { "name": "tool_use", "template": "{{ tools }}{{ messages }}" },
    ]);
    set(
        model.dir(),
        "tokenizer_config.json",
        "chat_template",
        templates,
    );
    let server = Server::start(&model, &[]);
    let body = json!({ "prompt": "x", "max_tokens": 2 });
    assert_eq!(server.post("/v1/completions", &body).0, 200);
    let chat = json!({ "messages": [{ "role": "user", "content": "x" }] });
    let (status, answer) = server.post("/v1/chat/completions", &chat);
    assert_eq!(status, 400);
    let message = answer["error"]["message"].as_str().unwrap();
    for part in [
        "tokenizer_config.json",
        "\"default\"",
        "[\"rag\", \"tool_use\"]",
        "--chat-template",
    ] {
        assert!(message.contains(part), "{message}");
    }
    // Those with tools have a template.
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": {} } });
    let chat = json!({
        "messages": [{ "role": "user", "content": "x" }], "tools": [tool], "tool_choice": "none", "max_tokens": 2,
    });
    let (status, answer) = server.post("/v1/chat/completions", &chat);
    assert_eq!(status, 200, "{answer}");
    let (_, shown) = server.post("/api/show", &json!({ "model": "base" }));
    assert_eq!(shown["template"], "", "{shown}");
}
