//! Records: forms, and what teaches nothing.

mod refused;

use super::*;

#[test]
fn null_says_what_absence_says() {
    let row = |own: Value| {
        let mut row = json!({"messages": null, "conversations": null, "instruction": null, "input": null,
            "output": null, "prompt": null, "completion": null, "text": null});
        for (key, value) in own.as_object().unwrap() {
            row[key] = value.clone();
        }
        row
    };
    let said = preview(
        &[
            row(messages(&[("user", "Where?"), ("assistant", "At sea.")])),
            row(sharegpt(&[("human", "When?"), ("gpt", "Now.")])),
            row(json!({"instruction": "Count.", "output": "One."})),
            row(json!({"prompt": "Why?", "completion": "Wind."})),
            row(json!({"text": "A ship."})),
        ],
        &[],
    );
    let found = learnt(&said);
    assert_eq!(
        found[..4],
        [
            "At sea.<|im_end|>",
            "Now.<|im_end|>",
            "One.<|im_end|>",
            "Wind.<|im_end|>"
        ]
    );
    assert_eq!(found.len(), 5);
}

#[test]
fn records_that_teach_nothing_are_left_out_in_every_format() {
    let nothing = [
        json!({"instruction": "Draw.", "input": "", "output": ""}),
        json!({"instruction": "Draw.", "output": null}),
        json!({"prompt": "Draw.", "completion": "  "}),
        json!({"prompt": null, "completion": null}),
        json!({"prompt": null, "completion": "Unasked."}),
        json!({"prompt": "", "completion": "Unasked."}),
        json!({"instruction": "", "input": " ", "output": "Unasked."}),
        json!({"query": "", "response": "Unasked."}),
        json!({"query": "Draw.", "response": ""}),
        json!({"query": null, "response": null}),
        json!({"text": " "}),
        json!({"messages": []}),
        messages(&[("user", "Hello?")]),
        messages(&[("assistant", "Unasked.")]),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}),
        sharegpt(&[("human", "Hello?"), ("gpt", "")]),
        json!({"segments": [{"label": false, "text": "x"}]}),
        json!({"prompt": "a", "completion": "b", "weight": 0}),
    ];
    let good = json!({"prompt": "A bird?", "completion": "A gull."});
    for record in nothing {
        let said = preview(&[good.clone(), record.clone()], &[]);
        assert_eq!(learnt(&said), ["A gull.<|im_end|>"], "{record}");
        assert!(
            said.err
                .contains("WARN 1 of 2 records teach nothing and are left out; the first is")
                && said.err.contains("t.jsonl:2: "),
            "{record}: {}",
            said.err
        );
        let strict = preview(&[good.clone(), record.clone()], &["--strict"]);
        assert!(
            !strict.is_success() && strict.err.contains("t.jsonl:2: "),
            "{record}"
        );
        let alone = preview(&[record], &[]);
        assert!(!alone.err.contains("records of"), "{}", alone.err);
        assert!(
            alone.err.contains("nothing to learn") && alone.err.contains("t.jsonl:1: "),
            "{}",
            alone.err
        );
    }
}

#[test]
fn the_ends_of_a_conversation_that_teach_nothing_are_dropped() {
    let said = preview(
        &[
            sharegpt(&[("human", "One"), ("gpt", "Two."), ("human", "Thanks")]),
            sharegpt(&[("gpt", "Welcome."), ("human", "A pear"), ("gpt", "Here.")]),
            messages(&[("user", "Up"), ("assistant", "Down."), ("user", "Left")]),
        ],
        &[],
    );
    assert_eq!(
        learnt(&said),
        ["Two.<|im_end|>", "Here.<|im_end|>", "Down.<|im_end|>"]
    );
    assert!(!said.out.contains("Welcome") && !said.out.contains("Thanks"));
    assert!(
        said.err.contains("3 of 3 records lose turns"),
        "{}",
        said.err
    );
}

