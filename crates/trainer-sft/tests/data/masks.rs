//! What is learnt of a conversation.

use super::*;

#[test]
fn chatml_learns_every_assistant_turn_with_its_end_token() {
    let value = chat(&[
        ("user", "Hi"),
        ("assistant", "Ho\n\n"),
        ("user", "So"),
        ("assistant", "\nYes"),
    ]);
    let example = render(value, CHATML, settings())
        .unwrap()
        .examples
        .remove(0);
    assert_eq!(
        text(&example.tokens),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo\n\n<|im_end|>\n\
         <|im_start|>user\nSo<|im_end|>\n<|im_start|>assistant\n\nYes<|im_end|>\n"
    );
    // The answer's first line break does not merge with the one of the prompt.
    assert_eq!(learnt(&example), ["Ho\n\n<|im_end|>", "\nYes<|im_end|>"]);
    assert_eq!(
        example.tokens.iter().filter(|&&token| token == 256).count(),
        1
    );
}

#[test]
fn a_turn_of_weight_0_is_context() {
    let value = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]});
    assert_eq!(
        learnt(&render(value, CHATML, settings()).unwrap().examples[0]),
        ["d<|im_end|>"]
    );
}

#[test]
fn prompt_and_all_change_the_mask() {
    let value = chat(&[("system", "S"), ("user", "Hi"), ("assistant", "Ho")]);
    let prompt = render(
        value.clone(),
        CHATML,
        RenderSettings {
            train_on: TrainOn::Prompt,
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(
        learnt(&prompt.examples[0]),
        [
            "system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            "\n"
        ]
    );
    let all = render(
        value,
        CHATML,
        RenderSettings {
            train_on: TrainOn::All,
            ..settings()
        },
    )
    .unwrap();
    assert_eq!(
        all.examples[0].num_targets(),
        all.examples[0].tokens.len() - 1
    );
}

#[test]
fn r1_keeps_the_reasoning_that_its_template_strips() {
    let inline = chat(&[
        ("user", "2+2?"),
        ("assistant", "<think>\nEasy.\n</think>\n\nFour"),
    ]);
    let mut field = chat(&[("user", "2+2?"), ("assistant", "Four")]);
    field["messages"][1]["reasoning_content"] = "Easy.".into();
    for value in [inline, field] {
        let rendered = render(value, R1, settings()).unwrap();
        assert_eq!(rendered.examples.len(), 1);
        let example = &rendered.examples[0];
        assert_eq!(
            text(&example.tokens),
            format!("{BOS}<｜User｜>2+2?<｜Assistant｜><think>\nEasy.\n</think>\n\nFour{EOS}")
        );
        assert_eq!(learnt(example), [format!("Easy.\n</think>\n\nFour{EOS}")]);
    }
}

#[test]
fn r1_gives_one_example_per_turn_after_the_prompt_that_the_server_sends() {
    let value = chat(&[
        ("user", "A"),
        ("assistant", "<think>\nr1\n</think>\n\nB"),
        ("user", "C"),
        ("assistant", "<think>\nr2\n</think>\n\nD"),
    ]);
    let examples = render(value, R1, settings()).unwrap().examples;
    assert_eq!(examples.len(), 2);
    assert_eq!(
        text(&examples[1].tokens),
        format!(
            "{BOS}<｜User｜>A<｜Assistant｜>\n\nB{EOS}<｜User｜>C<｜Assistant｜><think>\nr2\n</think>\n\nD{EOS}"
        )
    );
    assert_eq!(learnt(&examples[0]), [format!("r1\n</think>\n\nB{EOS}")]);
    assert_eq!(learnt(&examples[1]), [format!("r2\n</think>\n\nD{EOS}")]);
}

#[test]
fn r1_without_think_in_its_prompt_learns_to_open_the_block() {
    let older = R1.replace("<think>\\n", "").replace("<think>\n", "");
    let value = chat(&[("user", "A"), ("assistant", "<think>\nr\n</think>\n\nB")]);
    let examples = render(value, &older, settings()).unwrap().examples;
    assert_eq!(
        learnt(&examples[0]),
        [format!("<think>\nr\n</think>\n\nB{EOS}")]
    );
}

#[test]
fn r1_answers_without_reasoning_need_a_choice() {
    let value = chat(&[("user", "A"), ("assistant", "B")]);
    let message = render(value.clone(), R1, settings())
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("t.jsonl:1: message 1:") && message.contains("--thinking empty"),
        "{message}"
    );
    let empty = RenderSettings {
        thinking: Thinking::Empty,
        ..settings()
    };
    let examples = render(value, R1, empty).unwrap().examples;
    assert_eq!(
        text(&examples[0].tokens),
        format!("{BOS}<｜User｜>A<｜Assistant｜><think>\n\n</think>\n\nB{EOS}")
    );
    assert_eq!(learnt(&examples[0]), [format!("\n</think>\n\nB{EOS}")]);
}

#[test]
fn a_template_that_contradicts_its_prompt_is_refused() {
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}bot>{% endif %}";
    let message = render(
        chat(&[("user", "A"), ("assistant", "B")]),
        source,
        settings(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("\"user:A;assistant:B;\"") && message.contains("\"user:A;bot>\""),
        "{message}"
    );
}

#[test]
fn template_errors_name_the_record() {
    let source = "{{ raise_exception('no system') }}";
    let message = render(
        chat(&[("user", "A"), ("assistant", "B")]),
        source,
        settings(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        message.starts_with("t.jsonl:1: ") && message.contains("no system"),
        "{message}"
    );
}

#[test]
fn without_a_template_completions_are_joined_and_chats_refused() {
    let tokenizer = tokenizer();
    let renderer = Renderer::new(&tokenizer, None, settings());
    let example = renderer
        .render(&record(json!({"prompt": "Q", "completion": " A"})))
        .unwrap()
        .examples
        .remove(0);
    assert_eq!(text(&example.tokens), "Q A<|endoftext|>");
    assert_eq!(learnt(&example), [" A<|endoftext|>"]);
    let refused = renderer
        .render(&record(chat(&[("user", "A"), ("assistant", "B")])))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("no chat template"), "{refused}");
}

/// What the assistant says belongs to no prompt, and what is marked is learnt by nobody.
#[test]
fn turns_that_are_not_learnt_are_no_prompt() {
    let with = |train_on| RenderSettings {
        train_on,
        ..settings()
    };
    let marked = |second: Value| {
        json!({"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "WRONG", "weight": 0},
            {"role": "user", "content": "Two?"}, second]})
    };
    let right = json!({"role": "assistant", "content": "RIGHT", "weight": 1});
    let listed = json!({"prompt": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "WRONG"},
        {"role": "user", "content": "Two?"}], "completion": [{"role": "assistant", "content": "RIGHT"}]});
    let text = |value: &Value, template: &str, train_on| {
        let rendered = render(value.clone(), template, with(train_on)).unwrap();
        assert_eq!(rendered.examples.len(), 1, "{value}");
        learnt(&rendered.examples[0]).concat()
    };
    for (value, template) in [
        (marked(right.clone()), CHATML),
        (listed, CHATML),
        (
            chat(&[
                ("user", "One?"),
                ("assistant", "</think>WRONG"),
                ("user", "Two?"),
                ("assistant", "</think>RIGHT"),
            ]),
            R1,
        ),
    ] {
        let prompt = text(&value, template, TrainOn::Prompt);
        assert!(
            prompt.contains("One?") && prompt.contains("Two?"),
            "{prompt}"
        );
        assert!(
            !prompt.contains("WRONG") && !prompt.contains("RIGHT"),
            "{prompt}"
        );
    }
    let all = text(&marked(right.clone()), CHATML, TrainOn::All);
    assert!(
        all.contains("Two?") && all.contains("RIGHT") && !all.contains("WRONG"),
        "{all}"
    );
    let mut thinks = marked(right);
    thinks["messages"][1]["content"] = "a</think>WRONG".into();
    thinks["messages"][3]["content"] = "b</think>RIGHT".into();
    let error = render(thinks, R1, with(TrainOn::All)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("--train-on all would learn turns that are marked"),
        "{error}"
    );
}
