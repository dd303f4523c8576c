//! Files, folders and what they are packed in.

use std::io::Write;

use super::*;

const LINES: &str = "{\"prompt\": \"Who?\", \"completion\": \"A gull.\"}\n{\"prompt\": \"Where?\", \"completion\": \"At sea.\"}\n";

/// `--preview 9` of this `--data`, in this folder.
fn shown(folder: &Path, data: &[&str], stdin: &str) -> Said {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
        .current_dir(folder)
        .args([
            "--preview",
            "9",
            "--model",
            text_of(&data_folder().join("model")),
            "--data",
        ])
        .args(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    program
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    Said::of(program.wait_with_output().unwrap())
}

/// A Zstandard frame that holds `content` as it is.
fn zst(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0x20, content.len() as u8];
    let header = (content.len() as u32) << 3 | 1;
    frame.extend(&header.to_le_bytes()[..3]);
    frame.extend(content);
    frame
}

#[test]
fn files_are_read_in_every_form() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
    write("a.jsonl", LINES.as_bytes());
    write("array.json", b"\n[{\"prompt\": \"Who?\", \"completion\": \"A gull.\"},\n{\"prompt\": \"Where?\", \"completion\": \"At sea.\"}]\n");
    write(
        "table.csv",
        b"prompt,completion\nWho?,A gull.\n\"Where?\",\"At sea.\"\n",
    );
    write(
        "table.tsv",
        b"prompt\tcompletion\nWho?\tA gull.\nWhere?\tAt sea.\n",
    );
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(LINES.as_bytes()).unwrap();
    write("b.jsonl.gz", &packed.finish().unwrap());
    let (first, second) = LINES.split_at(LINES.find('\n').unwrap() + 1);
    write(
        "c.jsonl.zst",
        &[zst(first.as_bytes()), zst(second.as_bytes())].concat(),
    );
    let expected = ["A gull.<|im_end|>", "At sea.<|im_end|>"];
    for name in [
        "a.jsonl",
        "array.json",
        "table.csv",
        "table.tsv",
        "b.jsonl.gz",
        "c.jsonl.zst",
    ] {
        assert_eq!(
            learnt(&shown(folder.path(), &[name], "")),
            expected,
            "{name}"
        );
    }
    assert_eq!(learnt(&shown(folder.path(), &["-"], LINES)), expected);
    write("README.md", b"about");
    write("more.parquet", b"PAR1....");
    let all = shown(folder.path(), &["."], "");
    assert_eq!(learnt(&all).len(), 9, "{}", all.out);
    assert!(
        all.out.contains("of 12 examples") && all.err.contains("not read: README.md, more.parquet"),
        "{}",
        all.err
    );
    assert!(
        shown(folder.path(), &["table.*"], "")
            .out
            .contains("of 4 examples")
    );
}

/// As a shell has it.
#[test]
fn patterns_match_no_hidden_files() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join(".cache")).unwrap();
    for name in ["a.jsonl", ".b.jsonl", ".cache/c.jsonl"] {
        fs::write(folder.path().join(name), LINES).unwrap();
    }
    for (pattern, examples) in [
        ("*.jsonl", 2),
        ("**/*.jsonl", 2),
        (".*.jsonl", 2),
        ("./*.jsonl", 2),
        (".cache/*.jsonl", 2),
    ] {
        let said = shown(folder.path(), &[pattern], "");
        let expected = format!("of {examples} examples");
        assert!(said.out.contains(&expected), "{pattern}: {}", said.err);
    }
}

