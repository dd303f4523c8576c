//! `trainer-sft merge`.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use lora_4bit::Weight;
use lora_4bit::peft::LoraAdapter;
use model_qwen::{GenerateRequest, LoadOptions, QwenModel, SamplingParams, Tokenizer, generate};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{adapter, bf16s, copy, data_folder, fail, names, succeed, tensors, text_of};

/// Greedy tokens.
fn greedy(model: &QwenModel, prompt: &str, adapter: Option<usize>) -> Vec<u32> {
    let tokenizer = Tokenizer::from_dir(&data_folder().join("model")).unwrap();
    let request = GenerateRequest {
        prompt: tokenizer.encode(prompt, false).unwrap(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: 48,
        stop_token_ids: Vec::new(),
        adapter,
    };
    generate(model, &request, |_| ControlFlow::Continue(())).unwrap()
}

fn load(folder: &Path) -> QwenModel {
    QwenModel::load(folder, &LoadOptions::default(), &Device::flex()).unwrap()
}

/// The flags that merge an adapter into a base model.
fn merge_of<'a>(adapter: &'a Path, base: &'a Path, output: &'a Path) -> [&'a str; 7] {
    let [adapter, base, output] = [adapter, base, output].map(text_of);
    [
        "merge",
        "--adapter",
        adapter,
        "--model",
        base,
        "--output",
        output,
    ]
}

#[test]
fn weights_are_those_that_peft_merges() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("new/merged");
    let golden = data_folder().join("golden");
    let base = golden.join("peft/model");
    succeed(&merge_of(&golden.join("peft/adapter"), &base, &output));
    let merged = tensors(&output.join("model.safetensors"));
    let before = tensors(&base.join("model.safetensors"));
    let expected = tensors(&golden.join("merge/merged.safetensors"));
    assert_eq!(expected.len(), 14);
    assert!(merged.keys().eq(before.keys()));
    for (name, tensor) in &merged {
        let Some(expected) = expected.get(name) else {
            assert_eq!(tensor, &before[name], "{name} is not changed");
            continue;
        };
        assert_eq!((&tensor.0, &tensor.1), (&expected.0, &expected.1), "{name}");
        assert_ne!(tensor.2, before[name].2, "{name}");
        let pairs = bf16s(&tensor.2).into_iter().zip(bf16s(&expected.2));
        let mut num_different = 0;
        for (found, expected) in pairs {
            let ulp = expected.abs().max(1e-30) / 128.0;
            assert!(
                (found - expected).abs() <= ulp,
                "{name}: {found} {expected}"
            );
            num_different += usize::from(found != expected);
        }
        assert!(num_different <= 2, "{name}: {num_different} values differ");
    }
    let config = |folder: &Path| -> Value {
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
    };
    assert_eq!(config(&output), config(&base));
    assert_eq!(names(folder.path()), ["new"]);
    assert_eq!(names(&folder.path().join("new")), ["merged"]);
}

#[test]
fn a_merged_model_says_what_base_and_adapter_say() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let [exact, rounded] = ["exact", "rounded"].map(|name| folder.path().join(name));
    // The base model is the one that the adapter names.
    let merge = ["merge", "--adapter", text_of(&adapter), "--output"];
    let eval_data = data_folder().join("eval.jsonl");
    // Measured as the files are: in f32 nothing but the order of sums differs.
    for (output, dtype, bound) in [(&exact, "f32", 2e-4), (&rounded, "auto", 0.03)] {
        let flags = [text_of(output), "--dtype", dtype];
        let with_data = ["--data", text_of(&eval_data)];
        let out = succeed(&[&merge[..], &flags, &with_data].concat());
        let losses = losses(&out);
        let names: Vec<&str> = losses.iter().map(|(name, _)| name.as_str()).collect();
        let dense = match dtype {
            "f32" => "merged, f32",
            _ => "merged, bf16",
        };
        // Nobody has trained this adapter, so that the base is as its files are.
        assert_eq!(
            names,
            ["base", "base, with the adapter", dense, "merged, NF4"]
        );
        let [base, adapted, merged, small] = [0, 1, 2, 3].map(|index: usize| losses[index].1);
        assert!((base - adapted).abs() > 0.05, "the adapter matters: {out}");
        assert!((merged - adapted).abs() < bound, "{out}");
        assert!(small != merged && (small - merged).abs() < 0.3, "{out}");
    }

    let mut model = load(&data_folder().join("model"));
    let plain = greedy(&model, "Once upon a time", None);
    model
        .add_adapter(0, &LoraAdapter::load(&adapter).unwrap())
        .unwrap();
    let merged = load(&exact);
    for prompt in ["Once upon a time", "<|im_start|>user\nTell me", "The duck"] {
        let expected = greedy(&model, prompt, Some(0));
        assert_eq!(greedy(&merged, prompt, None), expected, "{prompt}");
    }
    assert_ne!(greedy(&merged, "Once upon a time", None), plain);
    // A model folder to serve: tokenizer, template, sampling.
    let files = names(&data_folder().join("model"));
    assert_eq!(names(&rounded), files);
    let config = fs::read_to_string(exact.join("config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"float32\""), "{config}");
}

