//! Files → records → tokens and masks → batches, with a byte-level tokenizer made here.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_qwen::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;
use trainer_sft::batch::{Batch, DataLoader, LoaderOptions, LoaderState, sequential_batches};
use trainer_sft::config::{Thinking, TrainOn};
use trainer_sft::data::{
    Content, DataError, Dataset, Example, Format, Place, Record, Source, read,
};
use trainer_sft::preview::preview;
use trainer_sft::render::{RenderSettings, Rendered, Renderer};

const CHATML: &str = "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif %}\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}";

/// DeepSeek-R1-Distill's, without tools.
const R1: &str = "{% set ns = namespace(system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}\
{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}";

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";

/// 256 bytes, one merge of two line breaks, and the special tokens of ChatML and R1.
fn tokenizer() -> Tokenizer {
    let mut extra = 0;
    let alphabet: Vec<char> = (0..=255u32)
        .map(|byte| match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from_u32(byte).unwrap(),
            _ => {
                extra += 1;
                char::from_u32(0xFF + extra).unwrap()
            }
        })
        .collect();
    let mut vocab: BTreeMap<String, u32> = alphabet
        .iter()
        .enumerate()
        .map(|(id, character)| (character.to_string(), id as u32))
        .collect();
    vocab.insert("ĊĊ".into(), 256);
    let added = [
        ("<|im_start|>", true),
        ("<|im_end|>", true),
        ("<|endoftext|>", true),
        (BOS, true),
        (EOS, true),
    ]
    .into_iter()
    .chain([
        ("<｜User｜>", false),
        ("<｜Assistant｜>", false),
        ("<think>", false),
        ("</think>", false),
    ]);
    let added: Vec<Value> = added
        .zip(257..)
        .map(|((content, special), id)| {
            json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["Ċ", "Ċ"]]}
    });
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::from_dir(folder.path()).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    let tokens = json!({"bos_token": BOS, "eos_token": EOS});
    ChatTemplate::from_source(source, tokens.as_object().unwrap().clone()).unwrap()
}

fn settings() -> RenderSettings {
    RenderSettings {
        train_on: TrainOn::Assistant,
        thinking: Thinking::Keep,
        max_length: 1000,
        eos_token_id: Some(259),
    }
}

fn source() -> Source {
    Source {
        file: Arc::from(Path::new("t.jsonl")),
        place: Place::Line(1),
    }
}

fn record(value: Value) -> Record {
    Record::parse(source(), value).unwrap()
}

fn render(
    value: Value,
    template_source: &str,
    settings: RenderSettings,
) -> Result<Rendered, DataError> {
    Renderer::new(&tokenizer(), Some(&template(template_source)), settings).render(&record(value))
}

fn text(tokens: &[u32]) -> String {
    tokenizer().decode(tokens, false).unwrap()
}

/// The learnt runs of tokens, decoded.
fn learnt(example: &Example) -> Vec<String> {
    let mut runs: Vec<Vec<u32>> = Vec::new();
    for position in 0..example.tokens.len() {
        if example.mask[position] {
            if position == 0 || !example.mask[position - 1] {
                runs.push(Vec::new());
            }
            runs.last_mut().unwrap().push(example.tokens[position]);
        }
    }
    runs.iter().map(|run| text(run)).collect()
}

fn chat(turns: &[(&str, &str)]) -> Value {
    json!({"messages": turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect::<Vec<_>>()})
}

fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// Reads and parses a whole file.
fn records(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Record>, DataError> {
    let (_folder, path) = file(name, content);
    read::read_file(&path)?
        .into_iter()
        .map(|(source, value)| Record::parse(source, value))
        .collect()
}

fn error(name: &str, content: impl AsRef<[u8]>) -> String {
    records(name, content).unwrap_err().to_string()
}

#[track_caller]
fn assert_error(content: &str, expected: &str) {
    let message = error("t.jsonl", content);
    assert!(message.contains(expected), "{message}");
}

// ---- formats ----

#[test]
fn every_format_is_recognised_by_its_keys() {
    let cases = [
        (
            chat(&[("user", "Hi"), ("assistant", "Ho")]),
            Format::Messages,
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}),
            Format::ShareGpt,
        ),
        (
            json!({"instruction": "Hi", "input": "", "output": "Ho", "text": "Hi Ho"}),
            Format::Alpaca,
        ),
        (
            json!({"prompt": "Hi", "completion": "Ho", "id": 3}),
            Format::PromptCompletion,
        ),
        (json!({"text": "Hi Ho"}), Format::Text),
    ];
    for (value, format) in cases {
        let record = record(value);
        assert_eq!(record.format, format);
        let rendered = Renderer::new(&tokenizer(), Some(&template(CHATML)), settings())
            .render(&record)
            .unwrap()
            .examples;
        let expected = if format == Format::Text {
            "i Ho<|endoftext|>"
        } else {
            "Ho<|im_end|>"
        };
        assert_eq!(learnt(&rendered[0]), [expected], "{format}");
    }
}