#[test]
fn columns_name_the_fields_of_other_data_sets() {
    for (record, flag) in [
        (
            json!({"question": "2+2?", "answer": "Four"}),
            "prompt=question,completion=answer",
        ),
        (
            json!({"instruction": "2+2?", "context": "Numbers.", "response": "Four", "category": "qa"}),
            "instruction=instruction,input=context,output=response",
        ),
        (
            json!({"prompt": "2+2?", "response": "Four"}),
            "prompt=prompt,completion=response",
        ),
        (
            json!({"Prompt": "2+2?", "Completion": "Four"}),
            "prompt=Prompt,completion=Completion",
        ),
        (
            json!({"Instruction": "2+2?", "Input": "Numbers.", "Output": "Four"}),
            "instruction=Instruction,input=Input,output=Output",
        ),
        (
            json!({"system_prompt": "Be brief.", "question": "2+2?", "response": "Four"}),
            "prompt=question,completion=response,system=system_prompt",
        ),
        // As in Aya.
        (
            json!({"inputs": "2+2?", "targets": "Four", "language": "eng"}),
            "prompt=inputs,completion=targets",
        ),
        // Worked-out answers beside bare ones, as in LIMO and MATH-500.
        (
            json!({"question": "2+2?", "solution": "Four", "answer": "4"}),
            "prompt=question,completion=solution",
        ),
        (
            json!({"problem": "2+2?", "answer": "4", "generated_solution": "Four", "expected": 4}),
            "prompt=problem,completion=generated_solution",
        ),
        (
            json!({"Messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four"}]}),
            "messages=Messages",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &[]);
        let hint = format!("(read it with --columns {flag})");
        assert!(
            !said.is_success() && said.err.contains(&hint),
            "{}",
            said.err
        );
        let said = preview(&[record], &["--columns", flag]);
        assert_eq!(learnt(&said), ["Four<|im_end|>"]);
    }
    let wrong = json!({"question": "2+2?", "answer": 4});
    let said = preview(
        &[wrong],
        &["--columns", "prompt=question,completion=answer"],
    );
    assert!(
        said.err
            .contains("field `answer`: expected text, found the number 4"),
        "{}",
        said.err
    );
    // A field that some records have is read where it is; one that none has would have no effect.
    let some = [
        json!({"question": "2+2?", "answer": "Four"}),
        json!({"question": "2+2?", "answer": "Four", "context": "Be brief."}),
    ];
    let columns = |system: &str| {
        let columns = format!("prompt=question,completion=answer,system={system}");
        let folder = TempDir::new().unwrap();
        let data = folder.path().join("t.jsonl");
        fs::write(&data, format!("{}\n{}\n", some[0], some[1])).unwrap();
        let check = ["check", text_of(&data), "--columns", &columns];
        (preview(&some, &["--columns", &columns]), program(&check))
    };
    let (shown, checked) = columns("context");
    assert_eq!(learnt(&shown).len(), 2);
    assert!(checked.is_success(), "{}", checked.err);
    let (shown, checked) = columns("contest");
    for said in [shown, checked] {
        let expected = "--columns: expected fields that a record has, found `system=contest`";
        assert!(said.err.contains(expected), "{}", said.err);
        assert!(!said.is_success());
    }
    let kto = json!({"prompt": "a", "completion": "b", "label": true});
    let said = preview(
        &[kto],
        &["--columns", "prompt=prompt,completion=completion"],
    );
    assert_eq!(learnt(&said), ["b<|im_end|>"]);
}

/// Data sets whose answers stand where no flag reaches them.
#[test]
fn keys_that_are_there_are_named_where_one_is_missing() {
    let calls = json!([{"name": "look", "arguments": {}}]);
    for (record, expected) in [
        (
            json!({"query": "Hi?", "answers": calls, "tools": []}),
            "field `response`: expected text; calls are learnt in `messages`, as `tool_calls` of the assistant, found nothing \
             among `query`, `answers`, `tools`",
        ),
        (
            json!({"conversation": [{"asked": "Hi?", "said": "Yes."}], "source": "x"}),
            "field `conversation[0].role`: expected one of system, user, assistant, tool, found nothing among `asked`, `said`",
        ),
        (json!({"": "a", "b": "c"}), "found `(no name)`, `b`"),
    ] {
        let said = preview(&[record], &[]);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{}",
            said.err
        );
    }
}

