//! The files of models and adapters, changed at random.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lora_4bit::peft::LoraAdapter;
use model_qwen::{
    Architecture, ChatTemplate, Checkpoint, GenerationConfig, QwenConfig, RenderOptions,
    SentenceTransformer, Tokenizer, special_tokens,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::mutate::{self, Folder, Random};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../data")
        .join(path)
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(data(path)).unwrap()
}

fn value(path: &str) -> Value {
    serde_json::from_slice(&read(path)).unwrap()
}

/// Names of keys that configurations have.
const KEYS: [&str; 40] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "type",
    "rope_type",
    "factor",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "tie_word_embeddings",
    "max_position_embeddings",
    "use_sliding_window",
    "sliding_window",
    "layer_types",
    "eos_token_id",
    "bos_token_id",
    "torch_dtype",
    "dtype",
    "quantization_config",
    "quant_method",
    "bnb_4bit_quant_type",
    "text_config",
    "id2label",
    "attention_bias",
];

#[test]
fn config_json() {
    let scaled = |scaling: Value| {
        let mut config = value("model/config.json");
        config["rope_scaling"] = scaling;
        config
    };
    let seeds = [
        value("model/config.json"),
        scaled(json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024})),
        scaled(
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024}),
        ),
        scaled(
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0],
            "original_max_position_embeddings": 512}),
        ),
        value("golden/model/qwen3/config.json"),
    ];
    let make = |random: &mut Random| mutate::json(random, &seeds, &KEYS);
    let folder = Folder::with(&data("model"), &["config.json"]);
    mutate::run("config", make, |input| {
        folder.write("config.json", input);
        if let Ok(config) = QwenConfig::load(&folder.path()) {
            let _ = config.context_length();
            assert!(
                config
                    .num_attention_heads
                    .is_multiple_of(config.num_key_value_heads)
            );
            let again = QwenConfig::from_json(&config.to_json().to_string(), Path::new("again"));
            assert!(again.is_ok(), "{again:?}");
        }
        let _ = Architecture::of(&folder.path());
        let _ = SentenceTransformer::from_dir(&folder.path());
    });
}

#[test]
fn generation_config_json() {
    let seeds = [
        value("model/generation_config.json"),
        json!({"eos_token_id": [2, 0], "do_sample": false, "max_new_tokens": 20, "suppress_tokens": [1],
            "stop_strings": ["a"], "min_p": 0.1, "transformers_version": "4.5"}),
    ];
    let names = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "eos_token_id",
        "repetition_penalty",
        "max_length",
    ];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    let files = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    let folder = Folder::with(&data("model"), &files);
    let tokenizer = Tokenizer::from_dir(&folder.path()).unwrap();
    let template = ChatTemplate::from_dir(&folder.path()).unwrap();
    mutate::run("generation_config", make, |input| {
        folder.write("generation_config.json", input);
        let read = GenerationConfig::from_dir(&folder.path(), &tokenizer, template.as_ref());
        if let Ok(config) = read {
            let _ = config.sampling_defaults();
        }
    });
}

/// A tokenizer of bytes with a few merges.
fn tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256;
    let mut vocab: serde_json::Map<String, Value> = (0..256)
        .map(|byte| {
            let code = if printable(byte) { byte } else { shifted };
            shifted += u32::from(!printable(byte));
            (char::from_u32(code).unwrap().to_string(), json!(byte))
        })
        .collect();
    for (id, text) in ["he", "ll", "hell", "hello"].into_iter().enumerate() {
        vocab.insert(text.to_owned(), json!(256 + id));
    }
    let special = json!({"id": 260, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{L}+|\\p{N}|\\s+"}, "behavior": "Isolated",
        "invert": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]}, "post_processor": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"]]},
    })
}

#[test]
fn tokenizer_json() {
    let seeds = [tokenizer()];
    let names = [
        "Regex",
        "String",
        "pattern",
        "type",
        "added_tokens",
        "id",
        "content",
        "merges",
        "vocab",
        "dropout",
    ];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    let folder = Folder::with(&data("model"), &["tokenizer_config.json"]);
    mutate::run("tokenizer", make, |input| {
        folder.write("tokenizer.json", input);
        use_tokenizer(&folder);
    });
}

