//! `trainer-sft eval`.

use serde_json::Value;
use tempfile::TempDir;

use super::{adapter, data_folder, fail, succeed, text_of};

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
    fail(
        &["eval", "--data", text_of(&file), "--batch-size", "0"],
        &["--batch-size", "1 or more"],
    );
}
