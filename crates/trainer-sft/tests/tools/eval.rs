//! `trainer-sft eval`.

use std::fs;

use burn::tensor::Device;
use kv_paging::CausalAttention;
use lora_4bit::{AdapterSelection, ComputeDtype};
use model_qwen::{LoadOptions, QwenModel};
use serde_json::{Value, json};
use tempfile::TempDir;
use trainer_sft::chat_format::ChatFormat;
use trainer_sft::config::Config;
use trainer_sft::data::{Dataset, Examples};
use trainer_sft::tools::measure;

use super::support::program;
use super::{adapter, copy, data_folder, edit, fail, refuse, succeed, text_of};

#[test]
fn the_numbers_are_those_of_the_tokens() {
    let file = data_folder().join("eval.jsonl");
    let eval = ["eval", "--data", text_of(&file), "--json"];
    let json = |flags: &[&str]| -> Value {
        serde_json::from_str(&succeed(&[&eval[..], flags].concat())).unwrap()
    };
    let number = |json: &Value, field: &str| json[field].as_f64().unwrap();
    let plain = json(&[]);
    let loss = number(&plain, "loss");
    assert!((number(&plain, "perplexity") - loss.exp()).abs() < 1e-9);
    assert!(
        (0.05..1.0).contains(&number(&plain, "token_accuracy")),
        "{plain}"
    );
    assert!(number(&plain, "num_tokens") > 20.0);
    // In other batches the sums are the same.
    let single = json(&["--batch-size", "1"]);
    assert!((number(&single, "loss") - loss).abs() < 1e-4);
    assert_eq!(single["token_accuracy"], plain["token_accuracy"]);
    let all = json(&["--train-on", "all"]);
    assert!(number(&all, "num_tokens") > number(&plain, "num_tokens"));
    let folder = TempDir::new().unwrap();
    let adapted = json(&["--adapter", text_of(&adapter(folder.path()))]);
    assert!((number(&adapted, "loss") - loss).abs() > 0.01);
    fail(&["eval", "--data", "no.jsonl"], &["no.jsonl"]);
    refuse(
        &["eval", "--data", text_of(&file), "--batch-size", "0"],
        &["--batch-size", "1 or more"],
    );
}

#[test]
fn records_are_read_as_the_run_of_the_adapter_read_them() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    let file = data_folder().join("eval.jsonl");
    let flags = ["--adapter", text_of(&adapter), "--data", text_of(&file)];
    let eval = |own: &[&str]| -> (Value, String) {
        let said = program(&[&["eval", "--json"], &flags[..], own].concat());
        assert!(said.is_success(), "{}", said.err);
        (serde_json::from_str(&said.out).unwrap(), said.err)
    };
    let own = ["--train-on", "all", "--max-length", "40"];
    let (expected, _) = eval(&own);
    let (plain, told) = eval(&[]);
    assert!(told.contains("has no settings of a run"), "{told}");
    fs::write(
        adapter.join("run.toml"),
        "quantization = \"none\"\ntrain_on = \"all\"\nmax_length = 40\n",
    )
    .unwrap();
    let (found, told) = eval(&[]);
    assert_eq!(found, expected);
    let line = "read them: --max-length 40 --train-on all --thinking keep";
    assert!(told.contains(line), "{told}");
    let (found, told) = eval(&["--train-on", "assistant", "--max-length", "1024"]);
    assert_eq!(found, plain);
    let line = "; by flags: --max-length 1024 --train-on assistant";
    assert!(told.contains(line), "{told}");
    // The same of the losses that a merge prints.
    let merge = |output: &str, own: &[&str]| {
        let output = folder.path().join(output);
        let output = ["--output", text_of(&output)];
        succeed(&[&["merge"], &flags[..], &output, own].concat())
    };
    for (output, own, measured) in [
        ("run", &[][..], &expected),
        (
            "flags",
            &["--train-on", "assistant", "--max-length", "1024"],
            &plain,
        ),
    ] {
        let loss = measured["loss"].as_f64().unwrap();
        let line = format!("  base, with the adapter        {loss:.4}");
        let said = merge(output, own);
        assert!(said.contains(&line), "expected {line:?} in: {said}");
    }
    let output = folder.path().join("none");
    refuse(
        &[
            "merge",
            "--adapter",
            "a",
            "--output",
            text_of(&output),
            "--train-on",
            "all",
        ],
        &["--data"],
    );
}

