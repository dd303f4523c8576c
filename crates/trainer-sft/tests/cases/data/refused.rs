//! What is refused, and what is said of it.

use std::io::Write as _;

use super::*;

#[test]
fn records_without_an_end_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // A kilobyte for each megabyte.
    let packed = |begin: &str| {
        let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        file.write_all(begin.as_bytes()).unwrap();
        for _ in 0..100 {
            file.write_all(&[b'a'; 1 << 20]).unwrap();
        }
        file.finish().unwrap()
    };
    for (name, begin) in [
        ("a.jsonl.gz", "{\"text\": \""),
        ("a.json.gz", "[{\"text\": \""),
        ("a.csv.gz", "text\n\""),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, packed(begin)).unwrap();
        let said = program(&["--data", text_of(&path), "--preview"]);
        let expected = "expected records of at most 64 MiB, found a longer one";
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{name}: {}",
            said.err
        );
    }
}

#[test]
fn ten_malformed_records_are_shown() {
    let bad = json!({"prompt": "a", "completion": 5});
    let good = json!({"prompt": "a", "completion": "b"});
    let three = [good.clone(), bad.clone(), good, bad.clone()];
    let said = preview(&three, &[]);
    assert!(
        said.err.contains("the data has 2 malformed records:\n"),
        "{}",
        said.err
    );
    let first = "t.jsonl:2: field `completion`: expected text, found the number 5; the same at ";
    assert!(said.err.contains(first), "{}", said.err);
    assert!(said.err.contains("t.jsonl:4"), "{}", said.err);
    // A reason that all have is said once.
    let said = preview(&vec![bad; 30], &[]);
    assert!(said.err.contains("the first 10 are:"), "{}", said.err);
    assert_eq!(said.err.matches("field `completion`").count(), 1);
    assert!(
        said.err.contains("t.jsonl:2, 3, 4, 5, 6, 7, 8, 9, 10"),
        "{}",
        said.err
    );
    let each = |number: usize| json!({"prompt": "a", "completion": number});
    let said = preview(&(0..30).map(each).collect::<Vec<_>>(), &[]);
    assert_eq!(said.err.matches("field `completion`").count(), 10);
}

#[test]
fn what_a_record_is_instead_is_said() {
    let one = json!({"prompt": "Hi?", "completion": "A"});
    let judged = json!({"prompt": "Hi?", "response": "A", "is_safe": true});
    let two = json!({"context": [{"role": "user", "content": "Hi?"}], "response1": "A", "response2": "B", "overall_preference": -1});
    let ranked = json!({"prompt": "Hi?", "answers": [{"answer": "A", "rank": 1}], "turns": 1});
    let calls = json!({"query": "Hi?", "answers": "[{\"name\": \"look\", \"arguments\": {}}]"});
    let table = "a table by its columns: write one record per line";
    for (record, method, expected) in [
        (
            json!({"data": [one]}),
            "sft",
            "the records are inside `data`: write each on a line of its own, for example with `jq -c '.data[]'`",
        ),
        (
            json!({"train": [one], "test": []}),
            "sft",
            "the records are inside `train`",
        ),
        (
            json!({"rows": [{"row_idx": 0, "row": one}]}),
            "sft",
            "with `jq -c '.rows[].row'`",
        ),
        (
            json!({"data": [one]}),
            "dpo",
            "the records are inside `data`",
        ),
        (
            json!({"prompt": {"0": "Hi?", "1": "Ho?"}, "completion": {"0": "A", "1": "B"}}),
            "sft",
            table,
        ),
        (
            json!({"prompt": ["Hi?", "Ho?"], "completion": ["A", "B"]}),
            "sft",
            table,
        ),
        (
            judged,
            "kto",
            "--columns says which field is `prompt`, `completion` and `label`, or",
        ),
        (
            two.clone(),
            "sft",
            "two answers, `response1` and `response2`: write the better one as `chosen`",
        ),
        (two, "dpo", "two answers, `response1` and `response2`"),
        (ranked, "sft", "field `completion`: expected text, found"),
        (
            calls,
            "sft",
            "expected text; calls are learnt in `messages`",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &["--method", method]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
}
