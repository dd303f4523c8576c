//! Which tokens end an answer, and which special tokens a template sees.

use std::ops::ControlFlow;

use burn::tensor::Device;
use model_qwen::{
    ChatModel, ChatTemplate, LoadOptions, ReplyOptions, SamplingParams, special_tokens,
};
use serde_json::{Value, json};

use crate::Folder;

const END_OF_TEXT: u32 = 0;
const IM_END: u32 = 2;

/// A folder in which no file names a token that ends anything.
fn silent() -> Folder {
    let folder = Folder::new();
    for name in ["config.json", "generation_config.json"] {
        folder.set(name, "eos_token_id", Value::Null);
    }
    folder.edit("tokenizer_config.json", |json| {
        json.remove("eos_token");
        json.remove("chat_template");
    });
    folder
}

fn ends(folder: &Folder) -> Vec<u32> {
    folder.generation_config().unwrap().eos_token_ids
}

#[test]
fn each_file_may_name_the_token_that_ends_an_answer() {
    assert_eq!(ends(&silent()), [0u32; 0]);
    let chatml =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let by_variable =
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let cases: [(&str, &str, Value, &[u32]); 11] = [
        ("config.json", "eos_token_id", json!(0), &[END_OF_TEXT]),
        ("config.json", "eos_token_id", json!([2, -1]), &[IM_END]),
        (
            "generation_config.json",
            "eos_token_id",
            json!([2, 0]),
            &[IM_END, END_OF_TEXT],
        ),
        (
            "generation_config.json",
            "eos_token_id",
            json!(2.0),
            &[IM_END],
        ),
        (
            "tokenizer_config.json",
            "eos_token",
            json!("<|im_end|>"),
            &[IM_END],
        ),
        (
            "tokenizer_config.json",
            "eos_token",
            json!({"content": "<|im_end|>", "lstrip": false}),
            &[IM_END],
        ),
        (
            "tokenizer_config.json",
            "eos_token",
            json!("<|not a token|>"),
            &[],
        ),
        (
            "tokenizer_config.json",
            "chat_template",
            json!(chatml),
            &[IM_END],
        ),
        (
            "tokenizer_config.json",
            "chat_template",
            json!([{"name": "default", "template": chatml}]),
            &[IM_END],
        ),
        (
            "tokenizer_config.json",
            "chat_template",
            json!(by_variable),
            &[],
        ),
        ("tokenizer_config.json", "chat_template", json!(plain), &[]),
    ];
    for (name, field, value, expected) in cases {
        let folder = silent();
        folder.set(name, field, value.clone());
        assert_eq!(ends(&folder), expected, "{name}: {field}: {value}");
    }
    let folder = silent();
    folder.write(
        "special_tokens_map.json",
        r#"{"eos_token": {"content": "<|im_end|>"}}"#,
    );
    assert_eq!(ends(&folder), [IM_END]);
    let folder = silent();
    folder.write("chat_template.jinja", chatml);
    assert_eq!(ends(&folder), [IM_END]);
}

#[test]
fn an_answer_ends_at_the_token_that_only_the_tokenizer_names() {
    let folder = Folder::new();
    folder.set("config.json", "eos_token_id", json!(0));
    folder.set("generation_config.json", "eos_token_id", json!(0));
    assert_eq!(ends(&folder), [END_OF_TEXT, IM_END]);
    let model = folder.path().to_str().unwrap();
    let chat = ChatModel::load(model, &LoadOptions::default(), &Device::flex()).unwrap();
    let options = ReplyOptions {
        sampling: Some(SamplingParams::greedy()),
        max_tokens: 300,
        ..ReplyOptions::default()
    };
    let messages = [json!({"role": "user", "content": "Hello!"})];
    let reply = chat
        .reply(&messages, &options, |_| ControlFlow::Continue(()))
        .unwrap();
    assert!(
        !reply.contains("assistant") && !reply.contains("user"),
        "{reply}"
    );
    assert!(reply.len() < 600, "{reply}");
}

#[test]
fn a_given_template_sees_the_special_tokens_of_the_folder() {
    let folder = Folder::new();
    folder.edit("tokenizer_config.json", |json| {
        json.remove("chat_template");
        json.insert("bos_token".to_owned(), json!("<|endoftext|>"));
        json.insert(
            "extra_special_tokens".to_owned(),
            json!({"turn_token": "<|im_start|>"}),
        );
    });
    assert!(folder.template().is_none());
    let source = "{{ bos_token }}{% for m in messages %}{{ turn_token + m.role + ' says ' + m.content + eos_token }}{% endfor %}";
    let special = special_tokens(folder.path()).unwrap();
    let template = ChatTemplate::from_source(source, special).unwrap();
    let messages = [json!({"role": "user", "content": "Good day"})];
    let text = template.render(&messages, &Default::default()).unwrap();
    assert_eq!(
        text,
        "<|endoftext|><|im_start|>user says Good day<|im_end|>"
    );
}