#[test]
fn alpaca_joins_input_and_keeps_history_and_system() {
    let value = json!({"instruction": "Add", "input": "1 2", "output": "3", "system": "Sys", "history": [["a", "b"]]});
    let rendered = render(value, CHATML, settings()).unwrap();
    assert_eq!(
        text(&rendered.examples[0].tokens),
        "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nAdd\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    );
    assert_eq!(
        learnt(&rendered.examples[0]),
        ["b<|im_end|>", "3<|im_end|>"]
    );
}

#[test]
fn tools_reach_the_template_and_arguments_are_objects() {
    let source = "{% if tools %}{{ tools[0].function.name }};{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}\
        {% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}\
        {% if add_generation_prompt %}assistant:{% endif %}";
    let value = json!({"tools": [{"type": "function", "function": {"name": "look"}}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "content": "sea"}, {"role": "assistant", "content": "Blue"}]});
    let example = render(value, source, settings())
        .unwrap()
        .examples
        .remove(0);
    assert!(
        text(&example.tokens).starts_with("look;user:Hi\nthere<|im_end|>assistant:"),
        "{}",
        text(&example.tokens)
    );
    assert_eq!(learnt(&example), ["{\"a\": 1}<|im_end|>", "Blue<|im_end|>"]);
}

#[test]
fn sharegpt_function_calls_become_tool_calls() {
    let record = record(json!({"system": "S", "conversations": [
        {"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
        {"from": "observation", "value": "42"}, {"from": "gpt", "value": "It is 42"}]}));
    let Content::Chat(chat) = record.content else {
        panic!("not a chat")
    };
    assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["name"], "f");
    assert_eq!(chat.learnt, [false, false, true, false, true]);
}

#[test]
fn blank_lines_bom_and_crlf_are_tolerated() {
    let records = records(
        "t.jsonl",
        "\u{FEFF}{\"text\": \"a\"}\r\n\r\n   \n{\"text\": \"b\"}\r\n",
    )
    .unwrap();
    let places: Vec<Place> = records.iter().map(|record| record.source.place).collect();
    assert_eq!(places, [Place::Line(1), Place::Line(4)]);
}

#[test]
fn json_arrays_have_element_places() {
    let message = error("t.json", "\u{FEFF}\n[{\"text\": \"a\"},\n {\"text\": 3}]");
    assert!(
        message.ends_with("t.json[1]: field `text`: expected text, found the number 3"),
        "{message}"
    );
    let message = error("t.json", "[{\"text\": \"a\"},\n {\"text\": ]");
    assert!(
        message.contains("t.json:2: invalid JSON: expected value"),
        "{message}"
    );
}

// ---- errors ----

#[test]
fn errors_name_line_field_and_what_was_found() {
    let good = "{\"text\": \"a\"}\n";
    for (line, expected) in [
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"asistant\", \"content\": \"b\"}]}",
            "t.jsonl:2: field `messages[1].role`: expected one of system, user, assistant, tool, found \"asistant\"",
        ),
        (
            "{\"messages\": [{\"role\": \"user\"}]}",
            "t.jsonl:2: field `messages[0].content`: expected text, found nothing",
        ),
        (
            "{\"messages\": []}",
            "t.jsonl:2: field `messages`: expected a list of messages, found an empty list",
        ),
        (
            "{\"messages\": [3]}",
            "t.jsonl:2: field `messages[0]`: expected an object with `role` and `content`, found the number 3",
        ),
        (
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}",
            "field `messages[0].role`: expected a message from the user or the system first",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}, {\"role\": \"user\", \"content\": \"c\"}]}",
            "field `messages[2].role`: expected the last message to be the assistant's, which is what is learnt, found a message from `user`",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"  \"}]}",
            "field `messages[1].content`: expected what the assistant says, found an empty string",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
            "field `messages[0].content[0]`: expected a part of type `text`, found a part of type `image_url`",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 2}]}",
            "field `messages[1].weight`: expected 0 or 1, found the number 2",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 0}]}",
            "only messages with weight 0",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{\"}}]}]}",
            "field `messages[1].tool_calls[0].function.arguments`: expected a JSON object, found the text \"{\"",
        ),
        (
            "{\"conversations\": [{\"from\": \"humn\", \"value\": \"a\"}]}",
            "field `conversations[0].from`: expected one of system, human, gpt, tool, function_call, found \"humn\"",
        ),
        (
            "{\"conversations\": [{\"from\": \"human\"}]}",
            "field `conversations[0].value`: expected text, found nothing",
        ),
        (
            "{\"instruction\": \"a\"}",
            "field `output`: expected text, found nothing",
        ),
        (
            "{\"instruction\": \"a\", \"input\": {}, \"output\": \"b\"}",
            "field `input`: expected text, found an object",
        ),
        (
            "{\"prompt\": \"a\", \"completion\": null}",
            "field `completion`: expected text, found null",
        ),
        (
            "{\"prompt\": \"a\", \"completion\": \"\"}",
            "field `completion`: expected text that can be learnt, found an empty string",
        ),
        (
            "{\"text\": true}",
            "field `text`: expected text, found true",
        ),
        ("{\"message\": [], \"id\": 1}", "t.jsonl:2: no known format"),
        (
            "{\"message\": [], \"id\": 1}",
            "found `message`, `id` (did you mean `messages`?)",
        ),
        ("{}", "found no keys at all"),
        ("[1]", "no known format"),
        (
            "{\"text\": \"a\"",
            "t.jsonl:2: invalid JSON: EOF while parsing an object at column 12",
        ),
    ] {
        assert_error(&format!("{good}{line}\n"), expected);
    }
}

