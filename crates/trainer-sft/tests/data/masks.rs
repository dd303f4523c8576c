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

/// As Qwen3's: a block with the reasoning, or an empty one; what begins an answer is put in the place of OPEN.
const THINKS: &str = "{%- for m in messages %}{%- set c = m.content %}{%- set r = m.reasoning_content or '' %}\
{%- if '</think>' in c and not r %}{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}\
{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}\
{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{{- '<think>\n' + r + '\n</think>\n\n' }}{%- endif %}\
{{- c + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}OPEN{%- endif %}";

#[test]
fn an_empty_think_block_is_written_once() {
    let open = "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}";
    let template = THINKS.replace("OPEN", open);
    let with = |content: &str| {
        let mut value = chat(&[("user", "q"), ("assistant", content)]);
        value["chat_template_kwargs"] = json!({"enable_thinking": false});
        value
    };
    let expected = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>\n";
    for thinking in [Thinking::Keep, Thinking::Empty] {
        let settings = RenderSettings {
            thinking,
            ..settings()
        };
        for content in ["a", "<think>\n\n</think>\n\na"] {
            let example = render(with(content), &template, settings).unwrap();
            assert_eq!(text(&example.examples[0].tokens), expected, "{content}");
            assert_eq!(learnt(&example.examples[0]), ["a<|im_end|>"]);
        }
        let mut field = with("a");
        field["messages"][1]["reasoning_content"] = "r".into();
        for value in [field, with("<think>\nr\n</think>\n\na")] {
            let error = render(value, &template, settings).unwrap_err().to_string();
            let expected =
                "leave out the reasoning, or `enable_thinking` of `chat_template_kwargs`";
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn answers_without_reasoning_need_a_choice_where_the_template_writes_an_empty_block() {
    let template = THINKS.replace("OPEN", "{{- '<think>\n' }}");
    let value = chat(&[("user", "q"), ("assistant", "a")]);
    let error = render(value.clone(), &template, settings()).unwrap_err();
    assert!(
        matches!(error, DataError::NoReasoning { message: 1, .. }),
        "{error}"
    );
    let empty = RenderSettings {
        thinking: Thinking::Empty,
        ..settings()
    };
    let examples = render(value, &template, empty).unwrap().examples;
    assert_eq!(learnt(&examples[0]), ["\n</think>\n\na<|im_end|>"]);
    // What is not learnt needs none.
    let value = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "p"}, {"role": "assistant", "content": "b", "reasoning_content": "r"}]});
    let examples = render(value, &template, settings()).unwrap().examples;
    assert_eq!(learnt(&examples[0]), ["r\n</think>\n\nb<|im_end|>"]);
}

#[test]
fn reasoning_that_stands_twice_is_learnt_once() {
    let template = THINKS.replace("OPEN", "");
    let both = |content: &str, reasoning: &str| {
        json!({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": content, "reasoning_content": reasoning}]})
    };
    for (content, reasoning) in [
        ("<think>\neasy\n</think>\n\na", "easy"),
        ("<think>easy </think>a", "easy"),
        ("easy\n</think>\n\na", "easy"),
        ("<think>\n\n</think>\n\na", "easy"),
        ("<think>\neasy\n</think>\n\na", ""),
        ("a", "easy"),
    ] {
        let examples = render(both(content, reasoning), &template, settings()).unwrap();
        let expected = "<think>\neasy\n</think>\n\na<|im_end|>";
        assert_eq!(learnt(&examples.examples[0]), [expected], "{content}");
    }
    let error = parse(both("<think>\neasier\n</think>\n\na", "easy")).unwrap_err();
    let expected = "field `messages[1].content`: expected no second reasoning beside the one in a field of its own, found \"easier\"";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn reasoning_in_a_field_beside_an_answer_is_learnt() {
    let template = THINKS.replace("OPEN", "");
    let expected = ["<think>\nr\n</think>\n\na<|im_end|>"];
    for value in [
        json!({"instruction": "q", "output": "a", "reasoning_content": "r"}),
        json!({"prompt": "q", "completion": "a", "reasoning": "r"}),
        json!({"query": "q", "response": "a", "thinking": "<think>\nr\n</think>"}),
        json!({"prompt": "q", "completion": "<think>\nr\n</think>\n\na", "reasoning": "r"}),
        json!({"prompt": [{"role": "user", "content": "q"}], "completion": "a", "reasoning": ["r"]}),
        json!({"prompt": "q", "completion": "a", "reasoning": "r", "thinking": "r "}),
    ] {
        let examples = render(value.clone(), &template, settings())
            .unwrap()
            .examples;
        assert_eq!(learnt(&examples[0]), expected, "{value}");
    }
    // A prompt that is rendered may have opened the block.
    let value = json!({"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n", "completion": "a",
        "reasoning": "r"});
    let examples = render(value, &template, settings()).unwrap().examples;
    assert_eq!(learnt(&examples[0]), ["r\n</think>\n\na<|im_end|>"]);
    // Words that only say whether there is any.
    let value =
        json!({"prompt": "q", "completion": "<think>\nr\n</think>\n\na", "reasoning": "on"});
    assert_eq!(
        learnt(&render(value, &template, settings()).unwrap().examples[0]),
        expected
    );
    for (value, expected) in [
        (
            json!({"prompt": "q", "completion": "<think>s</think>a", "reasoning": "r"}),
            "field `completion`: expected no second reasoning",
        ),
        (
            json!({"prompt": "q", "completion": "a", "reasoning": "r", "thinking": "s"}),
            "field `thinking`: expected no second reasoning beside `reasoning`",
        ),
        (
            json!({"prompt": "q", "completion": [{"role": "assistant", "content": "a"}], "thinking": "r"}),
            "field `thinking`: expected none beside messages",
        ),
    ] {
        let error = parse(value).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let columns = Columns::parse(&["prompt=q", "completion=a", "reasoning=cot"].map(str::to_owned));
    let value = json!({"q": "q", "a": "a", "cot": "r"});
    let record = Record::parse(source(), value, &columns.unwrap()).unwrap();
    let template = self::template(&template);
    let renderer = Renderer::new(&tokenizer(), Some(&template), settings());
    assert_eq!(
        learnt(&renderer.render(&record).unwrap().examples[0]),
        expected
    );
}

#[test]
fn a_prompt_that_mentions_a_token_of_the_template_gets_the_template() {
    for (template, asked, rendered) in [
        (
            CHATML,
            [
                "What does <|im_end|> mean in ChatML?",
                "<|im_start|> is what?",
                "a <|im_start|>user b",
            ]
            .as_slice(),
            [
                "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
                "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n",
                "Read this.<|im_end|>\n<|im_start|>assistant\n",
            ]
            .as_slice(),
        ),
        (
            R1,
            &["What is <｜User｜> for?"],
            &[
                "<｜User｜>q<｜Assistant｜><think>\n",
                "<｜begin▁of▁sentence｜><｜User｜>q",
                "q<｜Assistant｜><think>\n\n</think>\n\n",
            ],
        ),
    ] {
        let was_rendered = |prompt: &str| {
            let value = json!({"prompt": prompt, "completion": "<think>r</think>a"});
            render(value, template, settings()).unwrap().was_rendered
        };
        for prompt in asked {
            assert!(!was_rendered(prompt), "{prompt}");
        }
        for prompt in rendered {
            assert!(was_rendered(prompt), "{prompt}");
        }
    }
}
