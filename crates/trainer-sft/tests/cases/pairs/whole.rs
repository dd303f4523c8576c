//! Prompts beside whole conversations, and pairs that compare nothing.

use super::*;

/// The prompt that stands beside whole conversations is one of their turns, and no second one.
#[test]
fn a_prompt_beside_whole_conversations_is_written_once() {
    let system = json!({"role": "system", "content": "A pirate."});
    let expected = shown(&json!({"prompt": "Capital?", "chosen": PARIS, "rejected": ROME}));
    let of_pirate =
        json!({"system": "A pirate.", "prompt": "Capital?", "chosen": PARIS, "rejected": ROME});
    let of_pirate = shown(&of_pirate);
    for (record, expected) in [
        (
            json!({"prompt": "Capital?", "chosen": [user("Capital?"), says(PARIS)], "rejected": [user("Capital? "), says(ROME)]}),
            &expected,
        ),
        (
            json!({"prompt": "Capital?\n", "chosen": [user("Capital?"), says(PARIS)], "rejected": [says(ROME)]}),
            &expected,
        ),
        (
            json!({"prompt": "Capital?", "chosen": PARIS, "rejected": [user("Capital?"), says(ROME)]}),
            &expected,
        ),
        (
            json!({"prompt": [user("Capital?")], "chosen": [user("Capital?"), says(PARIS)], "rejected": ROME}),
            &expected,
        ),
        (
            json!({"prompt": "Capital?", "chosen": [system, user("Capital?"), says(PARIS)], "rejected": ROME}),
            &of_pirate,
        ),
        (
            json!({"prompt": "Capital?", "chosen": [system, user("Capital?"), says(PARIS)],
                "rejected": [system, user("Capital? "), says(ROME)]}),
            &of_pirate,
        ),
        (
            json!({"prompt": [system, user("Capital?")], "chosen": [user("Capital?"), says(PARIS)], "rejected": ROME}),
            &of_pirate,
        ),
    ] {
        assert_eq!(shown(&record), *expected, "{record}");
    }
    let own = json!({"prompt": "Q", "chosen": [system, user("Q"), says("A")], "rejected": [user("Q"), says("B")]});
    let other = json!({"prompt": "Q", "chosen": [user("R"), says("A")], "rejected": "B"});
    let completion = json!({"prompt": "Q", "completion": [user("R"), says("A")]});
    let verdict = json!({"prompt": "Q", "completion": [user("R"), says("A")], "label": true});
    for (record, method, expected) in [
        (
            own,
            "dpo",
            "field `rejected`: expected the turns that `chosen` has before the answer",
        ),
        (
            other,
            "dpo",
            "field `prompt`: expected the text of a turn with which both answers begin",
        ),
        (
            completion,
            "sft",
            "field `prompt`: expected the text of a turn in `completion`, which has a question of its own",
        ),
        (
            verdict,
            "kto",
            "field `prompt`: expected the text of a turn in `completion`",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &["--method", method]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
    for (prompt, completion, learns) in [
        (json!("Q "), json!([user("Q"), says("A")]), "A<|im_end|>"),
        (
            json!([user("Q")]),
            json!([system, user("Q"), says("A")]),
            "A<|im_end|>",
        ),
        (
            json!([user("Q"), says("A")]),
            json!([user("R"), says("B")]),
            "B<|im_end|>",
        ),
        (
            json!([system]),
            json!([user("R"), says("B")]),
            "B<|im_end|>",
        ),
    ] {
        for (method, label) in [("sft", Value::Null), ("kto", json!(true))] {
            let record = json!({"prompt": prompt, "completion": completion, "label": label});
            let no = json!({"prompt": "Q", "completion": "N", "label": (method == "kto").then_some(false)});
            let said = preview(&[record, no], &["--method", method]);
            assert_eq!(
                learnt(&said),
                [learns, "N<|im_end|>"],
                "{prompt} {completion}"
            );
            let questions = said.out.matches("<|im_start|>|us|er|").count();
            assert_eq!(
                questions,
                1 + usize::from(learns == "B<|im_end|>" && prompt[0]["role"] == "user") + 1
            );
        }
    }
}

/// As in Capybara.
#[test]
fn pairs_of_input_and_output_are_turns() {
    let pairs = json!([{"input": "Hi?", "output": "A"}, {"input": "And?", "output": "B"}]);
    let turns = json!([user("Hi?"), says("A"), user("And?"), says("B")]);
    let said = preview(&[json!({"conversation": pairs})], &[]);
    let expected = preview(&[json!({"messages": turns})], &[]);
    assert_eq!(learnt(&said), learnt(&expected));
    let other = json!([user("Hi?"), says("A"), user("And?"), says("C")]);
    let pair = json!({"conversation": pairs, "chosen": turns, "rejected": other});
    let expected = shown(&json!({"chosen": turns, "rejected": other}));
    assert_eq!(shown(&pair), expected);
}

#[test]
fn a_verdict_without_a_value_is_left_out() {
    let record = |label: Value| json!({"prompt": "Hi?", "completion": "A", "label": label});
    let said = preview(
        &[
            record(json!(true)),
            record(Value::Null),
            record(json!(false)),
        ],
        &["--method", "kto"],
    );
    assert_eq!(learnt(&said), ["A<|im_end|>", "A<|im_end|>"]);
    assert!(
        said.err.contains("t.jsonl:2: `label` is empty"),
        "{}",
        said.err
    );
}

#[test]
fn pairs_that_are_the_same_after_the_cut_are_left_out() {
    let long = |end: &str| format!("{}{end}", "same ".repeat(60));
    let cut = json!({"prompt": "p", "chosen": long("x"), "rejected": long("y")});
    let equal = json!({"prompt": "p", "chosen": "A", "rejected": "A<|im_end|>"});
    let good = json!({"prompt": "p", "chosen": "A", "rejected": "B"});
    let said = preview(
        &[good, cut, equal],
        &["--method", "dpo", "--max-length", "40"],
    );
    assert_eq!(learnt(&said), ["A<|im_end|>", "B<|im_end|>"]);
    for expected in [
        "t.jsonl:2: its two answers are the same within --max-length 40",
        "t.jsonl:3: its two answers have the same tokens",
    ] {
        assert!(said.err.contains(expected), "{}", said.err);
    }
}
