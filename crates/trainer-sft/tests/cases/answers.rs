//! Answers and questions that say nothing, and what the template writes around messages itself.

use super::*;

const GULL: &str = "A gull.<|im_end|>";

fn good() -> Value {
    json!({"prompt": "A bird?", "completion": "A gull."})
}

#[test]
fn an_answer_that_is_only_an_end_is_empty() {
    let prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n";
    for empty in [
        json!({"instruction": "Q", "input": "", "output": "<|im_end|>"}),
        json!({"prompt": "Q", "completion": "<|endoftext|>\n"}),
        json!({"prompt": prompt, "completion": "<|im_end|>\n"}),
        messages(&[("user", "Q"), ("assistant", "<|im_end|><|endoftext|>")]),
    ] {
        let said = preview(&[empty.clone(), good()], &[]);
        assert_eq!(learnt(&said), [GULL], "{empty}");
        let expected = "1 of 2 records teach nothing and are left out; the first is ";
        assert!(said.err.contains(expected), "{}", said.err);
        let expected = "its answer is nothing but a token that ends it";
        assert!(said.err.contains(expected), "{}", said.err);
    }
    // Within a chat it is only context.
    let chat = messages(&[
        ("user", "Q"),
        ("assistant", "<|im_end|>"),
        ("user", "A bird?"),
        ("assistant", "A gull."),
    ]);
    assert_eq!(learnt(&preview(&[chat], &[])), [GULL]);
    let pairs = [
        json!({"prompt": "A bird?", "chosen": "A gull.", "rejected": "<|endoftext|>"}),
        json!({"prompt": "A bird?", "chosen": "A gull.", "rejected": "A gull!"}),
    ];
    let said = preview(&pairs, &["--method", "dpo"]);
    assert_eq!(learnt(&said), [GULL, "A gull!<|im_end|>"]);
    let judged = [
        json!({"prompt": "A bird?", "completion": "<|im_end|>", "label": true}),
        json!({"prompt": "A bird?", "completion": "A gull.", "label": true}),
    ];
    let said = preview(&judged, &["--method", "kto"]);
    assert_eq!(learnt(&said), [GULL]);
}

#[test]
fn a_completion_that_has_the_question_needs_no_prompt() {
    let completion = messages(&[("user", "A bird?"), ("assistant", "A gull.")])["messages"].take();
    for prompt in [json!(""), json!(" "), Value::Null, json!([])] {
        let mut record = json!({"prompt": prompt, "completion": completion});
        for method in ["sft", "kto"] {
            if method == "kto" {
                record["label"] = true.into();
            }
            let said = preview(std::slice::from_ref(&record), &["--method", method]);
            assert_eq!(learnt(&said), [GULL], "{record}");
        }
    }
}

#[test]
fn a_completion_that_ends_with_the_question_is_left_out() {
    let record = json!({"prompt": "Q", "completion": [{"role": "user", "content": "Q"}]});
    let said = preview(&[record, good()], &[]);
    assert_eq!(learnt(&said), [GULL]);
    let expected = "`completion` has no answer of the assistant";
    assert!(said.err.contains(expected), "{}", said.err);
}

/// `check` of records for GRPO.
fn asked(model: &Path, records: &[Value]) -> Said {
    let path = model.join("asked.jsonl");
    let lines: Vec<String> = records.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&path, lines.concat()).unwrap();
    let flags = ["--method", "grpo", "--reward", "exact_match"];
    program(
        &[
            &["check", text_of(&path), "--model", text_of(model)],
            &flags[..],
        ]
        .concat(),
    )
}

#[test]
fn prompts_have_one_end_and_one_wrapper_too() {
    let model = with_tools();
    let of = |answer: &str, result: &str| {
        let mut record = messages(&[("user", "Q"), ("assistant", answer), ("tool", result)]);
        record["answer"] = "1".into();
        let said = asked(model.path(), &[record]);
        assert!(said.is_success(), "{}", said.err);
        said.out
    };
    let plain = of("A", "x");
    let text = plain.replace('|', "");
    assert_eq!(text.matches("tool_response").count(), 2, "{plain}");
    let marked = of("A<|endoftext|>", "<tool_response>\nx\n</tool_response>");
    assert_eq!(marked, plain);
}

#[test]
fn a_prompt_with_an_empty_question_is_left_out() {
    let model = with_tools();
    let empty = json!({"messages": [{"role": "user", "content": ""}], "answer": "A"});
    let said = asked(
        model.path(),
        &[empty, json!({"prompt": "Q", "answer": "A"})],
    );
    let expected = "`messages` ends with a question that is empty";
    assert!(said.out.contains(expected), "{}{}", said.out, said.err);
}
