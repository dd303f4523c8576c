//! `trainer-sft chat`, with questions from a pipe.

use std::io::Write as _;
use std::process::{Command, Stdio};

use lora_4bit::peft::{LoraAdapter, SavedModule};
use tempfile::TempDir;

use super::support::Said;
use super::{adapter, fail, refuse, text_of};

/// What the program says when these lines are its standard input.
fn chat(flags: &[&str], lines: &str) -> Said {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
    let greedy = ["chat", "--temperature", "0", "--max-tokens", "48"];
    let program = program.args([&greedy[..], flags].concat());
    let program = program.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // A program that has ended reads no more.
    let _ = input.write_all(lines.as_bytes());
    drop(input);
    Said::of(child.wait_with_output().unwrap())
}

/// The answers alone.
#[track_caller]
fn answers(flags: &[&str], lines: &str) -> Vec<String> {
    let said = chat(flags, lines);
    assert!(said.is_success(), "{}", said.err);
    said.out.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn both_voices_answer_as_each_of_them_does_alone() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    let question = "Tell me a story about a duck.\n";
    let base = answers(&[], question);
    let adapted = answers(&["--adapter", text_of(&path)], question);
    assert!(base.len() == 1 && !base[0].is_empty(), "{base:?}");
    assert_ne!(base, adapted);
    let both = chat(&["--adapter", text_of(&path), "--compare"], question).out;
    let expected = format!(
        "── base\n{}\n── adapter\n{}\n",
        base.join("\n"),
        adapted.join("\n")
    );
    assert_eq!(both, expected);
}

#[test]
fn a_conversation_is_remembered_until_it_begins_anew() {
    let first = "Tell me a story about a duck.";
    let second = "What did it do then?";
    let one_by_one = |question: &str| answers(&[], question).remove(0);
    let talk = answers(&[], &format!("{first}\n\n{second}\n"));
    assert_eq!(talk.len(), 2, "{talk:?}");
    assert_eq!(talk[0], one_by_one(first));
    assert_ne!(talk[1], one_by_one(second));
    let anew = answers(&[], &format!("{first}\n/reset\n{second}\n/quit\n{first}\n"));
    assert_eq!(anew, [one_by_one(first), one_by_one(second)]);
}

#[test]
fn a_system_prompt_is_a_flag_or_a_command() {
    let question = "Who are you?\n";
    let flag = answers(&["--system", "You are a pirate."], question);
    let command = answers(&[], &format!("Hi\n/system You are a pirate.\n{question}"));
    assert_eq!(command[1..], flag);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = adapter(folder.path());
    for (flags, expected) in [
        (&["--compare"][..], "--compare: expected an adapter"),
        (
            &["--temperature", "-1"],
            "--temperature: expected a finite number, 0 or more, found -1",
        ),
        (
            &["--top-p", "2"],
            "--top-p: expected a number above 0, up to 1",
        ),
        (
            &["--max-tokens", "0"],
            "--max-tokens: expected a whole number, 1 or more",
        ),
    ] {
        refuse(&[&["chat"], flags].concat(), &[expected]);
    }
    let missing = ["chat", "--adapter", "no-such-folder"];
    fail(&missing, &["no-such-folder"]);
    let said = chat(&["--adapter", text_of(&path)], "/what\nHi\n");
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(
        said.err.contains("`/what` is no command: /reset"),
        "{}",
        said.err
    );
    // More than the context of the bundled model.
    let said = chat(&[], &"go on and on ".repeat(1000));
    assert_eq!(said.code, 1);
    assert!(said.err.contains("the model's context"), "{}", said.err);
}

/// An adapter that brings a head of its own answers with it, and leaves no base to compare it with.
#[test]
fn an_adapter_with_a_head_of_its_own_talks_alone() {
    let folder = TempDir::new().unwrap();
    let plain = adapter(folder.path());
    let mut own = LoraAdapter::load(&plain).unwrap();
    own.config.modules_to_save = vec!["lm_head".to_owned()];
    // Each row says the same: the first token is as likely as any.
    let head = SavedModule {
        shape: [8192, 320],
        weight: vec![0.0; 8192 * 320],
    };
    own.saved.insert("lm_head".to_owned(), head);
    let path = folder.path().join("own");
    own.save(&path).unwrap();
    let question = "Tell me a story about a duck.\n";
    let [own, other] = [&path, &plain].map(|path| chat(&["--adapter", text_of(path)], question));
    assert!(own.is_success() && other.is_success(), "{}", own.err);
    assert_ne!(own.out, other.out);
    let refused = chat(&["--adapter", text_of(&path), "--compare"], question);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("trainer-sft merge"), "{}", refused.err);
}

#[test]
fn a_line_that_is_no_text_is_named() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
    program.args(["chat", "--temperature", "0", "--max-tokens", "4"]);
    program.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let _ = input.write_all(b"/reset\nSch\xf6n\nWho are you?\n");
    drop(input);
    let said = Said::of(child.wait_with_output().unwrap());
    let expected = "standard input: line 2: expected UTF-8, found the byte 0xf6 at column 4";
    assert!(
        !said.is_success() && said.err.contains(expected),
        "{}",
        said.err
    );
}

/// `script` has a terminal for the program, on which this is typed.
#[test]
#[cfg(target_os = "linux")]
fn a_terminal_edits_its_lines() {
    use std::io::{BufRead as _, BufReader, Read as _};
    let folder = TempDir::new().unwrap();
    let program = env!("CARGO_BIN_EXE_trainer-sft");
    let command = format!("'{program}' chat --temperature 0 --max-tokens 4");
    let mut script = Command::new("script");
    script
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm");
    script.current_dir(folder.path()).stdin(Stdio::piped());
    let mut child = script.stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    // What is typed before the terminal is ready would be another line's.
    let mut first = Vec::new();
    output.read_until(b'>', &mut first).unwrap();
    // A letter that was forgotten, and the same line once more; bytes that are no text; two lines pasted at once.
    for typed in [
        &b"/yst\x1b[D\x1b[D\x1b[Ds\r"[..],
        b"\x1b[A\r",
        b"\xff",
        b"/one\x1b[200~ two\nthree\x1b[201~\r",
        b"/quit\r",
    ] {
        input.write_all(typed).unwrap();
        input.flush().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    let refusals = said.matches("`/syst` is no command").count();
    assert_eq!(refusals, 2, "{said}");
    assert!(said.contains("standard input: expected UTF-8"), "{said}");
    let said = said.replace('\r', "");
    assert!(said.contains("`/one two\nthree` is no command"), "{said}");
}
