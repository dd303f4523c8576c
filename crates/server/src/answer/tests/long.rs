//! Answers of a megabyte, in small pieces: the time grows with the length, not with its square.

use std::time::{Duration, Instant};

use super::super::tag::{MAX_NAME, MAX_SPACE};
use super::*;

const LEN: usize = 1 << 20;
const PIECE: usize = 16;

/// What a short text takes anyway, or a machine that does something else.
const SPARE: Duration = Duration::from_millis(500);

/// The parts of a text in pieces of as many bytes as a few tokens have, and how long they take.
fn timed_parts(text: &str) -> (Vec<Part>, Duration) {
    let bytes: Vec<&str> = (0..text.len())
        .step_by(PIECE)
        .map(|at| &text[at..(at + PIECE).min(text.len())])
        .collect();
    let start = Instant::now();
    let parts = parts_of(&options(ReasoningStart::None), &bytes);
    (parts, start.elapsed())
}

/// A text of [`LEN`] bytes or more, and its parts, which take no more time per byte than those of a text of a quarter.
#[track_caller]
fn parts_in_time(text_of: impl Fn(usize) -> String) -> (String, Vec<Part>) {
    let (_, of_quarter) = timed_parts(&text_of(LEN / 4));
    let text = text_of(LEN);
    let (parts, time) = timed_parts(&text);
    assert!(
        time < 8 * of_quarter + SPARE,
        "{time:?} after {of_quarter:?}: {}",
        &text[..20]
    );
    (text, parts)
}

#[test]
fn long_calls_take_little_time() {
    let long = |len: usize| "x <y> ".repeat(len / 6);
    let json = |len: usize| format!("{{\"text\": \"{}\"}}", long(len));
    let call = |len: usize| format!("{{\"name\": \"find\", \"arguments\": {}}}", json(len));
    let texts: [&dyn Fn(usize) -> String; 4] = [
        &call,
        &|len| format!("<tool_call>[{}]</tool_call>", call(len)),
        &|len| format!("<tool_call>{}</tool_call>", call(len)),
        &|len| {
            let value = long(len);
            format!("<function=find><parameter=text>{value}</parameter></function>")
        },
    ];
    for text_of in texts {
        let (text, parts) = parts_in_time(text_of);
        let [
            Part::Call { name, .. },
            Part::Arguments { text: read, .. },
            Part::CallEnd { .. },
        ] = parts.as_slice()
        else {
            panic!("{} parts of {}", parts.len(), &text[..60]);
        };
        let [read, wanted]: [Value; 2] =
            [read, &json(LEN)].map(|text| serde_json::from_str(text).unwrap());
        assert!(name == "find" && read == wanted, "{}", &text[..60]);
    }
}

#[test]
fn long_texts_that_never_become_a_call_are_content() {
    let long = |len: usize| "x".repeat(len);
    let texts: [&dyn Fn(usize) -> String; 8] = [
        &|len| "\n".repeat(len),
        &|len| format!("a{}b", " \n".repeat(len / 2)),
        &|len| format!("{{\"name\": \"{}", long(len)),
        &|len| format!("[{{{}", "\n".repeat(len)),
        &|len| format!("<tool_call>{{\"name\": \"{}", long(len)),
        &|len| format!("<tool_call>{}", " ".repeat(len)),
        &|len| format!("<function={}", long(len)),
        &|len| format!("```json\n{}", " ".repeat(len)),
    ];
    for text_of in texts {
        let (text, parts) = parts_in_time(text_of);
        assert!(parts == [Part::Content(text.clone())], "{}", &text[..20]);
    }
    let (text, parts) = parts_in_time(|len| format!("<function=find><parameter={}", long(len)));
    let [Part::Call { name, .. }, .., Part::Content(rest)] = parts.as_slice() else {
        panic!("{} parts", parts.len());
    };
    assert_eq!(name, "find");
    assert_eq!(rest.len(), text.len() - "<function=find>".len());
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