/// The losses that `merge --data` prints, by their names.
fn losses(out: &str) -> Vec<(String, f64)> {
    let lines = out.lines().filter_map(|line| line.strip_prefix("  "));
    let losses = lines.map(|line| {
        let (name, loss) = line.rsplit_once(' ').unwrap();
        (name.trim_end().to_owned(), loss.parse().unwrap())
    });
    losses.collect()
}

#[test]
fn losses_are_those_of_the_form_that_the_run_had_and_of_both_results() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    fs::write(adapter.join("run.toml"), "lora_r = 4\n").unwrap();
    let [dense, small] = ["dense", "small"].map(|name| folder.path().join(name));
    let eval_data = data_folder().join("eval.jsonl");
    let merge = [
        "merge",
        "--adapter",
        text_of(&adapter),
        "--data",
        text_of(&eval_data),
    ];
    let losses_of = |flags: &[&str]| losses(&succeed(&[&merge[..], flags].concat()));
    let of_dense = losses_of(&["--output", text_of(&dense)]);
    let of_small = losses_of(&["--output", text_of(&small), "--quantization", "nf4"]);
    // The dense weights are measured before they go, and the 4-bit ones are what loading makes of them.
    assert_eq!(of_dense, of_small);
    let names: Vec<&str> = of_dense.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "base in NF4",
        "base in NF4, with the adapter",
        "merged, bf16",
        "merged, NF4",
    ];
    assert_eq!(names, expected);
    assert_eq!(names_without_adapter(folder.path()), ["dense", "small"]);
    // As `eval` measures each of them.
    let eval = |flags: &[&str]| -> f64 {
        let flags = [&["eval", "--json", "--data", text_of(&eval_data)], flags].concat();
        let json: Value = serde_json::from_str(&succeed(&flags)).unwrap();
        json["loss"].as_f64().unwrap()
    };
    let nf4 = ["--quantization", "nf4"];
    let adapted = ["--adapter", text_of(&adapter)];
    for (index, flags) in [
        &nf4[..],
        &[&adapted[..], &nf4].concat(),
        &["--model", text_of(&dense)],
        &["--model", text_of(&small)],
    ]
    .into_iter()
    .enumerate()
    {
        let (name, found) = &of_small[index];
        let expected = eval(flags);
        assert!(
            (found - expected).abs() < 1e-4,
            "{name}: {found}, {expected}"
        );
    }
    // Settings that cannot be read are named before anything is written.
    fs::write(adapter.join("run.toml"), "quantization = 4\n").unwrap();
    let output = folder.path().join("none");
    fail(
        &[&merge[..], &["--output", text_of(&output)]].concat(),
        &["run.toml: expected the settings of a run"],
    );
    assert!(!output.exists());
}

fn names_without_adapter(folder: &Path) -> Vec<String> {
    let mut names = names(folder);
    names.retain(|name| name != "adapter");
    names
}