#[test]
fn unusable_files_are_named() {
    assert!(error("t.jsonl", "").contains("t.jsonl: the file is empty"));
    assert!(error("t.jsonl", " \n\n").contains("the file is empty"));
    assert!(error("t.json", "[]").contains("the file is empty"));
    let message = error("t.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xFF\"}\n");
    assert!(
        message
            .contains("t.jsonl:2: expected UTF-8 text, found byte 0xff at position 11 of the line"),
        "{message}"
    );
    let message = error("t.json", b"[\n\"\xC3\"]");
    assert!(
        message
            .contains("t.json:2: expected UTF-8 text, found byte 0xc3 at position 4 of the file"),
        "{message}"
    );
    assert!(error("t.jsonl", b"\xFF\xFE{\0").contains("UTF-16"));
    assert!(error("t.jsonl", "{\n\"text\": \"a\"\n}").contains("has to be on one line"));
    let missing = read::read_file(Path::new("no/such.jsonl"))
        .unwrap_err()
        .to_string();
    assert!(missing.starts_with("no/such.jsonl: "), "{missing}");
}

// ---- masks ----

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

// ---- length ----

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
    assert_eq!(
        report.formats,
        BTreeMap::from([(Format::Text, 1), (Format::PromptCompletion, 1)])
    );
    assert_eq!(
        (report.num_records, report.dropped.len(), report.num_targets),
        (2, 1, 3)
    );
    assert!(report.dropped[0].to_string().ends_with("mixed.jsonl:2"));
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
        message.contains("nothing to learn") && message.contains("t.jsonl:1"),
        "{message}"
    );
}

// ---- batches ----

/// `lengths.len()` examples whose tokens tell them apart; the last half of each is learnt.
fn examples(lengths: &[usize]) -> Arc<Vec<Example>> {
    let example = |(index, &length): (usize, &usize)| Example {
        tokens: (0..length)
            .map(|position| (index * 100 + position) as u32)
            .collect(),
        mask: (0..length)
            .map(|position| position >= length.div_ceil(2))
            .collect(),
        source: source(),
    };
    Arc::new(lengths.iter().enumerate().map(example).collect())
}

fn options() -> LoaderOptions {
    LoaderOptions {
        batch_size: 2,
        gradient_accumulation: 2,
        packing: None,
        seed: 7,
    }
}

/// The documents of a batch, by the hundreds of their first token.
fn documents(batch: &Batch) -> Vec<usize> {
    batch
        .positions
        .iter()
        .zip(&batch.tokens)
        .filter(|(position, _)| **position == 0)
        .map(|(_, token)| *token as usize / 100)
        .collect()
}