#[test]
fn what_cannot_be_read_is_named_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::create_dir(folder.path().join("tables")).unwrap();
    fs::write(folder.path().join("tables/a.parquet"), "PAR1....").unwrap();
    fs::write(folder.path().join("data/train.jsonl"), LINES).unwrap();
    for (name, content, expected) in [
        (
            "a.parquet",
            b"PAR1....".as_slice(),
            "found a Parquet file: convert it to JSONL",
        ),
        (
            "stream.arrow",
            b"\xFF\xFF\xFF\xFF\x10\x00\x00\x00",
            "found an Arrow file: convert it to JSONL",
        ),
        (
            "old.feather",
            b"\x10\x00\x00\x00\x0c\x00",
            "found an Arrow file: convert it to JSONL",
        ),
        (
            "windows.csv",
            b"prompt,completion\nWho?,Oui\xe9.\n",
            "windows.csv:2: column `completion`: expected UTF-8 text, found byte 0xe9 at position 4 of the cell: convert the \
             file, for example with `iconv -f WINDOWS-1252 -t UTF-8`",
        ),
        (
            "old.jsonl",
            b"{\"prompt\": \"Who?\", \"completion\": \"Mo.\"}\r{\"prompt\": \"Who?\", \"completion\": \"Mo.\"}\r",
            "(the lines end in carriage returns alone: convert the file, for example with `tr '\\r' '\\n'`)",
        ),
        (
            "preallocated.jsonl",
            b"{\"prompt\": \"Who?\", \"completion\": \"Mo.\"}\n\0\0\0\0",
            "preallocated.jsonl:2: invalid JSON: expected value at column 1 (there are bytes of value 0: ",
        ),
        (
            "header.csv",
            b"fran\xe7ais,prompt\nOui,Yes\n",
            "header.csv: header: expected UTF-8 text, found byte 0xe7 at position 5",
        ),
        (
            "lfs.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "found a Git LFS pointer: run `git lfs pull`",
        ),
        (
            "short.csv",
            b"prompt,completion\nWho?\n",
            "short.csv:2: expected 2 cells as in the header, found 1",
        ),
        ("cut.jsonl.gz", b"\x1F\x8B\x08\x00", "cut.jsonl.gz: "),
        (
            "semicolons.csv",
            b"prompt;completion\nWho?;Mo.\n",
            "found `prompt;completion`: a table with semicolons",
        ),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
        let said = shown(folder.path(), &[name], "");
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{}",
            said.err
        );
    }
    let said = shown(folder.path(), &["train.jsonl"], "");
    let here = folder.path().canonicalize().unwrap();
    let expected = format!(
        "train.jsonl: no such file in {}; did you mean `data/train.jsonl`?",
        here.display()
    );
    assert!(said.err.contains(&expected), "{}", said.err);
    let said = shown(folder.path(), &["data/trian.jsonl"], "");
    assert!(
        said.err.contains("did you mean `data/train.jsonl`?"),
        "{}",
        said.err
    );
    for (data, expected) in [
        ("empty", "the folder empty: expected files ending in .jsonl"),
        (
            "tables",
            "expected files ending in .jsonl, .json, .ndjson, .csv, .tsv (also with .gz or .zst), found a.parquet",
        ),
        ("*.jsonx", "the pattern `*.jsonx` matches no file"),
        ("zebra.jsonl", "zebra.jsonl: no such file in"),
        (
            "acme/stories",
            "a data set of the Hub has to be downloaded first, for example with",
        ),
        (
            "https://example.org/a.jsonl",
            "found https://example.org/a.jsonl: download the data first",
        ),
    ] {
        let said = shown(folder.path(), &[data], "");
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{}",
            said.err
        );
        assert!(!said.err.contains("did you mean"), "{}", said.err);
    }
}

#[test]
fn data_to_evaluate_on_beside_data_to_learn_from_is_named() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let record = json!({"prompt": "A?", "completion": "B."}).to_string();
    for name in [
        "train-00.jsonl",
        "valid.jsonl",
        "test.jsonl",
        "developers.jsonl",
    ] {
        fs::write(path(name), &record).unwrap();
    }
    let apart = [path("train-00.jsonl"), path("valid.jsonl")];
    let expected = format!(
        "2 of 4 files have the names of data to evaluate on (test.jsonl, valid.jsonl), and are read like all others; to keep them \
         apart, give --data {} and, for a run, --eval-data {}",
        text_of(&apart[0]),
        text_of(&apart[1])
    );
    let pattern = path("*.jsonl");
    for data in [folder.path(), &pattern] {
        let said = program(&["--preview", "1", "--data", text_of(data)]);
        assert!(
            said.is_success() && said.err.contains(&expected),
            "{}",
            said.err
        );
    }
    fs::remove_file(path("train-00.jsonl")).unwrap();
    let said = program(&["--preview", "1", "--data", text_of(folder.path())]);
    assert!(
        said.is_success() && !said.err.contains("to evaluate on"),
        "{}",
        said.err
    );
}

#[test]
fn all_files_of_a_split_are_named() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let record = json!({"prompt": "A?", "completion": "B."}).to_string();
    for part in ["train", "validation", "test"] {
        for number in 0..if part == "train" { 3 } else { 2 } {
            fs::write(path(&format!("{part}-0000{number}.jsonl")), &record).unwrap();
        }
    }
    let eval = format!(
        "--eval-data {} {}",
        text_of(&path("validation-00000.jsonl")),
        text_of(&path("validation-00001.jsonl"))
    );
    let said = program(&["--preview", "1", "--data", text_of(folder.path())]);
    let expected = format!(
        "--data '{}' and, for a run, {eval}",
        text_of(&path("train-0000*.jsonl"))
    );
    assert!(said.err.contains(&expected), "{}", said.err);
    // Here --eval-data is another name of --data.
    let said = program(&["eval", "--device", "cpu", "--data", text_of(folder.path())]);
    let expected = format!("to measure on the others alone, give {eval} in the place of all");
    assert!(
        said.is_success() && said.err.contains(&expected),
        "{}",
        said.err
    );
}

#[test]
fn a_folder_that_is_called_true_is_read() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("true");
    fs::create_dir(&model).unwrap();
    copy_model(&model);
    let said = Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
        .current_dir(folder.path())
        .args(["inspect", "--json", "true"])
        .output();
    let said = Said::of(said.unwrap());
    assert!(said.out.starts_with('{'), "{}{}", said.out, said.err);
}

#[test]
fn a_table_through_standard_input_is_named() {
    let folder = TempDir::new().unwrap();
    let said = shown(folder.path(), &["-"], "prompt,completion\nWho?,A gull.\n");
    let expected = "`-` reads JSON only: give a table as a .csv or .tsv file";
    assert!(
        !said.is_success() && said.err.contains(expected),
        "{}",
        said.err
    );
}
