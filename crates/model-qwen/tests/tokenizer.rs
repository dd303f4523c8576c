//! Tokenizer and detokenizer on a small byte-level BPE built here, and on the bundled one.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use model_qwen::{Detokenizer, Tokenizer, TokenizerError};
use proptest::prelude::*;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Tokenizer as HfTokenizer, Trainer,
};

const TEXTS: [&str; 4] = [
    "The quick brown fox jumps over the lazy dog. The end, the end.",
    "你好，世界！你好，朋友。今天天气很好。",
    "👩‍👩‍👧 🌍🌎🌏 é ñ ü naïve café",
    "fn main() {\n    println!(\"hi\");\n}\n\t\r\n",
];

/// Qwen's parts: byte-level BPE, special tokens, an added token that is not special.
fn build() -> HfTokenizer {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(360)
        .min_frequency(1)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(false, false, true);
    let mut bpe = BPE::default();
    trainer
        .feed(TEXTS.iter(), |text| {
            let mut split = PreTokenizedString::from(text);
            byte_level.pre_tokenize(&mut split)?;
            let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
            Ok(words.into_iter().map(|(w, _, _)| w.to_owned()).collect())
        })
        .unwrap();
    trainer.train(&mut bpe).unwrap();
    let mut tokenizer = HfTokenizer::new(bpe);
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level));
    for name in ["<|im_start|>", "<|im_end|>", "<｜User｜>"] {
        tokenizer
            .add_special_tokens([AddedToken::from(name, true)])
            .unwrap();
    }
    tokenizer
        .add_tokens([AddedToken::from("<tool_call>", false).normalized(false)])
        .unwrap();
    tokenizer
}

fn load() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    build()
        .save(dir.path().join("tokenizer.json"), false)
        .unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

#[test]
fn text_round_trips() {
    let tokenizer = load();
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).unwrap();
        assert!(ids.len() < text.len(), "merges were learned");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokenizer.token_bytes(id))
            .collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn tokens_are_described() {
    let tokenizer = load();
    let end = tokenizer.token_to_id("<|im_end|>").unwrap();
    let call = tokenizer.token_to_id("<tool_call>").unwrap();
    let user = tokenizer.token_to_id("<｜User｜>").unwrap();
    let space = tokenizer.token_to_id("Ġ").unwrap();
    assert!(tokenizer.is_special(end) && tokenizer.is_special(user));
    assert!(!tokenizer.is_special(call) && !tokenizer.is_special(space));
    assert_eq!(tokenizer.id_to_token(end).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.token_bytes(end), b"<|im_end|>");
    assert_eq!(tokenizer.token_bytes(user), "<｜User｜>".as_bytes());
    assert_eq!(tokenizer.token_bytes(space), b" ");
    assert_eq!(tokenizer.token_bytes(1 << 30), b"");
    assert!(!tokenizer.is_special(1 << 30));
    assert_eq!(tokenizer.vocab_size(), build().get_vocab_size(true));

    let ids = tokenizer.encode("a<|im_end|>b<tool_call>", false).unwrap();
    assert_eq!(ids[1], end);
    assert_eq!(ids.last(), Some(&call));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab<tool_call>");
    assert_eq!(stream(&tokenizer, &ids, true).concat(), "ab<tool_call>");
}

#[test]
fn characters_come_whole() {
    let tokenizer = load();
    let byte = |b: u8| {
        let id = (0..256).find(|&id| tokenizer.token_bytes(id) == [b]);
        id.unwrap()
    };
    // One byte per token: the emoji appears with its fourth.
    let ids: Vec<u32> = "é🌍".bytes().map(byte).collect();
    assert_eq!(
        stream(&tokenizer, &ids, false),
        ["", "é", "", "", "", "🌍", ""]
    );
    // A character cut off by ASCII, one cut off by the end, a byte that is never valid.
    let ids: Vec<u32> = [0xF0, 0x9F, b'a', 0xFF, 0xE4, 0xBD].map(byte).to_vec();
    let expected = ["", "", "\u{FFFD}a", "\u{FFFD}", "", "", "\u{FFFD}"];
    assert_eq!(stream(&tokenizer, &ids, false), expected);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), expected.concat());
}

fn check_stream(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), TestCaseError> {
    for skip in [false, true] {
        let full = tokenizer.decode(ids, skip).unwrap();
        prop_assert_eq!(stream(tokenizer, ids, skip).concat(), full);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_ids_stream_to_the_full_decode(ids in proptest::collection::vec(0u32..380, 0..60)) {
        check_stream(&load_once(), &ids)?;
    }

    #[test]
    fn any_text_streams_without_replacement(text in "(\\PC|[a-z 你好🌍👩\u{200d}\\n]){0,40}") {
        let tokenizer = load_once();
        let ids = tokenizer.encode(&text, false).unwrap();
        check_stream(&tokenizer, &ids)?;
        prop_assert_eq!(stream(&tokenizer, &ids, false).concat(), text);
    }
}

fn load_once() -> Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(load).clone()
}