#[test]
fn forms_of_the_same_content_are_read_alike() {
    let parts = |content: Value| json!({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": content}]});
    let swift =
        json!({"system": "Be brief.", "conversation": [{"human": "Who?", "assistant": "A gull."}]});
    let refusal = json!({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": null, "refusal": "A gull."}]});
    let records = [
        parts(json!([{"type": "text", "text": "A gull."}])),
        parts(json!([{"type": "text", "value": "A gull."}])),
        parts(json!([{"type": "output_text", "text": "A gull."}])),
        parts(json!([{"type": "refusal", "refusal": "A gull."}])),
        parts(json!(["A gull."])),
        refusal,
        swift,
        json!({"conversations": [{"role": "human", "value": "Who?"}, {"role": "gpt", "value": "A gull."}]}),
        json!({"query": "Who?", "response": "A gull.", "history": []}),
        json!({"prompt": [{"role": "user", "content": "Who?"}], "completion": "A gull."}),
        json!({"instruction": "", "input": "Who?", "output": "A gull."}),
    ];
    let said = preview(&records, &[]);
    assert_eq!(learnt(&said), vec!["A gull.<|im_end|>"; records.len()]);
    for (part, expected) in [
        (
            json!({"type": "text"}),
            "field `messages[1].content[0].text`: expected text, found nothing",
        ),
        (
            json!({"type": "image_url"}),
            "found a part of type `image_url`",
        ),
    ] {
        let said = preview(&[parts(json!([part]))], &[]);
        assert!(said.err.contains(expected), "{}", said.err);
    }
}

/// Reasoning has three names, and a list of turns two.
#[test]
fn names_of_the_same_part_are_read_alike() {
    let tools = with_tools();
    let model = ["--model", text_of(tools.path())];
    let turns = |key: &str| {
        json!({"messages": [{"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Mo.", key: "It is a gull."}]})
    };
    let records = ["reasoning_content", "reasoning", "thinking"].map(turns);
    let learnt = learnt(&preview(&records, &model));
    assert!(learnt[0].contains("It is a gull."), "{learnt:?}");
    assert!(learnt.iter().all(|text| *text == learnt[0]), "{learnt:?}");

    let mut record = sharegpt(&[("human", "Who?"), ("gpt", "Mo.")]);
    record["conversation"] = record["conversations"].take();
    assert_eq!(super::learnt(&preview(&[record], &[])), ["Mo.<|im_end|>"]);
}

#[test]
fn segments_are_learnt_by_their_labels_and_without_a_template() {
    let record = json!({"segments": [{"label": true, "text": "A gull"}, {"label": false, "text": " or"}, {"label": true, "text": " a tern."}]});
    let said = preview(&[record], &[]);
    assert_eq!(learnt(&said).concat().replace(' ', ""), "gullatern.");
    assert!(!said.out.contains("im_start"));
}

#[test]
fn a_text_that_is_rendered_gets_no_second_template() {
    let prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n";
    let said = preview(
        &[
            json!({"prompt": prompt, "completion": "A gull.<|im_end|>\n"}),
            json!({"prompt": prompt, "completion": "A gull."}),
            json!({"prompt": "Who?", "completion": "A gull.<|im_end|>"}),
            messages(&[("user", "Who?"), ("assistant", "A gull.<|im_end|>\n")]),
            json!({"text": "A gull.<|im_end|>\n"}),
        ],
        &[],
    );
    assert_eq!(learnt(&said)[..4], ["A gull.<|im_end|>"; 4]);
    assert_eq!(said.out.matches("<|im_start|>").count(), 8, "{}", said.out);
    assert_eq!(said.out.matches("<|im_end|>").count(), 9, "{}", said.out);
    assert!(
        said.err
            .contains("2 of 5 prompts have the chat template's tokens already"),
        "{}",
        said.err
    );
    assert!(
        said.err
            .contains("2 of 5 records have answers that end with a token that ends a text"),
        "{}",
        said.err
    );
}

#[test]
fn calls_are_learnt_as_the_template_writes_them() {
    let model = with_tools();
    let flags = ["--model", text_of(model.path())];
    let call =
        |name: &str, on: bool| format!("{{\"name\": \"{name}\", \"arguments\": {{\"on\": {on}}}}}");
    let both = format!("[{}, {}]", call("light", true), call("fan", false));
    let written = |calls: &[String]| {
        let calls = calls
            .iter()
            .map(|call| format!("<tool_call>⏎{call}⏎</tool_call>"));
        calls.collect::<Vec<_>>().join("⏎") + "<|im_end|>"
    };
    let openai = |arguments: Value| {
        json!({"messages": [{"role": "user", "content": "Light"}, {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "light", "arguments": arguments}}]}]})
    };
    let light = written(&[call("light", true)]);
    let none = light.replace("{\"on\": true}", "{}");
    let thought = format!("<think>⏎It is dark.⏎</think>⏎{light}");
    for (record, expected) in [
        (openai(json!("{\"on\": true}")), light.clone()),
        (openai(json!({"on": true})), light.clone()),
        (openai(json!("\"{\\\"on\\\": true}\"")), light.clone()),
        (openai(json!("")), none.clone()),
        (openai(Value::Null), none),
        (
            sharegpt(&[("human", "Both"), ("function_call", &both)]),
            written(&[call("light", true), call("fan", false)]),
        ),
        (
            sharegpt(&[
                ("human", "Light"),
                (
                    "function_call",
                    &format!("<think>\nIt is dark.\n</think>\n{}", call("light", true)),
                ),
            ]),
            thought,
        ),
        (
            json!({"messages": [{"role": "user", "content": "Light"}, {"role": "assistant", "content": [{"type": "tool_call", "value": call("light", true)}]}]}),
            light.clone(),
        ),
        (
            json!({"messages": [{"role": "user", "content": "Light"}, {"role": "assistant", "function_call": {"name": "light", "arguments": "{\"on\": true}"}}]}),
            light.clone(),
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &flags);
        assert_eq!(learnt(&said), [expected], "{record}");
    }
    for (record, expected) in [
        (
            openai(json!("[1, 2]")),
            "field `messages[1].tool_calls[0].function.arguments`: expected a JSON object, found a list",
        ),
        (
            openai(json!(7)),
            "arguments`: expected a JSON object, found the number 7",
        ),
        (
            sharegpt(&[("human", "a"), ("function_call", "light on")]),
            "field `conversations[1].value`: expected a call, or a list of calls",
        ),
        (
            sharegpt(&[
                ("human", "a"),
                ("function_call", "{\"name\": \"f\", \"parameters\": {}}"),
            ]),
            "field `conversations[1].value.parameters`: expected nothing but",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &flags);
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{record}: {}",
            said.err
        );
    }
    // The bundled model's own template writes no calls: an empty answer would be learnt.
    let said = preview(&[openai(json!({"on": true}))], &[]);
    let expected = "field `messages[1].tool_calls`: the model's chat template does not write the arguments of tool calls";
    assert!(
        !said.is_success() && said.err.contains(expected),
        "{}",
        said.err
    );
    let mut tools = messages(&[("user", "a"), ("assistant", "b")]);
    tools["tools"] = json!("[{\"type\": \"function\", \"function\": {\"name\": \"light\"}}]");
    let said = preview(&[tools], &[]);
    assert!(
        said.err
            .contains("field `tools`: the model's chat template does not write function schemas"),
        "{}",
        said.err
    );
}

