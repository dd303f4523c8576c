//! The program `qwen-burn`: its own commands, and those that it passes on.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const FILES: [(&str, &str); 4] = [
    ("config.json", "{\"model_type\": \"qwen2\"}"),
    ("model.safetensors", "weights"),
    ("tokenizer.json", "{}"),
    ("tokenizer_config.json", "{}"),
];

/// Answers as the Hub does, for the model `org/name`; returns its address.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(&stream));
        }
    });
    address
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    lines
        .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
        .count();
    let revisions = ["main", COMMIT].map(|name| format!("/api/models/org/name/revision/{name}"));
    let file = path.strip_prefix("/org/name/resolve/").and_then(|rest| {
        let (_, name) = rest.split_once('/')?;
        let (_, text) = FILES.iter().find(|(known, _)| *known == name)?;
        Some((*text).to_owned())
    });
    let body = match revisions.iter().any(|known| known == path) {
        true => {
            let names = FILES.map(|(name, _)| json!({ "rfilename": name }));
            Some(json!({ "siblings": names, "sha": COMMIT }).to_string())
        }
        false => file,
    };
    let (status, body) = match body {
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", "no".to_owned()),
    };
    let sent = if method == "HEAD" { "" } else { &body };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{sent}",
        body.len()
    )
    .ok()
}

/// The program with a cache and a Hub of its own.
fn run(words: &[&str], home: &Path, endpoint: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qwen-burn"))
        .args(words)
        .current_dir(home)
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", endpoint)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("QWEN_BURN_DATA")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_model_is_pulled_and_its_folder_is_printed() {
    let (home, hub) = (tempfile::tempdir().unwrap(), hub());
    let pulled = run(&["pull", "org/name"], home.path(), &hub);
    let (out, err) = (text(&pulled.stdout), text(&pulled.stderr));
    assert!(pulled.status.success(), "{err}");
    let folder = Path::new(out.trim());
    assert!(folder.starts_with(home.path().join("hub")), "{out}");
    assert!(folder.ends_with(COMMIT), "{out}");
    let weights = std::fs::read_to_string(folder.join("model.safetensors"));
    assert_eq!(weights.unwrap(), "weights");
    assert!(
        err.contains(&format!("downloading org/name from {hub}")),
        "{err}"
    );

    // What is there needs no Hub, and nothing is said but the folder.
    let again = run(
        &["pull", "--quiet", "org/name"],
        home.path(),
        "http://127.0.0.1:9",
    );
    assert_eq!(text(&again.stdout), out);
    let elsewhere = home.path().join("elsewhere");
    let words = ["pull", "-q", "org/name", "--cache-dir", "elsewhere"];
    let moved = run(&words, home.path(), &hub);
    assert!(text(&moved.stdout).starts_with(elsewhere.to_str().unwrap()));
    assert_eq!(text(&moved.stderr), "");
}

#[test]
fn a_model_that_cannot_be_pulled_is_explained() {
    let (home, hub) = (tempfile::tempdir().unwrap(), hub());
    for (words, endpoint, part) in [
        (
            &["pull", "org/other"][..],
            hub.as_str(),
            "has no model org/other (HTTP 404)",
        ),
        (
            &["pull", "org/name"],
            "http://127.0.0.1:9",
            "Set HF_ENDPOINT to a mirror",
        ),
        (
            &["pull", "no-such-folder"],
            &hub,
            "neither an existing folder nor a model name",
        ),
    ] {
        let failed = run(words, home.path(), endpoint);
        let err = text(&failed.stderr);
        assert_eq!(failed.status.code(), Some(1), "{err}");
        assert!(err.contains("error: ") && err.contains(part), "{err}");
        assert_eq!(text(&failed.stdout), "");
    }
    assert_eq!(run(&["pull"], home.path(), &hub).status.code(), Some(2));
}

