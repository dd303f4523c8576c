//! Texts put together at random, cut at random.

use super::*;

/// Fragments that are put together at random, and cut at random.
const FRAGMENTS: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "{\"name\": \"now\", \"arguments\": {}}",
    "{\"name\": \"find\"",
    ", \"arguments\": {\"text\": \"",
    "\"}}",
    "\\",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "<function=find>",
    "<parameter=text>",
    "</parameter>",
    "</function>",
    "<function=",
    "```json\n",
    "<tools>",
    "</tools>",
    "```",
    "text",
    "ü😀",
    "<",
    ">",
    "{\"arguments\": {}, \"name\": \"now\"}",
    ",",
];

#[test]
fn any_cut_gives_the_same_parts() {
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..6000 {
        let text: String = (0..random(14))
            .map(|_| FRAGMENTS[random(FRAGMENTS.len())])
            .collect();
        let start = [
            ReasoningStart::None,
            ReasoningStart::Tag,
            ReasoningStart::Prompt,
        ][round % 3];
        let mut options = options(start);
        if round % 7 == 0 {
            options.calls = None;
        }
        let whole = parts_of(&options, &[&text]);
        let (mut pieces, mut rest) = (Vec::new(), text.as_str());
        while !rest.is_empty() {
            let piece;
            (piece, rest) =
                rest.split_at(rest.ceil_char_boundary(1 + random(9).min(rest.len() - 1)));
            pieces.push(piece);
        }
        assert_eq!(parts_of(&options, &pieces), whole, "{text:?} as {pieces:?}");
        // What remains are tags, space and the syntax of calls.
        let texts = whole.iter().map(|part| match part {
            Part::Reasoning(text) | Part::Content(text) => text.as_str(),
            Part::Call { name: text, .. } | Part::Arguments { text, .. } => text.as_str(),
            Part::CallEnd { .. } => "",
        });
        let texts: String = texts.collect();
        for word in ["text", "ü😀"] {
            let count = |text: &str| text.matches(word).count();
            assert_eq!(count(&texts), count(&text), "{text:?} gives {whole:?}");
        }
    }
}
