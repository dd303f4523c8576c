//! Tables: messages in cells, cells without a value, and places.

use super::*;

/// `--preview 99` of a table.
#[track_caller]
fn table(text: &str, flags: &[&str]) -> Said {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.csv");
    fs::write(&path, text).unwrap();
    program(&[&["--data", text_of(&path), "--preview", "99"], flags].concat())
}

/// A cell that holds JSON.
fn cell(value: &Value) -> String {
    format!("\"{}\"", value.to_string().replace('"', "\"\""))
}

#[test]
fn messages_in_cells_are_messages() {
    let user = cell(&json!([{"role": "user", "content": "Hi?"}]));
    let [good, bad] = ["Yes.", "No."].map(|text| json!({"role": "assistant", "content": text}));
    let [good, bad] = [cell(&json!([good])), cell(&bad)];
    let said = table(&format!("prompt,completion\n{user},{good}\n"), &[]);
    assert_eq!(learnt(&said), ["Yes.<|im_end|>"]);
    assert_eq!(said.out.matches("<|im_start|>").count(), 2, "{}", said.out);
    let pair = format!("prompt,chosen,rejected\n{user},{good},{bad}\n");
    let said = table(&pair, &["--method", "dpo"]);
    assert_eq!(learnt(&said), ["Yes.<|im_end|>", "No.<|im_end|>"]);
    assert_eq!(said.out.matches("<|im_start|>").count(), 4, "{}", said.out);
    // JSON that is no message stays a text.
    let said = table("prompt,completion\nHi?,\"[{\"\"a\"\": 1}]\"\n", &[]);
    assert!(learnt(&said)[0].contains("\"a\""), "{}", said.out);
    let said = table(
        "prompt,completion\n\"[{'role': 'user', 'content': 'Hi?'}]\",Yes\n",
        &[],
    );
    let expected = "field `prompt`: expected JSON, as `json.dumps` writes it, found messages as Python prints them";
    assert!(
        !said.is_success() && said.err.contains(expected),
        "{}",
        said.err
    );
}

/// Messages are read wherever a format has some, and what is wrong in them is named.
#[test]
fn cells_of_messages_are_never_texts() {
    let user = cell(&json!([{"role": "user", "content": "Hi?"}]));
    let yes = cell(&json!([{"role": "assistant", "content": "Yes."}]));
    let no = cell(&json!([{"role": "assistant", "content": "No."}]));
    for (text, flags) in [
        (
            format!("prompt,preferred_output,non_preferred_output\n{user},{yes},{no}\n"),
            &["--method", "dpo"][..],
        ),
        (
            format!("messages,completion,label\n{user},{yes},true\n{user},{no},false\n"),
            &["--method", "kto"],
        ),
        (
            // As Hugging Face merges objects.
            format!(
                "prompt,completion\n{},Yes.\n",
                cell(&json!([{"role": null, "content": null, "from": "human", "value": "Hi?"}]))
            ),
            &[],
        ),
    ] {
        let said = table(&text, flags);
        assert!(said.is_success(), "{text}: {}", said.err);
        let plain = said.out.replace('|', "");
        assert!(
            plain.contains("Yes") && !plain.contains("role"),
            "{text}: {}",
            said.out
        );
    }
    let said = table(
        &format!(
            "prompt,completion\n{},Yes.\n",
            cell(&json!([{"role": "Human", "content": "Hi?"}]))
        ),
        &[],
    );
    assert!(said.err.contains("prompt[0].role"), "{}", said.err);
    // Named columns are all that counts.
    let python = "\"[{'role': 'user', 'content': 'Hi?'}]\"";
    let chat =
        json!([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]);
    let said = table(
        &format!("messages,chosen\n{},{python}\n", cell(&chat)),
        &["--columns", "messages=messages"],
    );
    assert_eq!(learnt(&said), ["Yes.<|im_end|>"], "{}", said.err);
}