#[test]
fn doctor_says_what_is_there() {
    let (home, hub) = (tempfile::tempdir().unwrap(), hub());
    let said = run(&["doctor", "--json"], home.path(), &hub);
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said.status.success(), report["ok"] == true);
    let check = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name}: {report}"))
            .clone()
    };
    for name in ["CPU", "memory", "backends", "GPU", "model cache"] {
        assert!(
            check(name)["found"]
                .as_str()
                .is_some_and(|found| !found.is_empty())
        );
    }
    assert_eq!(check("hub")["status"], "ok");
    assert_eq!(check("bundled data")["status"], "ok");

    let mut without = Command::new(env!("CARGO_BIN_EXE_qwen-burn"));
    without.args(["doctor"]).env("QWEN_BURN_DATA", home.path());
    let without = without.env("HF_HUB_OFFLINE", "1").output().unwrap();
    let out = text(&without.stdout);
    assert_eq!(without.status.code(), Some(1), "{out}");
    assert!(out.contains("missing  bundled data"), "{out}");
    assert!(out.contains("HF_HUB_OFFLINE is set"), "{out}");
}

/// The name of the program, whatever part of it a command is.
#[test]
fn versions_are_those_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    for command in [
        &[][..],
        &["serve"],
        &["run-batch"],
        &["bench"],
        &["bench", "serve"],
        &["bench", "latency"],
        &["bench", "throughput"],
        &["pull"],
        &["doctor"],
        &["chat"],
        &["train"],
        &["merge"],
    ] {
        for (program, name) in [
            (env!("CARGO_BIN_EXE_qwen-burn"), "qwen-burn"),
            (env!("CARGO_BIN_EXE_server"), "server"),
        ] {
            let of_server = ["serve", "run-batch", "bench"];
            if name == "server"
                && command
                    .first()
                    .is_some_and(|word| !of_server.contains(word))
            {
                continue;
            }
            let said = Command::new(program)
                .args(command)
                .arg("--version")
                .output();
            let said = said.unwrap();
            let (out, err) = (text(&said.stdout), text(&said.stderr));
            assert_eq!(out, format!("{name} {version}\n"), "{command:?}: {err}");
            assert_eq!(said.status.code(), Some(0));
        }
    }
}

#[test]
fn settings_end_with_2_and_failures_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (keys, toml, batch) = (path("keys"), path("run.toml"), path("batch"));
    for (file, content) in [(&keys, ""), (&toml, "prot = 1\n"), (&batch, "")] {
        std::fs::write(file, content).unwrap();
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let missing = path("no");
    for (words, status) in [
        (&["--port", "x"][..], 2),
        (&["--prot", "1"], 2),
        (&["--max-model-len", "0"], 2),
        (&["--block-size", "0"], 2),
        (&["--device", "cudda"], 2),
        (&["--lora-modules", "a=b"], 2),
        (&["--api-key-file", &keys], 2),
        (&["--api-key-file", &missing], 2),
        (&["--config", &toml], 2),
        (&["--config", &missing], 2),
        (&["--chat-template", "{% if %}"], 2),
        (&["run-batch", "-i", "http://a/b", "-o", &missing], 2),
        (&["bench", "nothing"], 2),
        (&["bench", "latency", "--batch-size", "0"], 2),
        (&[&missing], 1),
        (&["--port", &port], 1),
        (&["run-batch", "-i", &missing, "-o", "-"], 1),
    ] {
        for (program, first) in [
            (env!("CARGO_BIN_EXE_server"), None),
            (env!("CARGO_BIN_EXE_qwen-burn"), Some("serve")),
        ] {
            let is_command = matches!(words[0], "run-batch" | "bench");
            let first = first.filter(|_| !is_command);
            // Another server may have the port that is the default.
            let names_port = is_command || matches!(words[0], "--port" | "--prot");
            let port: &[&str] = if names_port { &[] } else { &["--port", "0"] };
            let said = Command::new(program)
                .args(first)
                .args(words)
                .args(port)
                .output()
                .unwrap();
            let err = text(&said.stderr);
            assert_eq!(said.status.code(), Some(status), "{words:?}: {err}");
            assert!(err.contains("error: "), "{words:?}: {err}");
        }
    }
}