/// Makes tokens and texts, where the files of a folder are a tokenizer.
fn use_tokenizer(folder: &Folder) {
    let Ok(tokenizer) = Tokenizer::from_dir(&folder.path()) else {
        return;
    };
    if let Ok(ids) = tokenizer.encode("hello é<|im_end|> \u{0} 12", true) {
        let _ = tokenizer.decode(&ids, false);
    }
    for id in (0..300).chain([u32::MAX]) {
        let _ = (tokenizer.token_bytes(id), tokenizer.id_to_token(id));
    }
}

/// The merges of [`tokenizer`].
const MERGES: &str = "#version: 0.2\nh e\nl l\nhe ll\nhell o\n";

/// A folder with the older files of a tokenizer.
fn in_two_files() -> Folder {
    let folder = Folder::with(&data("model"), &["tokenizer_config.json"]);
    folder.write(
        "vocab.json",
        tokenizer()["model"]["vocab"].to_string().as_bytes(),
    );
    folder.write("merges.txt", MERGES.as_bytes());
    let read = Tokenizer::from_dir(&folder.path()).unwrap();
    assert_eq!(read.encode("hello", false).unwrap(), [259]);
    folder
}

#[test]
fn vocab_json() {
    let seeds = [tokenizer()["model"]["vocab"].clone()];
    let names = ["h", "he", "hello", "<|im_end|>", "Ġ", ""];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    let folder = in_two_files();
    mutate::run("vocab", make, |input| {
        folder.write("vocab.json", input);
        use_tokenizer(&folder);
    });
}

#[test]
fn merges_txt() {
    let make = |random: &mut Random| {
        let mut merges = MERGES.as_bytes().to_vec();
        mutate::bytes(random, &mut merges);
        merges
    };
    let folder = in_two_files();
    mutate::run("merges", make, |input| {
        folder.write("merges.txt", input);
        use_tokenizer(&folder);
    });
}

#[test]
fn special_tokens_map_json() {
    let seeds = [
        json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": null,
            "additional_special_tokens": ["<|x|>", "<|im_end|>"]}),
        json!({"eos_token": {"content": "<|im_end|>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false},
            "unk_token": {"content": "<|y|>"}, "additional_special_tokens": [{"content": "<|x|>", "special": true}]}),
    ];
    let names = [
        "bos_token",
        "eos_token",
        "unk_token",
        "additional_special_tokens",
        "content",
        "lstrip",
        "special",
        "id",
    ];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    // With an `added_tokens_decoder` of tokenizer_config.json the map would say less.
    let folder = Folder::with(&data("model"), &["tokenizer.json", "config.json"]);
    let mut config = value("model/tokenizer_config.json");
    config["added_tokens_decoder"].take();
    folder.write("tokenizer_config.json", config.to_string().as_bytes());
    mutate::run("special_tokens_map", make, |input| {
        folder.write("special_tokens_map.json", input);
        let _ = special_tokens(&folder.path());
        use_tokenizer(&folder);
    });
}

/// As an interrupted download leaves it.
#[test]
fn cut_tokenizers_are_refused() {
    let folder = Folder::with(&data("model"), &["tokenizer_config.json"]);
    let whole = tokenizer().to_string();
    for len in (0..whole.len())
        .step_by(5)
        .filter(|len| whole.is_char_boundary(*len))
    {
        folder.write("tokenizer.json", &whole.as_bytes()[..len]);
        let read = Tokenizer::from_dir(&folder.path()).map(|_| ());
        let reason = read.unwrap_err().to_string();
        assert!(reason.contains("not a valid tokenizer"), "{len}: {reason}");
    }
}