/// An answer may be JSON, and a column that nobody reads may hold anything.
#[test]
fn other_cells_stay_texts() {
    let list = cell(&json!([{"role": "assistant", "content": "hi"}]));
    let object = cell(&json!({"role": "engineer", "value": 3}));
    for answer in [&list, &object] {
        for header in ["prompt,completion", "instruction,output"] {
            let said = table(&format!("{header}\nAs JSON?,{answer}\n"), &[]);
            assert!(said.is_success(), "{answer}: {}", said.err);
            assert!(learnt(&said)[0].contains("role"), "{}", said.out);
        }
    }
    let python = "\"[{'role': 'user', 'content': 'Hi?'}]\"";
    let said = table(
        &format!("prompt,completion,metadata\nHi?,Yes.,{python}\n"),
        &[],
    );
    assert_eq!(learnt(&said), ["Yes.<|im_end|>"]);
    // By the names that the file has.
    let user = cell(&json!([{"role": "user", "content": "Hi?"}]));
    let columns = ["--columns", "prompt=q,completion=a"];
    let said = table(&format!("q,a\n{user},Yes.\n"), &columns);
    assert_eq!(learnt(&said), ["Yes.<|im_end|>"]);
    assert!(!said.out.contains("role"), "{}", said.out);
}

#[test]
fn empty_cells_and_json_in_cells_are_read() {
    for text in [
        "instruction,input,output,history\nHi,,one,[]\n",
        "prompt,completion,chat_template_kwargs\nHi,one,\n",
        "prompt,completion,chat_template_kwargs\nHi,one,\"{\"\"enable_thinking\"\": false}\"\n",
    ] {
        assert_eq!(learnt(&table(text, &[])), ["one<|im_end|>"], "{text}");
    }
    let said = table("prompt,completion,chat_template_kwargs\nHi,one,yes\n", &[]);
    let expected = "field `chat_template_kwargs`: expected an object, found \"yes\"";
    assert!(said.err.contains(expected), "{}", said.err);
}

#[test]
fn verdicts_in_cells_are_not_learnt_as_answers() {
    for label in ["True", "false", "1", "0"] {
        let said = table(
            &format!("prompt,completion,label\nWhat?,BAD,{label}\n"),
            &[],
        );
        let expected = "(KTO), recognised by `label`";
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{label}: {}",
            said.err
        );
    }
    // A class beside a text is none.
    assert!(table("text,label\nA ship at sea.,1\n", &[]).is_success());
}

#[test]
fn lines_are_counted_with_every_line_break() {
    let good = "Hi,one,";
    let bad = "Hi,two,x";
    for text in [
        format!("prompt,completion,weight\n{good}\n{good}\n{bad}\n{good}\n"),
        format!("prompt,completion,weight\n{good}\n{good}\n{bad}"),
        format!("prompt,completion,weight\n\n{good}\n{bad}\n"),
        format!("prompt,completion,weight\n\n\n{bad}"),
        format!("prompt,completion,weight\n\"a\nb\",one,\n{bad}"),
        format!("prompt,completion,weight\n\"a\nb\",one,\n{bad}\n"),
    ] {
        for text in ["\n", "\r\n", "\r"].map(|end| text.replace('\n', end)) {
            let said = table(&text, &[]);
            assert!(
                said.err.contains("t.csv:4: field `weight`"),
                "{text:?}: {}",
                said.err
            );
        }
    }
}

#[test]
fn a_column_without_a_name_is_told() {
    let said = table(",prompt,completion\n0,Hi,one\n", &[]);
    assert!(said.err.contains("not used: (no name)"), "{}", said.err);
}

#[test]
fn headers_that_cannot_be_read_are_named() {
    for (text, expected) in [
        (
            "prompt,completion,completion\nHi,one,two\n",
            "found `completion` twice",
        ),
        (
            ",,prompt,prompt,completion\n1,2,FIRST,SECOND,yes\n",
            "found `prompt` twice",
        ),
        (
            "prompt,completion\n",
            "or a table with rows below its header",
        ),
    ] {
        let said = table(text, &[]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{}",
            said.err
        );
    }
}

#[test]
fn cells_that_say_that_a_value_is_missing_are_counted() {
    let rows = "prompt,completion,note\nWho?,nan,x\nWhere?,None,x\nWhen?,Now.,nan\n";
    let said = table(rows, &[]);
    let expected =
        "2 of 3 records have a cell such as nan, None, NULL or N/A, which is read as that text";
    assert!(said.err.contains(expected), "{}", said.err);
    assert!(said.err.contains("t.csv:2"), "{}", said.err);
}
