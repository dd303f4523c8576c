//! A run that is stopped goes on from its checkpoint as if nothing had happened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trainer_sft::args::Args;
use trainer_sft::config::Config;
use trainer_sft::{TrainError, Training, train, train_until};

/// Flags of a run of the bundled model.
fn flags(output: &Path, max_steps: &str) -> Vec<OsString> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/train.jsonl");
    let [data, output] = [data.as_os_str(), output.as_os_str()].map(OsString::from);
    let mut flags: Vec<OsString> = ["--device", "cpu", "--max-steps", max_steps, "--data"]
        .map(OsString::from)
        .to_vec();
    flags.extend([data, "--output".into(), output]);
    flags
}

fn config(output: &Path, resume: Option<&Path>) -> Config {
    let mut all = vec!["trainer-sft".into()];
    all.extend(flags(output, "3"));
    if let Some(resume) = resume {
        all.extend(["--resume".into(), resume.into()]);
    }
    Args::parse_config(all).unwrap()
}

fn adapter(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    let summary = train(&config(&whole, None)).unwrap();
    assert_eq!((summary.num_steps, &summary.stopped), (3, &None));

    let (first, stop) = (config(&parts, None), AtomicBool::new(false));
    let training = Training::new(&first).stop_when(&stop);
    let training = training.on_start(|| stop.store(true, Ordering::Relaxed));
    let stopped = training.run().unwrap();
    let checkpoint: PathBuf = stopped.stopped.clone().unwrap();
    assert_eq!(stopped.num_steps, 1);
    assert!(!parts.join("adapter_model.safetensors").exists());
    let told = format!("--resume {}", checkpoint.display());
    assert!(stopped.to_string().contains(&told), "{stopped}");
    let page = std::fs::read_to_string(parts.join("report.html")).unwrap();
    assert!(page.contains("<td>stopped; --resume goes on</td>"));

    let summary = train(&config(&parts, Some(&checkpoint))).unwrap();
    assert_eq!((summary.num_steps, summary.stopped), (3, None));
    assert!(adapter(&whole) == adapter(&parts), "the adapters differ");
}

#[test]
fn a_run_that_writes_in_its_folder_alone_leaves_nothing_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a");
    let config = config(&output, None);
    let training = Training::new(&config).only_in_output().on_step(|step| {
        if step.step == 3 {
            // In the way of the adapter.
            std::fs::create_dir_all(output.join("adapter_model.safetensors/full")).unwrap();
        }
        ControlFlow::Continue(())
    });
    let error = training.run().unwrap_err();
    assert!(!matches!(error, TrainError::Result { .. }), "{error}");
    assert!(
        error.to_string().contains("adapter_model.safetensors"),
        "{error}"
    );
    let name = format!("trainer-sft-{}-a", std::process::id());
    assert!(!std::env::temp_dir().join(name).exists());
}

#[test]
fn a_result_that_cannot_be_written_leaves_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a");
    let config = config(&output, None);
    let training = Training::new(&config).on_step(|step| {
        if step.step == 3 {
            // In the way of the adapter.
            std::fs::create_dir_all(output.join("adapter_model.safetensors/full")).unwrap();
        }
        ControlFlow::Continue(())
    });
    let error = training.run().unwrap_err();
    let TrainError::Result { kept, .. } = &error else {
        panic!("{error}");
    };
    let kept = kept.clone().unwrap();
    assert!(!adapter(&kept).is_empty());
    std::fs::remove_dir_all(kept).unwrap();
    let page = std::fs::read_to_string(output.join("report.html")).unwrap();
    assert!(page.contains("<th>Steps</th><td>3</td>"));
    assert!(page.contains("<th>Ended</th><td>by an error: "));
}

/// Ctrl-C in a terminal, `kill`, and a terminal that goes away.
#[cfg(unix)]
#[test]
fn an_interrupted_program_leaves_a_checkpoint() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    // Under `nohup` this test's programs ignore SIGHUP, as they should.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let ignores_hup = ignored.is_some_and(|mask| mask & 1 != 0);
    let all = [("-INT", 130), ("-TERM", 143), ("-HUP", 129)];
    for (signal, code) in all.into_iter().take(if ignores_hup { 2 } else { 3 }) {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("adapter");
        let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
            .args(flags(&output, "100000"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while std::fs::read(output.join("metrics.jsonl")).map_or(true, |text| text.is_empty()) {
            assert!(start.elapsed() < Duration::from_secs(120), "no first step");
            assert!(program.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        let id = program.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
        let ended = program.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(code));
        let told = String::from_utf8(ended.stdout).unwrap();
        let (_, checkpoint) = told.trim_end().split_once("--resume ").unwrap();
        assert!(
            Path::new(checkpoint)
                .join("adapter_model.safetensors")
                .is_file()
        );
    }
}

/// A run is gone on with from another folder than the one that it was started in, and its adapter names the base without `..`.
#[test]
fn paths_that_a_run_leaves_hold_everywhere() {
    use std::process::Command;

    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/train.jsonl");
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::copy(data, dir.path().join("d/own.jsonl")).unwrap();
    std::fs::write(dir.path().join("prompts.txt"), "Who?\n").unwrap();
    let out = dir.path().join("out");
    let flags = "--device cpu --data d/own.jsonl --max-steps 3 --save-steps 2 --output out --sample-prompts prompts.txt \
                 --sample-max-tokens 2";
    let program = |folder: &Path, words: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
        program
            .args(words)
            .current_dir(folder)
            .output()
            .unwrap()
            .status
            .code()
    };
    let words: Vec<&str> = flags.split_whitespace().collect();
    assert_eq!(program(dir.path(), &words), Some(0));
    let whole = adapter(&out);
    std::fs::remove_file(out.join("adapter_model.safetensors")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let output = out.to_str().unwrap();
    assert_eq!(program(elsewhere.path(), &["--resume", output]), Some(0));
    assert!(adapter(&out) == whole, "the adapters differ");
    let text = std::fs::read_to_string(out.join("adapter_config.json")).unwrap();
    let named: serde_json::Value = serde_json::from_str(&text).unwrap();
    let base = named["base_model_name_or_path"].as_str().unwrap();
    assert!(
        Path::new(base).is_absolute() && !base.contains(".."),
        "{base}"
    );
}

/// Reading takes long where there is much, and nobody waits for data that nobody wants.
#[test]
fn a_run_that_is_stopped_while_it_reads_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [output, data] = ["out", "data.jsonl"].map(|name| dir.path().join(name));
    let record = "{\"prompt\": \"Who are you?\", \"completion\": \"I am a red tin robot.\"}\n";
    std::fs::write(&data, record.repeat(300_000)).unwrap();
    let mut config = config(&output, None);
    config.data.train = vec![data];
    for delay in [0, 100] {
        let stop = AtomicBool::new(delay == 0);
        let begun = Instant::now();
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(delay));
                stop.store(true, Ordering::Relaxed);
            });
            train_until(&config, &stop)
        });
        assert!(matches!(ended, Err(TrainError::Stopped)), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(!output.exists());
    }
}
