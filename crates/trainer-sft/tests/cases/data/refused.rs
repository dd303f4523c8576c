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

#[test]
fn masks_and_media_beside_the_text_are_refused() {
    let chat = messages(&[("user", "a"), ("assistant", "b")]);
    let with = |key: &str, value: Value| {
        let mut record = chat.clone();
        record[key] = value;
        preview(&[record], &[])
    };
    for (key, value) in [
        ("loss_mask", json!([0, 1])),
        ("mask", json!([[1, 0]])),
        ("assistant_masks", json!("[0, 1]")),
        ("labels", json!([-100, 5])),
        ("image_url", json!("https://example.org/a")),
        ("audio_path", json!("a.wav")),
        ("img_path", json!("a")),
        ("pixel_values", json!([[0.5]])),
        ("file", json!("a/B.PNG")),
    ] {
        let said = with(key, value);
        assert!(!said.is_success(), "{key}: {}", said.out);
        assert!(
            said.err.contains(&format!("`{key}`")),
            "{key}: {}",
            said.err
        );
    }
    for (key, value) in [
        ("loss_mask", json!([1, 1.0, true])),
        ("mask", json!(null)),
        ("labels", json!([3, 27])),
        ("labels", json!("sport")),
        ("file", json!("src/main.rs")),
        ("image_url", json!("")),
    ] {
        let said = with(key, value);
        assert!(said.is_success(), "{key}: {}", said.err);
    }
}

/// The form is named, and what to do about it.
#[test]
fn preference_data_of_other_forms_is_named() {
    let mut judged = messages(&[("user", "a"), ("assistant", "b")]);
    judged["label"] = true.into();
    let mut swift = messages(&[("user", "a"), ("assistant", "b")]);
    swift["rejected_response"] = "c".into();
    for (record, expected) in [
        (
            judged,
            "these are judged answers, which --method kto learns from",
        ),
        (swift, "the last turn of `messages` as `chosen`"),
    ] {
        let said = preview(&[record], &["--method", "dpo"]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{}",
            said.err
        );
    }
}

#[test]
fn what_a_file_is_instead_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let old = b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1";
    for (name, content, expected) in [
        (
            "a.jsonl",
            b"<!DOCTYPE html><html>\n".as_slice(),
            "this is a page in HTML or XML",
        ),
        (
            "b.jsonl",
            b"{'prompt': 'a', 'completion': 'b'}\n",
            "a record as Python prints it",
        ),
        (
            "c.jsonl",
            br#"{"text": "\ud83d"}"#,
            "an escape of half a character",
        ),
        (
            "d.csv",
            b"prompt\tcompletion\na\tb\n",
            "a table with tabs: name its file .tsv",
        ),
        (
            "e.jsonl",
            b"{\"data\": [\n{\"text\": \"a\"}]}\n",
            "jq '.data'",
        ),
        ("f.xlsx", b"PK\x03\x04....", "save it as \"CSV UTF-8\""),
        (
            "g.jsonl",
            b"PK\x03\x04....[Content_Types].xml",
            "save it as \"CSV UTF-8\"",
        ),
        ("h.xls", old, "save it as \"CSV UTF-8\""),
        ("i.zip", b"PK\x03\x04....", "unpack it with `unzip`"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let said = program(&["--data", text_of(&path), "--preview"]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{name}: {}",
            said.err
        );
    }
}
