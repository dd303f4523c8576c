//! `trainer-sft check` of data that other methods learn from, and of data whose fields have other names.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::check::{compares_lines, file, json_of};
use super::{program, succeed, text_of};

/// Pairs and judged answers are read as `--method` says, by flag or by file.
#[test]
fn compared_answers_are_read_as_a_run_reads_them() {
    let folder = TempDir::new().unwrap();
    let pairs = [
        r#"{"prompt": "Who?", "chosen": "Ann.", "rejected": "Bob."}"#,
        r#"{"prompt": "Who?", "chosen": "Ann.", "rejected": "Bob."}"#,
        r#"{"prompt": "Who?", "chosen": "Bob.", "rejected": "Ann."}"#,
        r#"{"prompt": "Who?", "chosen": "Ann.", "rejected": "Eve."}"#,
        r#"{"prompt": "Who?", "chosen": "Ann.", "rejected": "Ann."}"#,
    ];
    let path = file(&folder, "pairs.jsonl", &pairs);
    let settings = format!(
        "data = {:?}\nmethod = \"dpo\"\nbeta = 0.2\n",
        text_of(&path)
    );
    let settings = file(&folder, "run.toml", &[&settings]);
    for arguments in [
        &[text_of(&path), "--method", "dpo"][..],
        &["--config", text_of(&settings)],
    ] {
        let found = json_of(arguments, 0);
        assert_eq!(found["method"], "dpo");
        assert_eq!(found["formats"], json!({"prompt/chosen/rejected": 4}));
        assert_eq!(found["num_examples"], 8);
        assert_eq!(found["cost"]["rows"], 4);
        let place = |line: usize| format!("{}:{line}", path.display());
        // Another rejected answer to the same prompt is no conflict; the other way round is one.
        compares_lines(&found, &path);
        assert_eq!(found["left_out"][0]["places"], json!([place(5)]));
        let previews = found["previews"].as_array().unwrap().iter();
        let wanted: Vec<&Value> = previews.map(|preview| &preview["is_wanted"]).collect();
        assert_eq!(wanted, [true, false, true, false, true, false]);
    }
    let text = succeed(&["check", text_of(&path), "--method", "orpo"]);
    for part in [
        "same answers 1 (judged in several ways)",
        "8 examples in 4 pairs",
        "(not wanted)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Without the method, a run refuses each of them and says what to do.
    let refused = json_of(&[text_of(&path)], 1);
    assert_eq!(refused["problems"].as_array().unwrap().len(), 5);
    let first = refused["problems"][0].as_str().unwrap();
    assert!(first.contains("--method dpo or orpo"), "{first}");

    let judged = [
        r#"{"prompt": "Who?", "completion": "Ann.", "label": true}"#,
        r#"{"prompt": "Who?", "completion": "Ann.", "label": false}"#,
        r#"{"prompt": "Who?", "completion": "Bob.", "label": false}"#,
    ];
    let path = file(&folder, "judged.jsonl", &judged);
    let found = json_of(&[text_of(&path), "--method", "kto"], 0);
    assert_eq!(found["formats"], json!({"prompt/completion/label": 3}));
    assert_eq!(found["num_duplicates"], 0);
    assert_eq!(found["conflicts"][0]["count"], 2);
    assert_eq!(found["conflicts"].as_array().unwrap().len(), 1);
}

/// Prompts are read as GRPO reads them, with the fields that rewards are about.
#[test]
fn prompts_for_rewards_are_read_as_a_run_reads_them() {
    let folder = TempDir::new().unwrap();
    let long = format!(r#"{{"prompt": "{}", "answer": "5"}}"#, "a b ".repeat(3000));
    let prompts = [
        r#"{"prompt": "2 + 2?", "answer": "4"}"#,
        r#"{"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}"#,
        r#"{"prompt": "2 + 2?", "answer": "5"}"#,
        r#"{"prompt": "2 + 3?"}"#,
        &long,
    ];
    let path = file(&folder, "prompts.jsonl", &prompts);
    let output = folder.path().join("there");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("file"), "").unwrap();
    let settings = format!(
        "data = {:?}\noutput = {:?}\nmethod = \"grpo\"\nreward = \"json\"\nnum_iterations = 2\n",
        text_of(&path),
        text_of(&output)
    );
    let settings = file(&folder, "run.toml", &[&settings]);
    let found = json_of(&["--config", text_of(&settings)], 0);
    assert_eq!(found["method"], "grpo");
    assert_eq!(found["num_records"], 5);
    assert_eq!(
        (&found["num_examples"], &found["num_targets"]),
        (&json!(4), &json!(0))
    );
    let place = |line: usize| format!("{}:{line}", path.display());
    // The text is what a user says.
    compares_lines(&found, &path);
    assert_eq!(found["left_out"][0]["places"], json!([place(5)]));
    // A prompt for each step, each step twice.
    assert_eq!(found["cost"]["rows_per_step"], 1);
    assert_eq!(found["cost"]["steps_per_epoch"], 8);

    let exact = [
        text_of(&path),
        "--method",
        "grpo",
        "--reward",
        "exact_match",
    ];
    let refused = json_of(&exact, 1);
    let problems = refused["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1);
    let problem = problems[0].as_str().unwrap();
    assert!(
        problem.contains(&place(4)) && problem.contains("answer"),
        "{problem}"
    );
    let strict = json_of(&[&exact[..], &["--strict"]].concat(), 1);
    assert_eq!(strict["problems"].as_array().unwrap().len(), 2);
    let text = program(&[&["check"], &exact[..]].concat()).out;
    for part in [
        "prompts ",
        "same prompt  1 (with different fields)",
        "--num-generations 8",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let said = program(&["check", text_of(&path), "--method", "grpo"]);
    assert!(said.err.contains("give --reward"), "{}", said.err);
    let said = program(&[&["check", "--max-length", "9"], &exact[..]].concat());
    let expected = "--max-length would have no effect: --method grpo";
    assert!(said.err.contains(expected), "{}", said.err);
    let said = program(&[&["check", "--tokens-per-second", "9"], &exact[..]].concat());
    let expected = "--tokens-per-second would have no effect with --method grpo";
    assert!(said.err.contains(expected), "{}", said.err);
}

/// A flag with several values ends before the data, which has no flag of its own.
#[test]
fn flags_of_a_check_take_no_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    fs::write(&path, "{\"question\": \"Hi?\", \"answer\": \"Yes.\"}\n").unwrap();
    let path = text_of(&path);
    let columns = "prompt=question,completion=answer";
    for flags in [
        &["--columns", columns, path][..],
        &[
            "--columns",
            "prompt=question",
            "--columns",
            "completion=answer",
            path,
        ],
        &[
            "--columns",
            columns,
            "--target-modules",
            "q_proj,v_proj",
            path,
        ],
        &["--columns", columns, "--report-to", "none", path],
        // Files of a flag are never data.
        &[path, "--columns", columns, "--eval-data", path, path],
        &["--columns", columns, "--data", path, path],
    ] {
        let said = succeed(&[&["check", "--device", "cpu"], flags].concat());
        assert!(said.contains("none: a run takes this data"), "{said}");
    }
}

#[test]
fn prompts_of_grpo_are_in_the_field_that_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    fs::write(&path, "{\"question\": \"Hi?\", \"answer\": \"Yes.\"}\n").unwrap();
    let flags = [
        "check",
        text_of(&path),
        "--method",
        "grpo",
        "--reward",
        "exact_match",
    ];
    let said = program(&flags);
    let hint = "(read it with --columns prompt=question)";
    assert!(said.out.contains(hint), "{}{}", said.out, said.err);
    succeed(&[&flags[..], &["--columns", "prompt=question"]].concat());
    let said = program(&[&flags[..], &["--columns", "prompt=problem"]].concat());
    let expected =
        "--columns prompt=problem names a field that is not there; found `question`, `answer`";
    assert!(said.out.contains(expected), "{}{}", said.out, said.err);
    let said = program(&[&flags[..], &["--columns", "prompt=question,system=persona"]].concat());
    let expected = "--columns: expected fields that a record has, found `system=persona`";
    assert!(
        !said.is_success() && said.err.contains(expected),
        "{}{}",
        said.out,
        said.err
    );
}

#[test]
fn prompts_without_a_question_or_a_right_answer_are_left_out() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.jsonl");
    let lines = [
        r#"{"prompt": "Q", "answer": "3"}"#,
        r#"{"prompt": "Q", "answer": ""}"#,
        r#"{"prompt": "R", "answer": null}"#,
        r#"{"prompt": "", "answer": "3"}"#,
        r#"{"prompt": null, "answer": "3"}"#,
        r#"{"messages": [{"role": "assistant", "content": "Unasked."}], "answer": "3"}"#,
    ];
    fs::write(&path, lines.join("\n")).unwrap();
    let flags = [
        text_of(&path),
        "--method",
        "grpo",
        "--reward",
        "exact_match",
    ];
    let found = json_of(&flags, 0);
    assert_eq!(
        (&found["num_records"], &found["num_examples"]),
        (&json!(6), &json!(1))
    );
    let reasons: Vec<&str> = found["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|left| left["reason"].as_str().unwrap())
        .collect();
    for expected in [
        "`answer` is empty, so that no answer could be right",
        "`prompt` is empty",
        "`messages` has no question before the answer of the assistant",
    ] {
        assert!(reasons.contains(&expected), "{reasons:?}");
    }
    let refused = json_of(&[&flags[..], &["--strict"]].concat(), 1);
    assert_eq!(refused["problems"].as_array().unwrap().len(), 5);
}
