//! Answers of a megabyte, in small pieces: the time grows with the length, not with its square.

use std::time::{Duration, Instant};

use super::super::tag::{MAX_NAME, MAX_SPACE};
use super::*;

const LEN: usize = 1 << 20;
const PIECE: usize = 16;

/// The parts of a text in pieces of as many bytes as a few tokens have.
#[track_caller]
fn parts_in_time(text: &str) -> Vec<Part> {
    let bytes: Vec<&str> = (0..text.len())
        .step_by(PIECE)
        .map(|at| &text[at..(at + PIECE).min(text.len())])
        .collect();
    let start = Instant::now();
    let parts = parts_of(&options(ReasoningStart::None), &bytes);
    let time = start.elapsed();
    assert!(time < Duration::from_secs(30), "{time:?}");
    parts
}

#[test]
fn long_calls_take_little_time() {
    let long = "x <y> ".repeat(LEN / 6);
    let json = format!("{{\"text\": \"{long}\"}}");
    for (text, arguments) in [
        (
            format!("{{\"name\": \"find\", \"arguments\": {json}}}"),
            &json,
        ),
        (
            format!("<tool_call>[{{\"name\": \"find\", \"arguments\": {json}}}]</tool_call>"),
            &json,
        ),
        (
            format!("<tool_call>{{\"name\": \"find\", \"arguments\": {json}}}</tool_call>"),
            &json,
        ),
        (
            format!("<function=find><parameter=text>{long}</parameter></function>"),
            &json,
        ),
    ] {
        let parts = parts_in_time(&text);
        let [
            Part::Call { name, .. },
            Part::Arguments { text: read, .. },
            Part::CallEnd { .. },
        ] = parts.as_slice()
        else {
            panic!("{} parts of {}", parts.len(), &text[..60]);
        };
        let [read, wanted]: [Value; 2] =
            [read, arguments].map(|text| serde_json::from_str(text).unwrap());
        assert!(name == "find" && read == wanted, "{}", &text[..60]);
    }
}

#[test]
fn long_texts_that_never_become_a_call_are_content() {
    let long = "x".repeat(LEN);
    for text in [
        "\n".repeat(LEN),
        format!("a{}b", " \n".repeat(LEN / 2)),
        format!("{{\"name\": \"{long}"),
        format!("[{{{}", "\n".repeat(LEN)),
        format!("<tool_call>{{\"name\": \"{long}"),
        format!("<tool_call>{}", " ".repeat(LEN)),
        format!("<function={long}"),
        format!("```json\n{}", " ".repeat(LEN)),
    ] {
        assert_eq!(
            parts_in_time(&text),
            [Part::Content(text.clone())],
            "{}",
            &text[..20]
        );
    }
    let text = format!("<function=find><parameter={long}");
    assert_eq!(parts_in_time(&text)[0..2].len(), 2);
}

#[test]
fn space_and_names_have_room_in_any_cut() {
    let options = options(ReasoningStart::Tag);
    let call = "{\"name\": \"now\", \"arguments\": {}}";
    let lens = |max: usize| [max - 1, max, max + 1, 2 * max];
    for (i, len) in lens(MAX_SPACE).into_iter().enumerate() {
        let [space, name] = [" ".repeat(len), "x".repeat(lens(MAX_NAME)[i])];
        for text in [
            format!("{space}<think>a</think>b"),
            format!("a{space}<tool_call>{call}</tool_call>"),
            format!("a\n{space}{call}"),
            format!("{space}\n{call}"),
            format!("<tool_call>{space}{call}</tool_call>"),
            format!("<tool_call>{{\"name\": \"{name}\", \"arguments\": {{}}}}</tool_call>"),
            format!("<function={name}></function>"),
            format!("<function=now><parameter={name}>1</parameter></function>"),
            format!("<function=now><parameter=a>1</parameter>{space}</function>"),
            format!("<think>a<tool_call>{space}{call}</tool_call>"),
        ] {
            let whole = parts_of(&options, &[&text]);
            for size in [1, 7] {
                let pieces: Vec<&str> = (0..text.len())
                    .step_by(size)
                    .map(|at| &text[at..(at + size).min(text.len())])
                    .collect();
                assert_eq!(parts_of(&options, &pieces), whole, "{text:?} by {size}");
            }
        }
    }
}