#[test]
fn collation_keeps_documents_apart() {
    let batch = Batch::collate(examples(&[3, 2]).iter());
    assert_eq!(batch.tokens, [0, 1, 2, 100, 101]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
    assert_eq!(batch.targets, [None, Some(2), None, Some(101), None]);
    assert_eq!(batch.lengths, [3, 2]);
    assert_eq!((batch.num_targets(), batch.num_tokens()), (2, 5));
}

#[test]
fn an_epoch_gives_every_example_once_in_its_own_order() {
    let data = examples(&[2; 10]);
    let mut loader = DataLoader::new(data.clone(), options());
    assert_eq!(loader.steps_per_epoch(), 3);
    let mut orders = Vec::new();
    for epoch in 0..2 {
        let steps: Vec<_> = (0..3).map(|_| loader.next_step()).collect();
        assert!(steps.iter().all(|step| step.epoch == epoch));
        assert_eq!(
            steps
                .iter()
                .map(|step| step.micro_batches.len())
                .collect::<Vec<_>>(),
            [2, 2, 1]
        );
        assert_eq!(
            steps
                .iter()
                .map(|step| step.num_targets)
                .collect::<Vec<_>>(),
            [4, 4, 2]
        );
        orders.push(
            steps
                .iter()
                .flat_map(|step| step.micro_batches.iter().flat_map(documents))
                .collect::<Vec<_>>(),
        );
    }
    assert_ne!(orders[0], orders[1]);
    orders.iter_mut().for_each(|order| order.sort_unstable());
    assert_eq!(orders[0], (0..10).collect::<Vec<_>>());
    assert_eq!(orders[1], orders[0]);
    let other = DataLoader::new(
        data,
        LoaderOptions {
            seed: 8,
            ..options()
        },
    )
    .next_step();
    assert_ne!(
        other,
        DataLoader::new(examples(&[2; 10]), options()).next_step()
    );
}

#[test]
fn a_restored_loader_goes_on_where_the_other_stood() {
    for packing in [None, Some(7)] {
        let data = examples(&[2, 3, 4, 5, 2, 3, 4, 5, 2]);
        let mut loader = DataLoader::new(
            data.clone(),
            LoaderOptions {
                packing,
                batch_size: 1,
                ..options()
            },
        );
        for _ in 0..7 {
            let state: LoaderState =
                serde_json::from_value(serde_json::to_value(loader.state()).unwrap()).unwrap();
            let mut restored = DataLoader::new(
                data.clone(),
                LoaderOptions {
                    packing,
                    batch_size: 1,
                    ..options()
                },
            );
            restored.restore(state);
            assert_eq!(loader.next_step(), restored.next_step());
        }
        assert!(loader.state().epoch > 0);
    }
}

#[test]
fn packing_fills_rows_without_splitting_or_losing_examples() {
    let data = examples(&[5, 2, 3, 6, 1, 4, 9, 2]);
    let options = LoaderOptions {
        packing: Some(8),
        batch_size: 1,
        gradient_accumulation: 1,
        seed: 1,
    };
    let mut loader = DataLoader::new(data.clone(), options);
    assert!(loader.num_rows() < 8, "nothing was packed");
    let mut seen = Vec::new();
    for _ in 0..loader.steps_per_epoch() {
        let batch = loader.next_step().micro_batches.remove(0);
        assert!(batch.num_tokens() <= 8 || batch.lengths == [9]);
        assert_eq!(
            batch.lengths,
            documents(&batch)
                .iter()
                .map(|&index| data[index].tokens.len())
                .collect::<Vec<_>>()
        );
        seen.extend(documents(&batch));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
}

#[test]
fn evaluation_goes_in_order() {
    let data = examples(&[2; 5]);
    let order: Vec<usize> = sequential_batches(&data, 2)
        .flat_map(|batch| documents(&batch))
        .collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

// ---- preview, and the sample data ----

#[test]
fn the_preview_brackets_what_is_learnt() {
    let value = chat(&[("system", "S"), ("user", "é"), ("assistant", "Ho")]);
    let examples = render(value, CHATML, settings()).unwrap().examples;
    let shown = preview(&examples, &tokenizer(), 3, false);
    assert!(shown.contains("t.jsonl:1: "), "{shown}");
    assert!(shown.contains("\\xC3|\\xA9|<|im_end|>|⏎\n"), "{shown}");
    assert!(
        shown.contains("a|n|t|⏎\n[H]|[o]|[<|im_end|>]|⏎\n"),
        "{shown}"
    );
    assert!(shown.contains("3 learnt (in [brackets])"), "{shown}");
    assert!(preview(&examples, &tokenizer(), 3, true).contains("\x1b[1;32mH\x1b[0m"));
}

#[test]
fn the_sample_data_is_valid() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    let (tokenizer, template) = (tokenizer(), template(CHATML));
    let renderer = Renderer::new(&tokenizer, Some(&template), settings());
    for (name, least) in [("train.jsonl", 40), ("eval.jsonl", 8)] {
        let dataset = Dataset::load(&[data.join(name)], &renderer).unwrap();
        assert!(dataset.examples.len() >= least && dataset.report.dropped.is_empty());
        for answer in dataset.examples.iter().flat_map(learnt) {
            assert!(
                answer.starts_with("Arr! ")
                    && answer.ends_with(" Squawk! Time for a biscuit!<|im_end|>"),
                "{answer}"
            );
        }
    }
}