#[test]
fn vocab_and_merges_give_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let built = build();
    built.get_model().save(dir.path(), None).unwrap();
    let added: serde_json::Map<String, serde_json::Value> = built
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, token)| (id.to_string(), serde_json::to_value(token).unwrap()))
        .collect();
    let config = serde_json::json!({ "added_tokens_decoder": added });
    let config_path = dir.path().join("tokenizer_config.json");
    std::fs::write(&config_path, config.to_string()).unwrap();

    let from_parts = Tokenizer::from_dir(dir.path()).unwrap();
    let from_json = load();
    for text in ["<|im_start|>hello<|im_end|>", "the end <tool_call>"] {
        assert_eq!(
            from_parts.encode(text, false).unwrap(),
            from_json.encode(text, false).unwrap()
        );
    }
    for text in TEXTS {
        let ids = from_parts.encode(text, false).unwrap();
        assert_eq!(from_parts.decode(&ids, false).unwrap(), text);
    }

    let first = built.token_to_id("<|im_start|>").unwrap();
    let wrong = config
        .to_string()
        .replace(&format!("\"{first}\""), "\"999\"");
    std::fs::write(&config_path, wrong).unwrap();
    let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json"), "{message}");
    assert!(
        message.contains("token \"<|im_end|>\" has the id"),
        "{message}"
    );
}

/// As `AutoTokenizer` of transformers 5 reads these files.
#[test]
fn flags_of_added_tokens_come_from_the_small_files() {
    let built = build();
    let decoder = |change: &dyn Fn(&mut serde_json::Value)| {
        let tokens = built.get_added_tokens_decoder().into_iter();
        let all = tokens.map(|(id, token)| {
            let mut token = serde_json::to_value(token).unwrap();
            change(&mut token);
            (id.to_string(), token)
        });
        let all: serde_json::Map<_, _> = all.collect();
        serde_json::json!({ "added_tokens_decoder": all })
    };
    let set = |content: &'static str, flag: &'static str, on: bool| {
        decoder(&move |token| {
            if token["content"] == content {
                token[flag] = on.into();
            }
        })
    };
    let call = "<tool_call>";
    let ordinary_but_named = {
        let mut config = set("<|im_end|>", "special", false);
        config["eos_token"] = "<|im_end|>".into();
        config
    };
    // What is left of a text without its special tokens.
    for (config, text, expected) in [
        (
            serde_json::json!({}),
            "a <tool_call> b<|im_end|>",
            "a <tool_call> b",
        ),
        (
            serde_json::json!({"additional_special_tokens": [call]}),
            "a <tool_call> b",
            "a  b",
        ),
        (
            serde_json::json!({"extra_special_tokens": {"x_token": call}}),
            "a <tool_call> b",
            "a  b",
        ),
        (
            serde_json::json!({"bos_token": {"content": call}}),
            "a <tool_call> b",
            "a  b",
        ),
        (
            serde_json::json!({"pad_token": call}),
            "a <tool_call> b",
            "a  b",
        ),
        (set(call, "special", true), "a <tool_call> b", "a  b"),
        (
            set("<|im_end|>", "special", false),
            "a<|im_end|>",
            "a<|im_end|>",
        ),
        (ordinary_but_named, "a<|im_end|>", "a"),
        (set("<|im_end|>", "lstrip", true), "a <|im_end|> b", "a b"),
        (set("<|im_end|>", "rstrip", true), "a <|im_end|> b", "a b"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        built
            .save(dir.path().join("tokenizer.json"), false)
            .unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), expected, "{config}");
        assert_eq!(
            stream(&tokenizer, &ids, true).concat(),
            expected,
            "{config}"
        );
    }
}

#[test]
fn missing_and_broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { .. }));
    let message = error.to_string();
    assert!(message.contains("expected tokenizer.json"), "{message}");
    assert!(message.contains("found config.json"), "{message}");

    for (text, expected) in [
        ("{", "not a valid tokenizer file"),
        ("", "not a valid tokenizer file"),
        (
            r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#,
            "expected a byte-level BPE tokenizer, found a model of type \"WordLevel\"",
        ),
        (
            r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#,
            "(decoder ByteLevel, as Qwen models have), found decoder null",
        ),
    ] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_bundled_tokenizer_streams_like_it_decodes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/model");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(stream(&tokenizer, &ids, false).concat(), text);
    }
    let vocab = tokenizer.vocab_size() as u32;
    let mut state = 1u64;
    for length in 0..2000 {
        let ids: Vec<u32> = (0..length % 50)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as u32 % vocab
            })
            .collect();
        for skip in [false, true] {
            let full = tokenizer.decode(&ids, skip).unwrap();
            assert_eq!(stream(&tokenizer, &ids, skip).concat(), full, "{ids:?}");
        }
    }
}
