//! Runs: what they go on from, what they write, and what stops them.

use super::*;

/// Flags of a short run.
fn flags<'a>(data: &'a str, output: &'a str, steps: &'a str) -> Vec<&'a str> {
    let model = ["--device", "cpu", "--lora-r", "2", "--batch-size", "2"];
    [
        &model[..],
        &["--data", data, "--output", output, "--max-steps", steps],
    ]
    .concat()
}

/// A run of `--save-steps 2`, stopped by nothing, in `folder/a`.
fn run_of_four(folder: &Path) -> String {
    let data = data_folder().join("train.jsonl");
    let output = folder.join("a").to_str().unwrap().to_owned();
    let said = program(
        &[
            &flags(text_of(&data), &output, "4")[..],
            &["--save-steps", "2"],
        ]
        .concat(),
    );
    assert!(said.is_success(), "{}", said.err);
    output
}

#[test]
fn a_run_goes_on_as_it_was_or_says_what_differs() {
    let folder = TempDir::new().unwrap();
    let output = run_of_four(folder.path());
    let result =
        |folder: &str| fs::read(Path::new(folder).join("adapter_model.safetensors")).unwrap();
    let checkpoint = format!("{output}/checkpoint-2");
    let eval = data_folder().join("eval.jsonl");
    let other = folder.path().join("b").to_str().unwrap().to_owned();

    // The settings come from the run, the newest checkpoint is found, and the folder of a finished run stays as it is.
    let said = program(&["--resume", &output]);
    assert!(
        !said.is_success()
            && said
                .err
                .contains("--resume: expected a run that has not ended"),
        "{}",
        said.err
    );
    let said = program(&["--resume", &checkpoint, "--output", &other]);
    assert!(said.is_success(), "{}", said.err);
    assert!(result(&output) == result(&other), "the adapters differ");

    let third = folder.path().join("c").to_str().unwrap().to_owned();
    let start = ["--resume", &checkpoint, "--output", &third];
    let differing = [
        "--data",
        text_of(&eval),
        "--learning-rate",
        "1e-5",
        "--batch-size",
        "4",
    ];
    let said = program(&[&start[..], &differing].concat());
    for expected in [
        "--data: ",
        "--learning-rate: 0.002 in the checkpoint, 0.00001 in this run",
        "--batch-size: 2 in the checkpoint, 4 in this run",
        "--resume-anyway",
    ] {
        assert!(
            !said.is_success() && said.err.contains(expected),
            "{}",
            said.err
        );
    }
    assert!(
        !Path::new(&third).exists(),
        "the folder of a run that did not begin is left"
    );
    let said = program(&[&start[..], &differing, &["--resume-anyway"]].concat());
    assert!(
        said.is_success() && said.err.contains("going on although this run differs"),
        "{}",
        said.err
    );
    let settings = fs::read_to_string(Path::new(&third).join("run.toml")).unwrap();
    assert!(
        settings.contains("learning_rate = 0.00001") && settings.contains("eval.jsonl"),
        "{settings}"
    );

    // The same weights and tokenizer with another template.
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(data_folder().join("model")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    // How answers are drawn changes no training.
    fs::write(
        model.join("generation_config.json"),
        r#"{"temperature": 0.5, "eos_token_id": [2, 0]}"#,
    )
    .unwrap();
    let sixth = folder.path().join("f").to_str().unwrap().to_owned();
    let resumed = ["--resume", &checkpoint, "--output", &sixth];
    let said = program(&[&resumed[..], &["--model", text_of(&model)]].concat());
    assert!(said.is_success(), "{}", said.err);
    let template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    let fifth = folder.path().join("e").to_str().unwrap().to_owned();
    let resumed = ["--resume", &checkpoint, "--output", &fifth];
    let said = program(&[&resumed[..], &["--model", text_of(&model)]].concat());
    assert!(
        !said.is_success()
            && said
                .err
                .contains("chat_template.jinja of the model: none in the checkpoint"),
        "{}",
        said.err
    );

    let fourth = folder.path().join("d").to_str().unwrap().to_owned();
    let said = program(&[
        "--resume",
        &checkpoint,
        "--output",
        &fourth,
        "--lora-r",
        "8",
        "--resume-anyway",
    ]);
    assert!(
        !said.is_success()
            && said
                .err
                .contains("--lora-r: 2 in the checkpoint, 8 in this run"),
        "{}",
        said.err
    );
}

/// As after `2>&1 | head -1`, and on a full disk.
#[cfg(unix)]
#[test]
fn a_log_that_nobody_reads_ends_no_run() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let run = |name: &str, err: Stdio| {
        let output = folder.path().join(name).to_str().unwrap().to_owned();
        let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
        program
            .args(flags(text_of(&data), &output, "2"))
            .stderr(err);
        let ended = program.stdin(Stdio::null()).output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{name}");
        assert!(
            Path::new(&output)
                .join("adapter_model.safetensors")
                .exists()
        );
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    run("closed", writer.into());
    let full = Path::new("/dev/full");
    if full.exists() {
        let full = fs::OpenOptions::new().write(true).open(full).unwrap();
        run("full", full.try_clone().unwrap().into());
        let output = folder.path().join("out").to_str().unwrap().to_owned();
        let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
        program.args(flags(text_of(&data), &output, "2"));
        let ended = program.stdout(full.try_clone().unwrap()).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        let expected =
            format!("what was learnt is in {output}: standard output cannot be written: ");
        assert!(said.contains(&expected), "{said}");
        // The exit code of an error stays, too.
        let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
        program.args(["--data", "none.jsonl"]).stderr(full);
        assert_eq!(program.status().unwrap().code(), Some(1));
    }
}

#[test]
fn a_run_says_its_first_loss_and_the_folder_of_a_broken_adapter() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let [first, rare] =
        ["a", "b"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let loss = |output: &str, every: &str| {
        let said = program(
            &[
                &flags(text_of(&data), output, "3")[..],
                &["--log-steps", every],
            ]
            .concat(),
        );
        assert!(said.is_success(), "{}", said.err);
        let (_, losses) = said.out.split_once("; loss ").unwrap();
        losses.split(';').next().unwrap().to_owned()
    };
    assert_eq!(loss(&first, "1"), loss(&rare, "50"));
    let file = Path::new(&first).join("adapter_model.safetensors");
    fs::write(&file, "half").unwrap();
    let next = folder.path().join("c").to_str().unwrap().to_owned();
    let data = text_of(&data);
    let said = program(&["--data", data, "--output", &next, "--adapter", &first]);
    assert!(
        !said.is_success()
            && said
                .err
                .contains(&format!("{first}: adapter_model.safetensors: ")),
        "{}",
        said.err
    );
}

#[test]
fn another_run_starts_from_an_adapter() {
    let folder = TempDir::new().unwrap();
    let output = run_of_four(folder.path());
    let eval = data_folder().join("eval.jsonl");
    let next = folder.path().join("the next").to_str().unwrap().to_owned();
    let start = [
        "--data",
        text_of(&eval),
        "--adapter",
        &output,
        "--output",
        &next,
        "--device",
        "cpu",
        "--max-steps",
        "1",
        "--warmup-steps",
        "1",
    ];
    // The only step has the rate 0: the adapter comes out as it went in.
    let said = program(&start);
    assert!(said.is_success(), "{}", said.err);
    assert!(
        said.err.contains(
            "--warmup-steps: a warm-up of 1 steps in a run of 1: the rate of the only step is 0"
        ),
        "{}",
        said.err
    );
    // What comes next is one word for a shell, and the adapter's name has no blank.
    let module = format!("--enable-lora --lora-modules 'the-next={next}'\n");
    assert!(said.out.contains(&module), "{}", said.out);
    let read = |folder: &str, name: &str| fs::read(Path::new(folder).join(name)).unwrap();
    assert!(read(&output, "adapter_model.safetensors") == read(&next, "adapter_model.safetensors"));
    let settings = fs::read_to_string(Path::new(&next).join("run.toml")).unwrap();
    assert!(settings.contains("lora_r = 2\n"), "{settings}");
    let said = program(&[&start[..], &["--lora-r", "4"]].concat());
    assert!(
        said.err.contains("the adapter of --adapter keeps its rank"),
        "{}",
        said.err
    );
}

#[test]
fn numbers_that_are_none_stop_a_run_before_weights_are_written() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("o").to_str().unwrap().to_owned();
    let wild = [
        "--learning-rate",
        "1e38",
        "--warmup-steps",
        "0",
        "--max-grad-norm",
        "0",
        "--log-steps",
        "1000",
        "--save-steps",
        "1",
    ];
    let said = program(&[&flags(text_of(&data), &output, "6")[..], &wild].concat());
    assert!(!said.is_success(), "{}", said.out);
    assert!(
        said.err
            .contains("training has diverged, and no weights of it are written"),
        "{}",
        said.err
    );
    assert!(
        said.err.contains(" at step ") && said.err.contains("records"),
        "{}",
        said.err
    );
    assert!(
        !Path::new(&output)
            .join("adapter_model.safetensors")
            .exists()
    );
    let page = fs::read_to_string(Path::new(&output).join("report.html")).unwrap();
    assert!(page.contains("<th>Ended</th><td>by an error: "), "{page}");
}