#[test]
fn commands_of_both_programs_have_their_names_here() {
    let home = tempfile::tempdir().unwrap();
    for (words, usage) in [
        (
            &["serve", "--help"][..],
            "Usage: qwen-burn serve [OPTIONS] [MODEL]",
        ),
        (&["run-batch", "--help"], "Usage: qwen-burn run-batch "),
        (&["bench", "--help"], "Usage: qwen-burn bench "),
        (
            &["bench", "serve", "--help"],
            "Usage: qwen-burn bench serve ",
        ),
        (
            &["bench", "latency", "--help"],
            "Usage: qwen-burn bench latency ",
        ),
        (&["help", "train"], "Usage: qwen-burn train "),
        (&["chat", "--help"], "Usage: qwen-burn chat "),
        (&["merge", "--help"], "Usage: qwen-burn merge "),
        (&["doctor", "--help"], "Usage: qwen-burn doctor "),
    ] {
        let said = run(words, home.path(), "http://127.0.0.1:9");
        let out = text(&said.stdout);
        assert!(
            said.status.success() && out.contains(usage),
            "{words:?}: {out}"
        );
        assert!(
            !out.contains("`server ") && !out.contains("`trainer-sft"),
            "{words:?}: {out}"
        );
    }
    for (words, usage) in [
        (&["serve", "--prot", "1"][..], "Usage: qwen-burn serve"),
        (&["serve", "a", "b"], "Usage: qwen-burn serve"),
        (&["train", "d.jsonl"], "Usage: qwen-burn train [OPTIONS]\n"),
        (&["train", "check2"], "Usage: qwen-burn train [OPTIONS]\n"),
        (&["train", "--dat", "d.jsonl"], "Usage: qwen-burn train "),
        (&["check", "--dat", "a"], "Usage: qwen-burn check "),
        (&["merge", "--adaptr", "a"], "Usage: qwen-burn merge "),
        (&["export", "a", "b"], "Usage: qwen-burn export "),
        (&["eval", "--adaptr", "a"], "Usage: qwen-burn eval "),
        (&["inspect"], "Usage: qwen-burn inspect "),
        (&["init", "a", "b"], "Usage: qwen-burn init "),
        (&["chat", "a", "b"], "Usage: qwen-burn chat "),
        (&["run-batch"], "Usage: qwen-burn run-batch "),
        (
            &["bench", "serve", "--prot", "1"],
            "Usage: qwen-burn bench serve ",
        ),
        (
            &["bench", "latency", "--prot", "1"],
            "Usage: qwen-burn bench latency ",
        ),
        (
            &["bench", "throughput", "--prot", "1"],
            "Usage: qwen-burn bench throughput ",
        ),
        (&["pull"], "Usage: qwen-burn pull "),
        (&["doctor", "a"], "Usage: qwen-burn doctor "),
        (&["srve"], "Usage: qwen-burn <COMMAND>"),
    ] {
        let wrong = run(words, home.path(), "http://127.0.0.1:9");
        let err = text(&wrong.stderr);
        assert_eq!(wrong.status.code(), Some(2), "{words:?}: {err}");
        assert!(err.contains(usage), "{words:?}: {err}");
        assert!(!err.contains("trainer-sft"), "{words:?}: {err}");
    }
    assert_eq!(run(&[], home.path(), "").status.code(), Some(2));
    let init = ["init", "run.toml", "--yes", "--data", "d.jsonl"];
    std::fs::write(home.path().join("d.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let init = run(&init, home.path(), "");
    let out = text(&init.stdout);
    assert!(
        out.contains("Train: qwen-burn train --config run.toml"),
        "{out}{}",
        text(&init.stderr)
    );
}