#[test]
fn names_of_fields_that_only_the_run_had_are_said_to_be_its_names() {
    let folder = TempDir::new().unwrap();
    let adapter = adapter(folder.path());
    fs::write(
        adapter.join("run.toml"),
        "columns = [\"prompt=question\", \"completion=answer\", \"system=context\"]\n",
    )
    .unwrap();
    let data = folder.path().join("d.jsonl");
    let output = folder.path().join("merged");
    let eval = ["eval", "--data", text_of(&data)];
    let merge = [&["merge", "--output", text_of(&output)], &eval[1..]].concat();
    let adapter = ["--adapter", text_of(&adapter)];
    for (record, found, columns) in [
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            "found `messages`; --columns prompt=question,completion=answer,system=context names a field that is not there",
            "messages=messages",
        ),
        (
            r#"{"question": "a", "response": "b"}"#,
            "field `answer`: expected text, found nothing",
            "prompt=question,completion=response",
        ),
        (
            r#"{"question": "a", "answer": "b"}"#,
            "--columns: expected fields that a record has, found `system=context`",
            "prompt=question,completion=answer",
        ),
    ] {
        fs::write(&data, format!("{record}\n")).unwrap();
        let noted = "run.toml (`columns`: prompt=question,completion=answer,system=context): --columns names the fields of this data";
        fail(&[&eval[..], &adapter].concat(), &[found, noted]);
        fail(&[&merge[..], &adapter].concat(), &[found, noted]);
        succeed(&[&eval[..], &adapter, &["--columns", columns]].concat());
    }
    // What has nothing to do with the names is said without them.
    fs::write(
        &data,
        "{\"question\": \"a\", \"answer\": 3, \"context\": \"c\"}\n",
    )
    .unwrap();
    let said = program(&[&eval[..], &adapter].concat());
    assert!(said.err.contains("found the number 3"), "{}", said.err);
    assert!(!said.err.contains("run.toml ("), "{}", said.err);
}

#[test]
fn the_means_are_those_of_the_logits() {
    let mut config = Config::new("");
    config.model.model = Some(text_of(&data_folder().join("model")).to_owned());
    config.data.train = vec![data_folder().join("eval.jsonl")];
    let format = ChatFormat::load(&config).unwrap();
    let examples = Dataset::of(&config, &format).unwrap().examples;
    let options = LoadOptions::default();
    let mut model =
        QwenModel::load(&data_folder().join("model"), &options, &Device::flex()).unwrap();
    model.set_compute_dtype(ComputeDtype::F32);
    let (mut loss, mut entropy, mut num_right, mut num_tokens) = (0.0, 0.0, 0, 0);
    for example in examples.iter().map(Result::unwrap) {
        let len = example.tokens.len();
        let positions: Vec<u32> = (0..len as u32).collect();
        let mut attention = CausalAttention::new(&[len]);
        let base = AdapterSelection::Base;
        let hidden = model.forward(&example.tokens, &positions, &base, &mut attention);
        let logits: Vec<f32> = model.logits(hidden).into_data().iter().collect();
        let rows = logits.chunks(logits.len() / len);
        let targets = example.tokens.iter().zip(&example.mask).skip(1);
        for (row, (&target, _)) in rows.zip(targets).filter(|(_, (_, learnt))| **learnt) {
            let row: Vec<f64> = row.iter().map(|logit| f64::from(*logit)).collect();
            let largest = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
            let log_probs: Vec<f64> = row.iter().map(|x| x - largest - sum.ln()).collect();
            loss -= log_probs[target as usize];
            entropy -= log_probs.iter().map(|x| x.exp() * x).sum::<f64>();
            num_right += usize::from(row[target as usize] == largest);
            num_tokens += 1;
        }
    }
    let measured = measure(&model, &examples, None, 3).unwrap();
    assert_eq!(measured.num_tokens, num_tokens);
    let mean = |sum: f64| sum / num_tokens as f64;
    assert!((measured.loss - mean(loss)).abs() < 1e-4, "{measured:?}");
    assert!(
        (measured.entropy - mean(entropy)).abs() < 1e-4,
        "{measured:?}"
    );
    assert!((measured.accuracy - mean(num_right as f64)).abs() < 1e-9);
    let error = measure(&model, &Examples::default(), None, 3).unwrap_err();
    assert!(
        error.to_string().contains("found none in 0 examples"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_with_more_ids_than_embeddings_is_refused() {
    let folder = TempDir::new().unwrap();
    copy(&data_folder().join("model"), folder.path());
    edit(&folder.path().join("tokenizer.json"), |file| {
        let token = json!({"id": 8192, "content": "<tool>", "special": false, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false});
        file["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let data = folder.path().join("d.jsonl");
    std::fs::write(
        &data,
        "{\"prompt\": \"a <tool> b\", \"completion\": \"c\"}\n",
    )
    .unwrap();
    let model = ["--model", text_of(folder.path())];
    let expected = "the tokenizer has the token \"<tool>\" with the id 8192, and the model only 8192 embeddings";
    fail(
        &[&["eval", "--data", text_of(&data)][..], &model].concat(),
        &[expected],
    );
}
