//! Trains the byte-level BPE tokenizer of a small model on chats, and writes the files a model folder
//! needs beside the weights.
//!
//! `train_tokenizer OUT_DIR VOCAB_SIZE CHATS.jsonl...`: lines of `{"messages": [{"role", "content"}]}`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

/// How Qwen2 cuts text into words before BPE; one digit at a time.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const END_OF_TEXT: &str = "<|endoftext|>";
const IM_START: &str = "<|im_start|>";
const IM_END: &str = "<|im_end|>";
/// ChatML without a default system message.
const CHAT_TEMPLATE: &str = "{%- for message in messages %}\
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\
    {%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out, vocab_size, files @ ..] = args.as_slice() else {
        bail!("usage: train_tokenizer OUT_DIR VOCAB_SIZE CHATS.jsonl...");
    };
    let vocab_size = vocab_size
        .parse()
        .context("VOCAB_SIZE: expected a number")?;
    let mut texts = Vec::new();
    for file in files {
        read_contents(Path::new(file), &mut texts)?;
    }

    let words = Split::new(
        SplitPattern::Regex(QWEN2_WORDS.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(anyhow::Error::msg)?;
    let bytes = ByteLevel::new(false, false, false);
    let special: Vec<AddedToken> = [END_OF_TEXT, IM_START, IM_END]
        .map(|t| AddedToken::from(t, true))
        .to_vec();
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(words),
            PreTokenizerWrapper::ByteLevel(bytes),
        ])))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(anyhow::Error::msg)?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special)
        .build();
    tokenizer
        .train(&mut trainer, texts.into_iter())
        .map_err(anyhow::Error::msg)?;

    let out = Path::new(out);
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let id = |token: &str| tokenizer.token_to_id(token);
    let generation = json!({
        "bos_token_id": id(END_OF_TEXT), "eos_token_id": [id(IM_END), id(END_OF_TEXT)],
        "do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1,
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false, "bos_token": null,
        "eos_token": IM_END, "pad_token": END_OF_TEXT, "model_max_length": 1024,
        "clean_up_tokenization_spaces": false, "chat_template": CHAT_TEMPLATE,
    });
    let save = |name: &str, value: &Value| {
        let path = out.join(name);
        fs::write(&path, format!("{value:#}\n")).with_context(|| path.display().to_string())
    };
    save("generation_config.json", &generation)?;
    save("tokenizer_config.json", &config)?;
    tokenizer
        .save(out.join("tokenizer.json"), false)
        .map_err(anyhow::Error::msg)
}

/// Adds the text of every message of a chat file.
fn read_contents(path: &Path, texts: &mut Vec<String>) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{}:{}", path.display(), i + 1);
        let chat: Value = serde_json::from_str(&line.with_context(place)?).with_context(place)?;
        let messages = chat["messages"].as_array();
        let messages = messages.with_context(|| format!("{}: expected `messages`", place()))?;
        texts.extend(
            messages
                .iter()
                .filter_map(|m| m["content"].as_str())
                .map(str::to_owned),
        );
    }
    Ok(())
}