#[test]
fn ids_below_zero_and_null_stand_for_no_token() {
    for (name, field, value) in [
        ("generation_config.json", "pad_token_id", json!(-1)),
        ("config.json", "bos_token_id", json!(-1)),
        ("config.json", "eos_token_id", json!([2, -1])),
        ("config.json", "pad_token_id", Value::Null),
        ("generation_config.json", "eos_token_id", json!([])),
    ] {
        let folder = Folder::new();
        folder.set(name, field, value.clone());
        let config = folder.generation_config().unwrap();
        assert!(config.eos_token_ids.contains(&IM_END), "{field}: {value}");
        assert_eq!(folder.load().unwrap().config.vocab_size, 8192);
    }
}

/// As transformers does, which numbers them in this order.
#[test]
fn special_tokens_of_no_vocabulary_are_added_behind_it() {
    let folder = Folder::new();
    folder.edit("tokenizer_config.json", |config| {
        config.insert(
            "additional_special_tokens".to_owned(),
            json!(["<a>", "user", "<|im_end|>"]),
        );
        config.insert(
            "extra_special_tokens".to_owned(),
            json!({"image_token": "<i>"}),
        );
        config.insert("pad_token".to_owned(), json!("<pad>"));
        config.insert("unk_token".to_owned(), json!("<unk>"));
    });
    let plain = Folder::new().tokenizer();
    let text = "<a>x user<unk> <pad><i>";
    let is_word = plain.token_to_id("user").is_some();
    // The model has no rows for them.
    let ids = |folder: &Folder| folder.tokenizer().encode(text, false).unwrap();
    if !is_word {
        assert_eq!(ids(&folder), plain.encode(text, false).unwrap());
    }
    // It has rows for all, or for some.
    folder.set("config.json", "vocab_size", json!(8200));
    let tokenizer = folder.tokenizer();
    let id = |token: &str| tokenizer.token_to_id(token);
    let behind = ["<unk>", "<pad>", "<i>", "<a>", "user"].into_iter();
    let behind = behind.filter(|token| !is_word || *token != "user");
    for (token, expected) in behind.zip(8192..) {
        assert_eq!(id(token), Some(expected), "{token}");
        assert!(tokenizer.is_special(expected));
        let ids = tokenizer.encode(&format!("x{token}y"), false).unwrap();
        assert_eq!(ids[1], expected, "{token}");
    }
    assert_eq!(tokenizer.encode("user", false).unwrap().len(), 1);
    folder.set("config.json", "vocab_size", json!(8193));
    let tokenizer = folder.tokenizer();
    assert_eq!(tokenizer.token_to_id("<unk>"), Some(8192));
    assert_eq!(tokenizer.token_to_id("<pad>"), None);
}

#[test]
fn tokens_that_only_the_small_files_name_are_added() {
    let folder = Folder::new();
    let token = |text: &str| {
        json!({"content": text, "special": true, "lstrip": false, "rstrip": false,
        "normalized": false, "single_word": false})
    };
    folder.set(
        "tokenizer_config.json",
        "added_tokens_decoder",
        json!({"2": token("<|im_end|>"), "8192": token("<|tool|>")}),
    );
    let tokenizer = folder.tokenizer();
    assert_eq!(tokenizer.encode("a<|tool|>", false).unwrap()[1..], [8192]);
    assert!(tokenizer.is_special(8192));
    assert_eq!(tokenizer.decode(&[8192], true).unwrap(), "");

    folder.set(
        "tokenizer_config.json",
        "added_tokens_decoder",
        json!({"9000": token("<|tool|>")}),
    );
    let error = model_qwen::Tokenizer::from_dir(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tokenizer_config.json") && error.contains("9000"),
        "{error}"
    );
}

#[test]
fn settings_of_a_tokenizer_that_are_not_computed_are_refused() {
    for (field, value) in [
        ("add_prefix_space", json!(true)),
        ("split_special_tokens", json!(true)),
        ("do_lower_case", json!(true)),
        ("errors", json!("strict")),
    ] {
        let folder = Folder::new();
        folder.set("tokenizer_config.json", field, value);
        let error = model_qwen::Tokenizer::from_dir(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("field `{field}`")), "{error}");
    }
    let folder = Folder::new();
    for (field, value) in [
        ("add_prefix_space", json!(false)),
        ("errors", json!("replace")),
        ("clean_up_tokenization_spaces", json!(true)),
        ("add_bos_token", json!(true)),
        ("model_max_length", json!(1e30)),
        ("something_new", json!([1])),
    ] {
        folder.set("tokenizer_config.json", field, value);
    }
    let ids = folder.tokenizer().encode("hello", true).unwrap();
    assert_eq!(
        ids,
        Folder::new().tokenizer().encode("hello", true).unwrap()
    );
}