/// A copy of the tiny model in two files.
fn shard(folder: &Path) {
    copy(&data_folder().join("golden/peft/model"), folder);
    let single = folder.join("model.safetensors");
    let all = tensors(&single);
    let mut weight_map = serde_json::Map::new();
    for (number, file) in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    .into_iter()
    .enumerate()
    {
        let own = all
            .iter()
            .enumerate()
            .filter(|(index, _)| index % 2 == number);
        let views = own.map(|(_, (name, (_, shape, bytes)))| {
            weight_map.insert(name.clone(), file.into());
            let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
            (name.clone(), view)
        });
        let views: Vec<_> = views.collect();
        serialize_to_file(views, None, &folder.join(file)).unwrap();
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    let path = folder.join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
    fs::remove_file(single).unwrap();
}

#[test]
fn shards_stay_as_they_are() {
    let folder = TempDir::new().unwrap();
    let [base, whole, output] = ["base", "whole", "output"].map(|name| folder.path().join(name));
    shard(&base);
    fs::create_dir(base.join("additional_chat_templates")).unwrap();
    fs::write(base.join("additional_chat_templates/tool_use.jinja"), "x").unwrap();
    let adapter = data_folder().join("golden/peft/adapter");
    let tiny = data_folder().join("golden/peft/model");
    for (model, output) in [(&base, &output), (&tiny, &whole)] {
        succeed(&[
            "merge",
            "--adapter",
            text_of(&adapter),
            "--base-model",
            text_of(model),
            "-o",
            text_of(output),
        ]);
    }
    assert_eq!(names(&output), names(&base));
    assert!(
        output
            .join("additional_chat_templates/tool_use.jinja")
            .exists()
    );
    let expected = tensors(&whole.join("model.safetensors"));
    let mut found = tensors(&output.join("model-00001-of-00002.safetensors"));
    found.extend(tensors(&output.join("model-00002-of-00002.safetensors")));
    assert_eq!(found, expected);
    load(&output);
    let index = fs::read_to_string(output.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let num_bytes: usize = expected.values().map(|(.., bytes)| bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], num_bytes);

    // A shard that is missing is named.
    fs::remove_file(base.join("model-00002-of-00002.safetensors")).unwrap();
    let again = folder.path().join("again");
    fail(
        &merge_of(&adapter, &base, &again),
        &["model-00002-of-00002.safetensors"],
    );
    assert!(!again.exists());
}

#[test]
fn nf4_comes_out_and_goes_in() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let [dense, small, again] = ["dense", "small", "again"].map(|name| folder.path().join(name));
    let merge = ["merge", "--adapter", text_of(&adapter), "--output"];
    succeed(&[&merge[..], &[text_of(&dense)]].concat());
    succeed(&[&merge[..], &[text_of(&small), "--quantization", "nf4"]].concat());
    assert_eq!(names(folder.path()), ["adapter", "dense", "small"]);
    let is_nf4 = |model: &QwenModel| {
        let mut linears = model.linears().into_iter();
        linears.all(|(_, linear)| matches!(linear.weight, Weight::Nf4(_)))
    };
    let loaded = load(&small);
    assert!(is_nf4(&loaded));
    let options = LoadOptions {
        quantization: model_qwen::Quantization::Nf4,
        ..LoadOptions::default()
    };
    let quantized = QwenModel::load(&dense, &options, &Device::flex()).unwrap();
    let prompt = "The little boat";
    assert_eq!(
        greedy(&loaded, prompt, None),
        greedy(&quantized, prompt, None)
    );
    // On a base in 4 bits the result is dense.
    let flags = [text_of(&again), "--model", text_of(&small)];
    succeed(&[&merge[..], &flags].concat());
    let config = fs::read_to_string(again.join("config.json")).unwrap();
    assert!(!config.contains("quantization_config"), "{config}");
    let merged = load(&again);
    assert!(!is_nf4(&merged));
    let before = tensors(&data_folder().join("model/model.safetensors"));
    let after = tensors(&again.join("model.safetensors"));
    assert!(before.keys().eq(after.keys()));
}

#[test]
fn a_folder_around_adapters_names_the_newest() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    for name in ["checkpoint-9", "checkpoint-10"] {
        fs::create_dir_all(run.join(name)).unwrap();
        fs::write(run.join(name).join("adapter_config.json"), "{}").unwrap();
    }
    let output = folder.path().join("merged");
    let message = format!(
        "error: `{}` has no adapter_config.json; did you mean {}?",
        run.display(),
        run.join("checkpoint-10").display()
    );
    fail(&merge_of(&run, folder.path(), &output), &[&message]);
}

#[test]
fn a_base_without_a_tokenizer_is_merged_and_that_is_said() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let base = folder.path().join("base");
    copy(&data_folder().join("model"), &base);
    let output = folder.path().join("a b");
    let text = succeed(&merge_of(&adapter, &base, &output));
    let next = format!(
        "Serve it: cargo run -p server -- --model '{}'",
        output.display()
    );
    assert!(text.contains(&next), "{text}");
    fs::remove_file(base.join("tokenizer.json")).unwrap();
    for command in [&["merge"][..], &["export", "--format", "hf"]] {
        let output = folder.path().join(command[0]);
        let flags = ["--adapter", text_of(&adapter), "--model", text_of(&base)];
        let output = ["--output", text_of(&output)];
        let text = succeed(&[command, &flags, &output].concat());
        assert!(text.contains("It has no tokenizer"), "{text}");
        assert!(!text.contains("Serve it"), "{text}");
    }
}
