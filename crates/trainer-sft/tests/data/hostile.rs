//! Files of data, changed at random and packed as people pack them.

use std::io::Write as _;

use super::*;
use crate::mutate::Random;

/// Records of every format.
fn records() -> Vec<Value> {
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]);
    vec![
        json!({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": call, "weight": 1}, {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "<think>x</think>ok"}], "tools": [{"type": "function", "function": {"name": "f"}}]}),
        json!({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ok"}], "system": "b"}),
        json!({"instruction": "Count.", "input": "to 2", "output": "1 2", "history": [["a", "b"]]}),
        json!({"prompt": "Why?", "completion": "Wind."}),
        json!({"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}], "label": true}),
        json!({"query": "q", "response": "r"}),
        json!({"text": "A ship."}),
        json!({"question": "q", "answer": "r", "id": 5}),
    ]
}

const NAMES: [&str; 24] = [
    "messages",
    "role",
    "content",
    "conversations",
    "from",
    "value",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "label",
    "tools",
    "tool_calls",
    "function",
    "arguments",
    "weight",
    "history",
    "system",
    "reasoning_content",
    "id",
];

/// The endings of files, which say how to read them.
const ENDINGS: [&str; 6] = ["jsonl", "json", "csv", "jsonl.gz", "jsonl.zst", "txt"];

/// A file of a few records: its ending, a line break, its bytes.
fn file(random: &mut Random) -> Vec<u8> {
    let seeds = records();
    let ending = *random.pick(&ENDINGS);
    let rows: Vec<Vec<u8>> = (0..1 + random.below(4))
        .map(|_| mutate::json(random, &seeds, &NAMES))
        .collect();
    let mut content = match (ending, random.below(2)) {
        ("csv", _) => b"instruction,output\n\"a, \"\"b\"\"\",c\nd,\"e\nf\"\n".to_vec(),
        ("json", 0) => [b"[".to_vec(), rows.join(&b","[..]), b"]".to_vec()].concat(),
        ("json", _) => [
            b"{\"train\": [".to_vec(),
            rows.join(&b", "[..]),
            b"], \"a\": 1}".to_vec(),
        ]
        .concat(),
        _ => rows.join(&b"\n"[..]),
    };
    if random.below(3) == 0 {
        mutate::bytes(random, &mut content);
    }
    if ending.ends_with("gz") {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&content).unwrap();
        content = packed.finish().unwrap();
    }
    if ending.ends_with("zst") {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        content = ruzstd::encoding::compress_to_vec(content.as_slice(), level);
    }
    if ending.contains('.') && random.below(2) == 0 {
        mutate::bytes(random, &mut content);
    }
    [ending.as_bytes(), b"\n", &content].concat()
}

#[test]
fn changed_files_are_read_or_refused() {
    let folder = TempDir::new().unwrap();
    let renderer = Renderer::new(&tokenizer(), Some(&template(CHATML)), settings());
    mutate::run("data", file, |input| {
        let at = input.iter().position(|&byte| byte == b'\n').unwrap();
        let ending = std::str::from_utf8(&input[..at]).unwrap();
        let path = folder.path().join(format!("data.{ending}"));
        std::fs::write(&path, &input[at + 1..]).unwrap();
        if let Err(error) = Dataset::load(std::slice::from_ref(&path), &renderer) {
            assert!(!error.to_string().is_empty());
        }
        if let Ok(records) = read::read_file(&path) {
            for (source, value) in records {
                let _ = Record::parse(source, value, &Columns::default());
            }
        }
        std::fs::remove_file(path).unwrap();
    });
}
