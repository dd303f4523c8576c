//! Ends that nobody wants: a folder that is gone, a run that was killed, a signal while loading, a loss that collapses.

use super::*;

use std::time::{Duration, Instant};

fn flags<'a>(output: &'a str, steps: &'a str) -> Vec<&'a str> {
    let flags = ["--device", "cpu", "--batch-size", "1", "--lora-r", "2"];
    [&flags[..], &["--output", output, "--max-steps", steps]].concat()
}

fn start(flags: &[&str], data: &str, temporary: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
        .args(flags)
        .args(["--data", data])
        .env("TMPDIR", temporary)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[track_caller]
fn wait(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_secs(120), "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What takes hours is not lost with the folder that it was meant for.
#[test]
fn a_result_that_cannot_be_written_is_kept_elsewhere() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let temporary = folder.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    let above = folder.path().join("above");
    let output = above.join("adapter");
    let run = start(&flags(text_of(&output), "20"), text_of(&data), &temporary);
    let metrics = output.join("metrics.jsonl");
    wait("first step", || {
        fs::metadata(&metrics).is_ok_and(|file| file.len() > 0)
    });
    fs::rename(&above, folder.path().join("moved")).unwrap();
    fs::write(&above, "no folder any more").unwrap();

    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(!ended.status.success(), "{said}");
    let kept = fs::read_dir(&temporary)
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path();
    assert!(said.contains(text_of(&kept)), "{said}");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        assert!(kept.join(file).is_file(), "{file}");
    }
}

#[test]
fn what_a_killed_run_has_left_is_cleaned() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("run");
    let saves = ["--save-steps", "1"];
    let all = [flags(text_of(&output), "100000"), saves.to_vec()].concat();
    let mut run = start(&all, text_of(&data), folder.path());
    wait("checkpoint", || output.join("checkpoint-1").is_dir());
    run.kill().unwrap();
    run.wait().unwrap();
    let half = output.join("checkpoint-7.part");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("adapter_model.safetensors"), "half").unwrap();
    fs::write(output.join(".adapter.1.tmp"), "half").unwrap();
    fs::write(output.join("notes.txt"), "mine").unwrap();

    let checkpoints = fs::read_dir(&output)
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_prefix("checkpoint-")?.parse::<usize>().ok()
        });
    let steps = (checkpoints.max().unwrap() + 1).to_string();
    let output_text = text_of(&output);
    let all = [
        flags(output_text, &steps),
        saves.to_vec(),
        vec![
            "--data",
            text_of(&data),
            "--resume",
            output_text,
            "--resume-anyway",
        ],
    ]
    .concat();
    let said = program(&all);
    assert!(said.is_success(), "{}", said.err);
    assert!(!half.exists() && !output.join(".adapter.1.tmp").exists());
    assert!(output.join("notes.txt").is_file());
    assert!(output.join("adapter_model.safetensors").is_file());
}

/// Before the first step there is nothing to save: the program ends at once, and leaves no folder.
#[cfg(unix)]
#[test]
fn a_signal_while_loading_ends_at_once() {
    let folder = TempDir::new().unwrap();
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let output = folder.path().join(format!("run{signal}"));
        // It waits for data.
        let mut run = start(&flags(text_of(&output), "2"), "-", folder.path());
        let input = run.stdin.take();
        wait("output folder", || output.is_dir());
        let id = run.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let start = Instant::now();
        let ended = run.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(ended.code(), Some(code));
        assert!(!output.exists(), "{signal}");
        drop(input);
    }
}

#[test]
fn a_loss_that_collapses_is_said() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("run");
    let wild = [
        "--data",
        text_of(&data),
        "--learning-rate",
        "30",
        "--max-grad-norm",
        "1e6",
    ];
    let said = program(&[flags(text_of(&output), "8"), wild.to_vec()].concat());
    let expected = "is that of guessing at random (ln 8192 = 9.01)";
    assert!(said.err.contains(expected), "{}", said.err);
}

#[test]
fn an_output_below_a_file_is_named() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let output = file.join("run");
    let said = program(&[flags(text_of(&output), "1"), vec!["--data", text_of(&data)]].concat());
    let expected = format!(
        "expected a path of folders, found the file {}",
        file.display()
    );
    assert!(
        !said.is_success() && said.err.contains(&expected),
        "{}",
        said.err
    );
}

/// Whether or not what is said at the end can be written.
#[cfg(target_os = "linux")]
#[test]
fn a_stopped_run_ends_with_its_signal() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("run");
    let mut run = Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
        .args(flags(text_of(&output), "100000"))
        .args(["--data", text_of(&data)])
        .stdin(Stdio::null())
        .stdout(
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = output.join("metrics.jsonl");
    wait("first step", || {
        fs::metadata(&metrics).is_ok_and(|file| file.len() > 0)
    });
    let id = run.id().to_string();
    let kill = Command::new("kill").args(["-TERM", &id]).status();
    assert!(kill.unwrap().success());
    assert_eq!(run.wait().unwrap().code(), Some(143));
}
