//! Files, jobs and previews of a server that trains the bundled model.

use std::convert::Infallible;
use std::path::Path;

use axum::body::{Body, Bytes};
use serde_json::Value;
use server::engine::Engine;
use server::{AppState, Config};

use crate::mutate::{self, Random};
use crate::{fuzz, runtime, seeds, send};

const FILES: &str = "/v1/files";

/// Takes jobs, and begins none.
fn start(folder: &Path) -> AppState {
    let flags = [
        "server",
        "--device",
        "cpu",
        "--kv-cache-memory-bytes",
        "4MiB",
        "--max-model-len",
        "256",
        "--enable-lora",
        "--enable-finetuning",
        "--finetuning-memory",
        "1GiB",
        "--finetuning-dir",
    ];
    let folder = folder.to_str().unwrap();
    let config = Config::from_command_line(flags.into_iter().chain([folder])).unwrap();
    let (engine, model) = Engine::start(&config).unwrap();
    let state = AppState::new(&config, engine, model);
    state.start_finetuning(&config).unwrap();
    state.finetuning().unwrap().begin_shutdown();
    state
}

/// A form with two examples to learn from.
const FORM: &str = "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--B\r\n\
    Content-Disposition: form-data; name=\"file\"; filename=\"talk.jsonl\"\r\nContent-Type: application/jsonl\r\n\r\n\
    {\"prompt\": \"Who are you?\", \"completion\": \"A parrot.\"}\n\
    {\"messages\": [{\"role\": \"user\", \"content\": \"Why?\"}, {\"role\": \"assistant\", \"content\": \"So.\"}]}\n\r\n--B--\r\n";

/// A form that comes in small pieces.
fn upload(kind: &str, form: &[u8]) -> Option<hyper::Request<Body>> {
    let pieces: Vec<_> = form.chunks(13).map(Bytes::copy_from_slice).collect();
    let pieces = futures::stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
    let request = hyper::Request::post(FILES).header("content-type", kind);
    request.body(Body::from_stream(pieces)).ok()
}

#[test]
fn uploads() {
    let folder = tempfile::tempdir().unwrap();
    let state = start(folder.path());
    let kinds = [
        "multipart/form-data; boundary=B",
        "multipart/form-data; boundary=\"B\"; charset=utf-8",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=B",
    ];
    let make = |random: &mut Random| {
        // Most bodies get to the parser of forms.
        let kind = match random.below(4) {
            0 => random.pick(&kinds),
            _ => kinds[0],
        };
        let mut form = FORM.as_bytes().to_vec();
        mutate::bytes(random, &mut form);
        [kind.as_bytes(), b"\n", &form].concat()
    };
    let runtime = runtime();
    mutate::run("uploads", make, |input| {
        let at = input.iter().position(|&byte| byte == b'\n').unwrap();
        let kind = std::str::from_utf8(&input[..at]).unwrap();
        let request = upload(kind, &input[at + 1..]).unwrap();
        let (status, text) = runtime.block_on(send(&state, request));
        assert!(status < 500, "{status} {text}");
        if status == 200 {
            let file: Value = serde_json::from_str(&text).unwrap();
            let path = format!("{FILES}/{}", file["id"].as_str().unwrap());
            let request = hyper::Request::delete(path).body(Body::empty()).unwrap();
            let (status, text) = runtime.block_on(send(&state, request));
            assert_eq!(status, 200, "{text}");
        }
    });
    // What was refused has left nothing.
    let left = std::fs::read_dir(folder.path().join("files")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn jobs_and_previews() {
    let folder = tempfile::tempdir().unwrap();
    let state = start(folder.path());
    let request = upload("multipart/form-data; boundary=B", FORM.as_bytes()).unwrap();
    let (status, text) = runtime().block_on(send(&state, request));
    assert_eq!(status, 200, "{text}");
    let file: Value = serde_json::from_str(&text).unwrap();
    let seeds = seeds::training(file["id"].as_str().unwrap());
    // Each of them is right before it is changed.
    for (path, body) in &seeds {
        let request = hyper::Request::post(*path)
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let (status, text) = runtime().block_on(send(&state, request));
        assert_eq!(status, 200, "{path} {body}: {text}");
    }
    fuzz("jobs", &state, &seeds, || {});
}