#[test]
fn tokenizer_config_json() {
    let mut named = value("model/tokenizer_config.json");
    named["chat_template"] = json!([{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": ""}]);
    named["added_tokens_decoder"] =
        json!({"8191": {"content": "<|x|>", "special": true, "lstrip": false}});
    named["additional_special_tokens"] = json!(["<|x|>", {"content": "<|y|>"}]);
    let seeds = [value("model/tokenizer_config.json"), named];
    let names = [
        "chat_template",
        "name",
        "template",
        "bos_token",
        "eos_token",
        "content",
        "add_bos_token",
        "special",
    ];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    let folder = Folder::with(&data("model"), &["tokenizer.json", "config.json"]);
    let messages = [json!({"role": "user", "content": "hello"})];
    mutate::run("tokenizer_config", make, |input| {
        folder.write("tokenizer_config.json", input);
        let _ = special_tokens(&folder.path());
        let _ = Tokenizer::from_dir(&folder.path());
        if let Ok(Some(template)) = ChatTemplate::from_dir(&folder.path()) {
            let _ = template.render(&messages, &RenderOptions::default());
        }
    });
}

/// A file of tensors, as writers make it.
fn tensors() -> Vec<u8> {
    let zeros = [0; 64];
    let view = |dtype, shape: &[usize], len: usize| {
        TensorView::new(dtype, shape.to_vec(), &zeros[..len]).unwrap()
    };
    let all = HashMap::from([
        ("a.weight", view(Dtype::F32, &[2, 4], 32)),
        ("b.weight", view(Dtype::BF16, &[3], 6)),
        ("c.weight", view(Dtype::U8, &[0, 7], 0)),
    ]);
    let info = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(all, Some(info)).unwrap()
}

/// The bytes of a file, changed in its header, in its bytes or in both.
fn changed_file(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut file = seed.to_vec();
    if random.below(3) > 0 {
        let len = u64::from_le_bytes(seed[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&seed[8..8 + len]).unwrap();
        let names = ["a.weight", "dtype", "shape", "data_offsets", "__metadata__"];
        let header = mutate::json(random, &[header], &names);
        file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(&header);
        file.extend_from_slice(&seed[8 + len..]);
    }
    if random.below(2) == 0 {
        mutate::bytes(random, &mut file);
    }
    file
}

#[test]
fn safetensors_files() {
    let seed = tensors();
    let folder = Folder::with(&data("model"), &["config.json"]);
    let make = |random: &mut Random| changed_file(random, &seed);
    mutate::run("safetensors", make, |input| {
        folder.write("model.safetensors", input);
        let Ok(checkpoint) = Checkpoint::open(&folder.path()) else {
            return;
        };
        let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        for name in names {
            let _ = checkpoint.view(&name).map(|view| view.data().len());
            let _ = checkpoint.tensor::<2>(&name, [2, 4], &Default::default());
        }
    });
}

#[test]
fn index_of_safetensors() {
    let folder = Folder::with(&data("model"), &["config.json"]);
    folder.write("a.safetensors", &tensors());
    let seeds = [
        json!({"metadata": {"total_size": 38}, "weight_map": {"a.weight": "a.safetensors", "b.weight": "a.safetensors"}}),
    ];
    let names = ["a.weight", "c.weight", "weight_map"];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    mutate::run("index", make, |input| {
        folder.write("model.safetensors.index.json", input);
        let Ok(checkpoint) = Checkpoint::open(&folder.path()) else {
            return;
        };
        let _ = checkpoint
            .names()
            .filter_map(|name| checkpoint.view(name))
            .count();
    });
}

/// Adapters that PEFT has written.
const ADAPTERS: [&str; 2] = [
    "golden/methods/dora/start",
    "golden/methods/modules_to_save/start",
];

#[test]
fn adapter_config_json() {
    let seeds = ADAPTERS.map(|folder| value(&format!("{folder}/adapter_config.json")));
    let weights = ADAPTERS.map(|folder| read(&format!("{folder}/adapter_model.safetensors")));
    let names = [
        "r",
        "lora_alpha",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "bias",
        "peft_type",
        "exclude_modules",
        "fan_in_fan_out",
    ];
    let make = |random: &mut Random| mutate::json(random, &seeds, &names);
    mutate::run("adapter_config", make, |input| {
        for weights in &weights {
            let _ = LoraAdapter::from_bytes(input, weights);
        }
    });
}

#[test]
fn adapter_weights() {
    let configs = ADAPTERS.map(|folder| read(&format!("{folder}/adapter_config.json")));
    let weights = ADAPTERS.map(|folder| read(&format!("{folder}/adapter_model.safetensors")));
    let make = |random: &mut Random| {
        let seed = random.pick(&weights).clone();
        changed_file(random, &seed)
    };
    mutate::run("adapter_weights", make, |input| {
        for config in &configs {
            let _ = LoraAdapter::from_bytes(config, input);
        }
    });
}