#[test]
fn a_run_says_what_it_is_about_to_do_and_how_far_it_is() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let output = folder.path().join("o").to_str().unwrap().to_owned();
    let more = ["--warmup-steps", "100", "--max-length", "64"];
    let said = program(&[&flags(text_of(&data), &output, "10")[..], &more].concat());
    assert!(said.is_success(), "{}", said.err);
    for expected in [
        "parameters are trained, of a model with",
        "48 examples with ",
        "2 examples per step (2 × 1)",
        "a learning rate of 0.002 by default; for any other model that is 2e-4",
        "--warmup-steps: a warm-up of 100 steps in a run of 10: the learning rate never reaches its peak",
        "step 1/10: loss ",
        "step 10/10: loss ",
        " tokens/s, process memory ",
        ", 0 s left",
    ] {
        assert!(said.err.contains(expected), "{expected}: {}", said.err);
    }
}

#[test]
fn streamed_data_is_learnt_block_by_block_and_goes_on_where_it_was() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("many.jsonl");
    // Two blocks, the second one short.
    let lines: Vec<String> = (0..4100)
        .map(|number| format!("{{\"text\": \"{}\"}}\n", number % 10))
        .collect();
    fs::write(&data, lines.concat()).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (whole, parts) = (path("whole"), path("parts"));
    let columns = "text=text,system=context";
    let start = |output: &str| {
        let mut all: Vec<String> = [
            "--device",
            "cpu",
            "--lora-r",
            "2",
            "--batch-size",
            "1024",
            "--streaming",
            "--max-steps",
            "6",
            "--save-steps",
            "4",
            "--columns",
            columns,
        ]
        .map(ToOwned::to_owned)
        .to_vec();
        all.extend([
            "--data".into(),
            text_of(&data).to_owned(),
            "--output".into(),
            output.to_owned(),
        ]);
        all
    };
    let run = |all: &[String]| program(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let said = run(&start(&whole));
    assert!(said.is_success(), "{}", said.err);
    // Said once, after the first pass.
    let warned = "--columns: no record has the field of `system=context`, which has no effect";
    assert_eq!(said.err.matches(warned).count(), 1, "{}", said.err);
    let said = program(&[
        "--resume",
        &format!("{whole}/checkpoint-4"),
        "--output",
        &parts,
    ]);
    assert!(said.is_success(), "{}", said.err);
    let read =
        |folder: &str| fs::read(Path::new(folder).join("adapter_model.safetensors")).unwrap();
    assert!(read(&whole) == read(&parts), "the adapters differ");
    let metrics = fs::read_to_string(Path::new(&whole).join("metrics.jsonl")).unwrap();
    let epochs: Vec<f64> = metrics
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["epoch"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert!(epochs[5] > 1.0 && epochs[3] <= 1.0, "{epochs:?}");
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("notes.txt"), "mine").unwrap();
    let said = program(&flags(text_of(&data), text_of(&taken), "1"));
    assert!(
        said.err
            .contains("--output: expected a new or empty folder, found")
            && said.err.contains("notes.txt"),
        "{}",
        said.err
    );
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);

    let both = folder.path().join("both");
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_trainer-sft"))
            .args(flags(text_of(&data), text_of(&both), "2"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let [first, second] = [start(), start()].map(|mut run| run.wait().unwrap().success());
    assert!(first ^ second, "{first} {second}");
}

/// Files are as readable as the user wants new files to be.
#[cfg(unix)]
#[test]
fn files_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let data = data_folder().join("train.jsonl");
    let outputs = ["adapter", "full"].map(|name| folder.path().join(name));
    for (output, more) in outputs.iter().zip(["--lora-r 2", "--full --max-length 64"]) {
        let line = format!(
            "umask 027; exec {} --device cpu --batch-size 1 --max-steps 1 --save-steps 1 --data {} --output {} {more}",
            env!("CARGO_BIN_EXE_trainer-sft"),
            data.display(),
            output.display(),
        );
        let mut program = Command::new("sh");
        program
            .args(["-c", &line])
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        assert!(program.status().unwrap().success());
    }
    let mut folders = outputs.to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            let is_dir = entry.file_type().unwrap().is_dir();
            assert_eq!(
                mode,
                if is_dir { 0o750 } else { 0o640 },
                "{}",
                entry.path().display()
            );
            if is_dir {
                folders.push(entry.path());
            }
        }
    }
}
