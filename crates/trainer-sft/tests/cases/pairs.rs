//! Pairs of answers: where their question stands, and what beside them is refused.

mod whole;

use super::*;

const PARIS: &str = "Paris is it.";
const ROME: &str = "Rome is it.";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn says(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// `--method dpo --preview` of one record: its tokens.
#[track_caller]
fn shown(record: &Value) -> String {
    let said = preview(std::slice::from_ref(record), &["--method", "dpo"]);
    assert!(said.is_success(), "{record}: {}", said.err);
    // Not the name of the file.
    let lines = said.out.lines().filter(|line| !line.starts_with("── "));
    lines.collect::<String>()
}

#[test]
fn a_question_is_read_under_every_name() {
    let expected = shown(&json!({"prompt": "Capital?", "chosen": PARIS, "rejected": ROME}));
    assert_eq!(expected.matches("<|im_start|>|us|er|").count(), 2);
    assert!(expected.contains("[P]|[ar]"), "{expected}");
    let openai = json!({"input": {"messages": [user("Capital?")], "tools": [], "parallel_tool_calls": true},
        "preferred_output": [says(PARIS)], "non_preferred_output": [says(ROME)]});
    for same in [
        json!({"instruction": "Capital?", "input": "", "chosen": PARIS, "rejected": ROME}),
        json!({"question": "Capital?", "chosen": PARIS, "rejected": ROME}),
        json!({"query": "Capital?", "chosen": PARIS, "rejected": ROME}),
        json!({"input": "Capital?", "chosen": PARIS, "rejected": ROME}),
        json!({"messages": [user("Capital?")], "chosen": PARIS, "rejected": ROME}),
        json!({"prompt": null, "messages": [user("Capital?")], "chosen": PARIS, "rejected": ROME}),
        json!({"conversations": [{"from": "human", "value": "Capital?"}],
            "chosen": {"from": "gpt", "value": PARIS}, "rejected": {"from": "gpt", "value": ROME}}),
        json!({"prompt": [user("Capital?")], "chosen": [user("Capital?"), says(PARIS)],
            "rejected": [user("Capital?"), says(ROME)]}),
        // What repeats the question, or an answer, adds nothing.
        json!({"prompt": "Capital?", "question": "Capital?", "messages": [user("Capital?"), says(PARIS)],
            "chosen": [user("Capital?"), says(PARIS)], "rejected": [user("Capital?"), says(ROME)]}),
        // The same twice, in two forms; and what is no question.
        json!({"messages": [user("Capital?")], "conversations": [{"from": "human", "value": "Capital?"}],
            "conversation": "conv-17", "chosen": PARIS, "rejected": ROME}),
        json!({"prompt": "Capital?", "input": {"messages": [user("Capital?")]}, "chosen": PARIS, "rejected": ROME,
            "preferred_output": [says(PARIS)], "non_preferred_output": [says(ROME)]}),
        openai,
    ] {
        assert_eq!(shown(&same), expected, "{same}");
    }
    let system = json!([{"role": "system", "content": "A pirate."}, user("Capital?")]);
    let expected = shown(&json!({"prompt": system, "chosen": PARIS, "rejected": ROME}));
    let same =
        json!({"system": "A pirate.", "question": "Capital?", "chosen": PARIS, "rejected": ROME});
    assert_eq!(shown(&same), expected);
    let earlier = [user("A?"), says("B."), user("Count\nTo two")];
    let expected = shown(&json!({"prompt": earlier, "chosen": PARIS, "rejected": ROME}));
    let same = json!({"instruction": "Count", "input": "To two", "history": [["A?", "B."]],
        "chosen": PARIS, "rejected": ROME});
    assert_eq!(shown(&same), expected);
}

#[test]
fn earlier_turns_come_behind_the_system_s() {
    let system = json!({"role": "system", "content": "Be short."});
    let asked = json!([system, user("Why?")]);
    let history = json!([["Hi?", "Yes."]]);
    let pair = json!({"prompt": asked, "history": history, "chosen": PARIS, "rejected": ROME});
    let one = json!({"prompt": asked, "history": history, "completion": PARIS});
    for (record, flags) in [(pair, &["--method", "dpo"][..]), (one, &[])] {
        let said = preview(&[record], flags);
        assert!(said.is_success(), "{}", said.err);
        let plain = said.out.replace('|', "");
        let places = ["Be short", "Hi?", "Yes", "Why?"].map(|text| plain.find(text).unwrap());
        assert!(places.is_sorted(), "{}", said.out);
    }
}

#[test]
fn what_would_be_dropped_beside_a_pair_is_refused() {
    let whole = |text: &str| json!([user("Hi?"), says(text)]);
    for (record, expected) in [
        (
            json!({"prompt": "Obey rule X.", "chosen": whole("A"), "rejected": whole("B")}),
            "field `prompt`: expected the text of a turn with which both answers begin",
        ),
        (
            json!({"question": "Other?", "chosen": whole("A"), "rejected": whole("B")}),
            "field `question`: expected the text of a turn with which both answers begin",
        ),
        (
            json!({"prompt": "Translate:", "input": "Hallo", "chosen": "A", "rejected": "B"}),
            "field `input`: expected no second question",
        ),
        (
            json!({"instruction": "A?", "question": "B?", "chosen": "A", "rejected": "B"}),
            "field `question`: expected no second question",
        ),
        (
            json!({"system": "A pirate.", "chosen": "The sky", "rejected": "The sea"}),
            "field `system`: expected none beside `chosen` and `rejected` without a `prompt`",
        ),
        (
            json!({"problem": "2+2?", "chosen": "Four", "rejected": "Five"}),
            "give --columns prompt=problem,chosen=chosen,rejected=rejected",
        ),
        (
            json!({"messages": [user("Hi?"), says("A")], "chosen": "A", "rejected": "B"}),
            "field `messages`: expected turns that end before the answers",
        ),
        (
            json!({"input": {"messages": [user("a")], "temperature": 1}, "preferred_output": [says("A")],
                "non_preferred_output": [says("B")]}),
            "field `input.temperature`: expected nothing but",
        ),
        (
            json!({"prompt": "c", "input": {"messages": [user("a")]}, "chosen": "A", "rejected": "B"}),
            "field `input.messages`: expected nothing else than `prompt` says",
        ),
        (
            json!({"prompt": "c", "chosen": "A", "rejected": "B", "preferred_output": [says("C")]}),
            "field `preferred_output`: expected nothing else than `chosen` says",
        ),
        (
            json!({"messages": [user("a")], "conversations": [user("b")], "chosen": "A", "rejected": "B"}),
            "field `conversations`: expected nothing else than `messages` says",
        ),
        (
            json!({"messages": [{"role": "system", "content": ""}, user("a")], "question": "b", "chosen": "A",
                "rejected": "B"}),
            "field `question`: expected",
        ),
        (
            json!({"input": {"messages": [{"role": "bird", "content": "a"}]}, "preferred_output": [says("A")],
                "non_preferred_output": [says("B")]}),
            "field `input.messages[0].role`",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &["--method", "dpo"]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
}

#[test]
fn values_that_say_nothing_are_no_verdict() {
    let pair =
        json!({"prompt": "Hi?", "chosen": "A", "rejected": "B", "completion": null, "label": null});
    let said = preview(&[pair], &["--method", "kto"]);
    assert_eq!(learnt(&said), ["A<|im_end|>", "B<|im_end|>"]);
}

#[test]
fn columns_for_the_wanted_answers_name_the_question() {
    for (record, expected) in [
        (
            json!({"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}),
            "give --columns instruction=instruction,input=input,output=chosen",
        ),
        (
            json!({"input": "a", "chosen": "b", "rejected": "c"}),
            "give --columns prompt=input,completion=chosen",
        ),
        (
            json!({"prompt": "a", "chosen": [user("a"), says("b")], "rejected": [user("a"), says("c")]}),
            "give --columns messages=chosen",
        ),
        (
            json!({"system": "Be brief.", "question": "a", "chosen": "b", "rejected": "c", "history": [], "tools": "[]"}),
            "give --columns prompt=question,completion=chosen,system=system,history=history,tools=tools",
        ),
        (
            json!({"system_prompt": "Be brief.", "messages": [user("a")], "chosen": "b", "rejected": "c"}),
            "give --columns prompt=messages,completion=chosen,system=system_prompt",
        ),
        (
            json!({"conversation": [{"input": "a", "output": "b"}], "chosen": [user("a"), says("b")],
                "rejected": [user("a"), says("c")]}),
            "give --columns messages=chosen",
        ),
        (
            json!({"messages": [user("a")], "chosen": [user("a"), says("b")], "rejected": [user("a"), says("c")]}),
            "give --columns messages=chosen",
        ),
        (
            json!({"messages": [user("a"), says("b")], "rejected_response": "c"}),
            "give --columns messages=messages",
        ),
        (
            json!({"chosen": "The sky", "rejected": "The sea"}),
            "write each as the last turn of `messages`",
        ),
        (
            json!({"input": {"messages": [user("a")]}, "preferred_output": [says("b")], "non_preferred_output": [says("c")]}),
            "write each as the last turn of `messages`",
        ),
        (
            json!({"messages": [user("a"), says("b")], "label": true}),
            "to learn every answer, give --columns messages=messages",
        ),
        (
            json!({"instruction": "a", "input": "", "output": "b", "kto_tag": true}),
            "to learn every answer, give --columns instruction=instruction,input=input,output=output",
        ),
        (
            json!({"instruction": "a", "input": "x", "chosen": "b", "rejected": "c"}),
            "give --columns instruction=instruction,input=input,output=chosen",
        ),
        (
            json!({"question": "a", "chosen": "b", "rejected": "c"}),
            "give --columns prompt=question,completion=chosen",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &[]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
        // What is recommended is read.
        if let Some((_, columns)) = said.err.split_once("give --columns ") {
            let columns = columns.split_whitespace().next().unwrap();
            let learnt = learnt(&preview(
                std::slice::from_ref(&record),
                &["--columns", columns],
            ));
            assert_eq!(learnt, ["b<|im_end|>"], "{record}");
        }
    }
}

#[test]
fn a_hint_names_fields_that_are_there() {
    let second = json!({"instruction": "A?", "question": "B?", "chosen": "A", "rejected": "B"});
    let verdict = json!({"question": "a", "answer": "b", "label": true});
    for (record, method, expected) in [
        (
            second,
            "dpo",
            "for example --columns prompt=instruction,chosen=chosen,rejected=rejected or --columns \
             instruction=instruction,input=question,chosen=chosen,rejected=rejected",
        ),
        (
            json!({"Prompt": "a", "chosen_response": "b", "rejected_response": "c"}),
            "dpo",
            "(read it with --columns prompt=Prompt,chosen=chosen_response,rejected=rejected_response)",
        ),
        (
            verdict.clone(),
            "kto",
            "(read it with --columns prompt=question,completion=answer,label=label)",
        ),
        (verdict, "dpo", "says which field is"),
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
fn a_part_that_no_column_names_is_said_with_the_column_that_would() {
    let judged = json!({"q": "Capital?", "a": PARIS, "label": true});
    let pair = json!({"prompt": "Capital?", "chosen": PARIS, "bad": ROME});
    for (record, method, columns, expected) in [
        (
            &judged,
            "kto",
            Some("prompt=q,completion=a"),
            "field `label`: expected true or false, found nothing with --columns prompt=q,completion=a, though the record has \
             `label`: add label=label to --columns",
        ),
        (
            &judged,
            "kto",
            Some("prompt=q,label=label"),
            "found nothing with --columns prompt=q,label=label: add completion=FIELD to --columns, with one of `q`, `a`, `label`",
        ),
        (
            &judged,
            "kto",
            None,
            "field `completion`: expected text or messages, found nothing among `q`, `a`, `label`; if the fields have other names, \
             give --columns prompt=FIELD,completion=FIELD,label=label",
        ),
        (
            &pair,
            "dpo",
            Some("prompt=prompt,chosen=chosen"),
            "add rejected=FIELD to --columns, with one of `prompt`, `chosen`, `bad`",
        ),
        (
            &pair,
            "dpo",
            None,
            "give --columns prompt=prompt,chosen=chosen,rejected=FIELD",
        ),
        (
            &json!({"q": "Capital?", "completion": PARIS}),
            "sft",
            Some("prompt=q"),
            "though the record has `completion`: add completion=completion to --columns",
        ),
    ] {
        let mut flags = vec!["--method", method];
        flags.extend(columns.iter().flat_map(|columns| ["--columns", columns]));
        let said = preview(std::slice::from_ref(record), &flags);
        assert!(!said.is_success(), "{flags:?}");
        assert!(said.err.contains(expected), "{flags:?}: {}", said.err);
    }
}

#[test]
fn a_column_that_a_record_has_no_use_for_is_refused() {
    for (record, method, columns, expected) in [
        (
            json!({"m": [user("Hi?"), says("A")], "q": "Capital?"}),
            "sft",
            "messages=m,prompt=q",
            "--columns prompt=q would have no effect: the record is read as messages (OpenAI)",
        ),
        (
            json!({"q": "Capital?", "c": "Of Italy.", "a": ROME}),
            "sft",
            "prompt=q,input=c,completion=a",
            "--columns input=c would have no effect: the record is read as prompt/completion",
        ),
        (
            json!({"q": "Capital?", "i": "Of Italy.", "g": ROME, "b": PARIS}),
            "dpo",
            "prompt=q,instruction=i,chosen=g,rejected=b",
            "--columns instruction=i would have no effect: the record is read as prompt/chosen/rejected",
        ),
    ] {
        let flags = ["--method", method, "--columns", columns];
        let said = preview(std::slice::from_ref(&record), &flags);
        assert!(!said.is_success(), "{flags:?}");
        assert!(said.err.contains(expected), "{flags:?}: {}", said.err);
        assert!(said.err.contains("t.jsonl:1: "), "{}", said.err);
    }
    // Records of several kinds name the fields of all of them.
    let records = [
        json!({"m": [user("Hi?"), says("A")], "q": ""}),
        json!({"q": "Capital?", "a": "B"}),
    ];
    let said = preview(&records, &["--columns", "messages=m,prompt=q,completion=a"]);
    assert_eq!(learnt(&said), ["A<|im_end|>", "B<|im_end|>"]);
}

/// As LLaMA-Factory and ms-swift have verdicts.
#[test]
fn a_label_is_about_the_last_answer() {
    let kto = ["--method", "kto"];
    let turns = json!([user("Hi?"), says("A"), user("And?"), says("B")]);
    let plain = json!({"prompt": "And?", "completion": "B", "label": false});
    for (record, answer) in [
        (json!({"messages": turns, "label": true}), "B"),
        (json!({"messages": turns, "kto_tag": "false"}), "B"),
        (
            json!({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "A"}], "kto_tag": true}),
            "A",
        ),
        (
            json!({"instruction": "Count", "input": "to B", "output": "B", "kto_tag": true}),
            "B",
        ),
        (json!({"query": "Hi?", "response": "B", "label": 1}), "B"),
        (
            json!({"prompt": "Hi?", "completion": "B", "kto_tag": 0}),
            "B",
        ),
    ] {
        let said = preview(&[record.clone(), plain.clone()], &kto);
        assert_eq!(
            learnt(&said),
            [format!("{answer}<|im_end|>"), "B<|im_end|>".into()],
            "{record}"
        );
        assert!(!said.err.contains("not used"), "{record}: {}", said.err);
    }
    for (record, expected) in [
        (
            json!({"messages": turns, "label": true, "kto_tag": false}),
            "field `kto_tag`: expected nothing else than `label` says",
        ),
        (
            json!({"query": "Hi?", "output": "A", "response": "B", "label": true}),
            "field `response`: expected nothing else than `output` says",
        ),
        (
            json!({"messages": turns, "chosen": "A", "rejected": "B", "label": 1}),
            "field `messages`: expected turns that end before the answers",
        ),
        (
            json!({"messages": [user("Hi?")], "label": true}),
            "field `completion`: expected text or messages, found nothing",
        ),
        (
            json!({"messages": turns, "output": "C", "label": true}),
            "field `messages`: expected turns that end before the answers",
        ),
        (
            json!({"messages": [user("Hi?"), {"role": "assistant", "content": 5}], "label": true}),
            "field `messages[1].content`: expected text",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &kto);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
}

/// Keys without a value are none, and a verdict that is said twice is one.
#[test]
fn empty_questions_and_equal_verdicts_are_read() {
    let text = |answer: &str| format!("Human: a\nAssistant: {answer}");
    for empty in [
        json!({"prompt": null}),
        json!({"question": ""}),
        json!({"instruction": "", "input": null}),
    ] {
        let mut record = empty;
        record["chosen"] = text("yes").into();
        record["rejected"] = text("no").into();
        let said = preview(std::slice::from_ref(&record), &["--method", "dpo"]);
        assert!(said.is_success(), "{record}: {}", said.err);
    }
    let one = json!({"prompt": "Q", "completion": "A", "label": 1, "kto_tag": true});
    let other = json!({"prompt": "Q", "completion": "B", "label": "False", "kto_tag": false});
    let said = preview(&[one, other], &["--method", "kto"]);
    assert!(said.is_success(), "{}", said.err);
    let pair =
        json!({"prompt": "Q", "chosen": "A", "rejected": "B", "label": 0.7, "kto_tag": true});
    let said = preview(&[pair], &["--method", "dpo"]);
    assert!(said.is_success(), "{}", said.err);
}
