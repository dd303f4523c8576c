//! Models whose files say different things about where a text begins and ends.

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