#[test]
fn an_answer_has_one_end() {
    let end = "A gull.<|endoftext|>";
    for record in [
        json!({"prompt": "A bird?", "completion": end}),
        json!({"prompt": "A bird?", "completion": "A gull.<|im_end|>\n<|endoftext|> "}),
        json!({"instruction": "A bird?", "output": end}),
        sharegpt(&[("human", "A bird?"), ("gpt", end)]),
        messages(&[("user", "A bird?"), ("assistant", end)]),
    ] {
        let said = preview(std::slice::from_ref(&record), &[]);
        assert_eq!(learnt(&said), ["A gull.<|im_end|>"], "{record}");
        let expected = "1 of 1 records have answers that end with a token that ends a text; the chat template's own end is \
                        learnt in its place";
        assert!(said.err.contains(expected), "{}", said.err);
        assert!(!said.err.contains("in their text"), "{}", said.err);
    }
    let pair = json!({"prompt": "A bird?", "chosen": end, "rejected": "A fish.<|endoftext|>"});
    let said = preview(&[pair], &["--method", "dpo"]);
    assert_eq!(learnt(&said), ["A gull.<|im_end|>", "A fish.<|im_end|>"]);
    // What has no template keeps the end that it has.
    let said = preview(&[json!({"text": end})], &[]);
    assert!(
        learnt(&said)[0].ends_with("gull.<|endoftext|>"),
        "{}",
        said.out
    );
}

#[test]
fn the_columns_of_reasoning_are_named() {
    for (record, flag) in [
        (
            json!({"Question": "2+2?", "Complex_CoT": "Two.", "Response": "Four"}),
            "prompt=Question,completion=Response,reasoning=Complex_CoT",
        ),
        (
            json!({"question": "2+2?", "solution": "Four", "thinking_trajectories": ["Two."], "cot": null}),
            "prompt=question,completion=solution,reasoning=thinking_trajectories",
        ),
        (
            json!({"question": "2+2?", "answer": "Four", "reasoning": "on"}),
            "prompt=question,completion=answer",
        ),
    ] {
        let said = preview(std::slice::from_ref(&record), &[]);
        let hint = format!("(read it with --columns {flag})");
        assert!(said.err.contains(&hint), "{}", said.err);
        let answer = learnt(&preview(&[record], &["--columns", flag])).concat();
        assert_eq!(
            answer.contains("Two."),
            flag.contains("reasoning"),
            "{answer}"
        );
    }
}
