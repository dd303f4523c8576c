//! Examples longer than the limit.

use super::*;

#[test]
fn a_long_prompt_loses_its_left() {
    let value = chat(&[("user", "abcdefghij"), ("assistant", "Ho")]);
    let whole = render(value.clone(), CHATML, settings())
        .unwrap()
        .examples
        .remove(0);
    let rendered = render(
        value,
        CHATML,
        RenderSettings {
            max_length: 24,
            ..settings()
        },
    )
    .unwrap();
    assert!(rendered.truncated);
    assert_eq!(rendered.num_lost_targets, 0);
    let example = &rendered.examples[0];
    assert_eq!(example.tokens, whole.tokens[whole.tokens.len() - 24..]);
    assert_eq!(learnt(example), ["Ho<|im_end|>"]);
}

#[test]
fn earlier_turns_go_whole_and_are_counted() {
    let value = chat(&[
        ("user", "a"),
        ("assistant", "first"),
        ("user", "b"),
        ("assistant", "second"),
    ]);
    let whole = render(value.clone(), CHATML, settings())
        .unwrap()
        .examples
        .remove(0);
    let first = whole.mask.iter().position(|&target| target).unwrap();
    for (max_length, expected, lost) in [
        (
            whole.tokens.len() - first + 1,
            vec!["first<|im_end|>", "second<|im_end|>"],
            0,
        ),
        (whole.tokens.len() - first, vec!["second<|im_end|>"], 6),
        (whole.tokens.len() - first - 3, vec!["second<|im_end|>"], 6),
    ] {
        let rendered = render(
            value.clone(),
            CHATML,
            RenderSettings {
                max_length,
                ..settings()
            },
        )
        .unwrap();
        assert_eq!(learnt(&rendered.examples[0]), expected);
        assert_eq!(rendered.num_lost_targets, lost);
        assert!(!rendered.examples[0].mask[0] && rendered.examples[0].tokens.len() <= max_length);
    }
}

#[test]
fn an_answer_that_does_not_fit_is_dropped_and_counted() {
    let value = chat(&[("user", "a"), ("assistant", "much too long")]);
    let rendered = render(
        value,
        CHATML,
        RenderSettings {
            max_length: 10,
            ..settings()
        },
    )
    .unwrap();
    assert!(rendered.examples.is_empty() && !rendered.truncated);
    assert_eq!(rendered.num_lost_targets, "much too long".len() + 1);
}

#[test]
fn long_texts_become_windows_in_which_every_token_is_learnt_once() {
    let rendered = render(
        json!({"text": "abcdefghij"}),
        CHATML,
        RenderSettings {
            max_length: 4,
            ..settings()
        },
    )
    .unwrap();
    let windows: Vec<String> = rendered
        .examples
        .iter()
        .map(|example| text(&example.tokens))
        .collect();
    assert_eq!(windows, ["abcd", "defg", "ghij", "j<|endoftext|>"]);
    let learnt: Vec<String> = rendered.examples.iter().flat_map(learnt).collect();
    assert_eq!(learnt.concat(), "bcdefghij<|endoftext|>");
}

#[test]
fn nothing_to_learn_is_refused_and_mixed_files_are_counted() {
    let (_folder, path) = file(
        "mixed.jsonl",
        "{\"text\": \"abc\"}\n{\"prompt\": \"a\", \"completion\": \"bbbbbbbb\"}\n",
    );
    let (tokenizer, template) = (tokenizer(), template(CHATML));
    let load = |max_length| {
        let renderer = Renderer::new(
            &tokenizer,
            Some(&template),
            RenderSettings {
                max_length,
                ..settings()
            },
        );
        Dataset::load(std::slice::from_ref(&path), &renderer)
    };
    let report = load(8).unwrap().report;
    assert_eq!(report.formats, BTreeMap::from([(Format::Text, 1)]));
    assert_eq!(
        (report.num_records, report.num_left_out, report.num_targets),
        (2, 1, 3)
    );
    let (reason, found) = report.left_out.first_key_value().unwrap();
    assert!(
        reason.starts_with("no answer fits into --max-length 8"),
        "{reason}"
    );
    let first = found.first.as_ref().unwrap().to_string();
    assert!(first.ends_with("mixed.jsonl:2"), "{first}");
    let (_folder, path) = file(
        "t.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"bbbbbbbb\"}\n",
    );
    let renderer = Renderer::new(
        &tokenizer,
        Some(&template),
        RenderSettings {
            max_length: 8,
            ..settings()
        },
    );
    let message = Dataset::load(&[path], &renderer).unwrap_err().to_string();
    assert!(
        message.contains("nothing to learn")
            && message.contains("; the commonest reason is that of ")
            && message.contains("t.jsonl:1: no answer fits into --max-length 8"),
        "{message}"
    );
}
