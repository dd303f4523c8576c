//! A checkpoint that was quantized loads as one that is quantized while loading.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use lora_4bit::Weight;
use model_qwen::quantize::{QuantizeError, QuantizeOptions, quantize_checkpoint};
use model_qwen::{
    GenerateRequest, LoadOptions, Quantization, QwenModel, SamplingParams, Tokenizer,
    bundled_model_dir, generate,
};

fn greedy(dir: &Path, quantization: Quantization) -> Vec<u32> {
    let options = LoadOptions {
        quantization,
        ..LoadOptions::default()
    };
    let model = QwenModel::load(dir, &options, &Device::flex()).unwrap();
    let request = GenerateRequest {
        prompt: (3..20).collect(),
        sampling: SamplingParams::greedy(),
        max_tokens: 16,
        stop_token_ids: Vec::new(),
        adapter: None,
    };
    generate(&model, &request, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_bundled_model_is_the_same_as_quantized_while_loading() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (bundled_model_dir().unwrap(), dir.path().join("nf4"));
    let mut last = (0, 1);
    let options = QuantizeOptions::default();
    let summary = quantize_checkpoint(&input, &output, &options, |progress| {
        last = (progress.num_bytes, progress.total_bytes);
        ControlFlow::Continue(())
    });
    let summary = summary.unwrap();
    assert_eq!(last, (summary.bytes_before, summary.bytes_before));
    assert!(summary.bytes_after < summary.bytes_before);
    assert_eq!(
        greedy(&output, Quantization::None),
        greedy(&input, Quantization::Nf4)
    );
    Tokenizer::from_dir(&output).unwrap();

    let again = quantize_checkpoint(&input, &output, &options, |_| ControlFlow::Continue(()));
    assert!(again.unwrap_err().to_string().contains("expected no file"));
    let twice = quantize_checkpoint(&output, &dir.path().join("twice"), &options, |_| {
        ControlFlow::Continue(())
    });
    let message = twice.unwrap_err().to_string();
    assert!(message.contains("found a quantization_config"), "{message}");

    let mut num_told = 0;
    let stopped = quantize_checkpoint(&input, &dir.path().join("stopped"), &options, |_| {
        num_told += 1;
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(QuantizeError::Stopped)));
    assert_eq!(num_told, 1);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "only the whole one");
}

#[test]
fn shards_stay_shards_and_skipped_modules_stay_dense() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (sharded(dir.path()), dir.path().join("nf4"));
    let options = QuantizeOptions {
        double_quant: false,
        skip_modules: vec!["down_proj".to_owned()],
    };
    quantize_checkpoint(&input, &output, &options, |_| ControlFlow::Continue(())).unwrap();
    assert!(output.join("model-00002-of-00002.safetensors").is_file());
    assert!(!output.join("model.bin").exists());
    let model = QwenModel::load(&output, &LoadOptions::default(), &Device::flex()).unwrap();
    for (name, linear) in model.linears() {
        let is_dense = matches!(linear.weight, Weight::Dense(_));
        assert_eq!(is_dense, name.ends_with("down_proj"), "{name}");
    }
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("nf4");
    let run = |input: &Path, options: &QuantizeOptions| {
        let result = quantize_checkpoint(input, &output, options, |_| ControlFlow::Continue(()));
        assert!(!output.exists());
        result.unwrap_err().to_string()
    };
    let nothing = run(&dir.path().join("nowhere"), &QuantizeOptions::default());
    assert!(nothing.contains("config.json"), "{nothing}");

    let input = sharded(dir.path());
    let all = QuantizeOptions {
        skip_modules: vec!["self_attn".to_owned(), "mlp".to_owned()],
        ..QuantizeOptions::default()
    };
    let message = run(&input, &all);
    assert!(message.contains("after skipping"), "{message}");

    let index = input.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("model-00001", "../model-00001")).unwrap();
    let message = run(&input, &QuantizeOptions::default());
    assert!(message.contains("weight_map"), "{message}");

    std::fs::write(&index, text).unwrap();
    let shard = input.join("model-00001-of-00002.safetensors");
    std::fs::write(&shard, "not a file of tensors").unwrap();
    let message = run(&input, &QuantizeOptions::default());
    assert!(
        message.contains("model-00001-of-00002.safetensors"),
        "{message}"
    );
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "only the input");
}

/// The bundled model in two files.
fn sharded(dir: &Path) -> PathBuf {
    use safetensors::SafeTensors;
    use safetensors::tensor::serialize_to_file;

    let bundled = bundled_model_dir().unwrap();
    let folder = dir.join("sharded");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(bundled.join("config.json"), folder.join("config.json")).unwrap();
    std::fs::write(folder.join("model.bin"), "other weights").unwrap();
    let bytes = std::fs::read(bundled.join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut weight_map = serde_json::Map::new();
    for (i, is_first) in [(1, true), (2, false)] {
        let name = format!("model-0000{i}-of-00002.safetensors");
        let tensors: Vec<_> = all
            .iter()
            .filter(|(tensor, _)| tensor.contains("layers.0.") == is_first)
            .collect();
        for (tensor, _) in &tensors {
            weight_map.insert((*tensor).to_owned(), name.clone().into());
        }
        serialize_to_file(tensors, None, &folder.join(name)).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    folder
}
