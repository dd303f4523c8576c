//! Clients that leave, engines that idle, servers that shut down.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use server::engine::{Ended, EngineOutput, SubmitError};

use crate::client::{Server, request, wait};
use crate::model::{Random, TestModel};

/// More than any test waits for.
const LONG: usize = 4000;

#[test]
fn a_dropped_stream_frees_its_blocks_within_a_step_or_two() {
    let model = TestModel::new();
    let server = Server::start(&model, &["--max-num-seqs", "2"]);
    let mut random = Random(3);
    // The third has to wait for a place in the batch.
    let mut streams: Vec<_> = (0..3)
        .map(|_| {
            let mut request = request(random.tokens(40), LONG);
            request.stop_token_ids.clear();
            server.submit(request)
        })
        .collect();
    for stream in &mut streams[..2] {
        for _ in 0..5 {
            let output = server.next(stream);
            assert!(
                matches!(output, Some(EngineOutput::Token { .. })),
                "{output:?}"
            );
        }
    }
    let stats = server.wait_for("two running, one waiting", |stats| {
        (stats.num_running, stats.num_waiting) == (2, 1)
    });
    assert!(stats.num_free_blocks <= stats.num_blocks - 6, "{stats:?}");

    drop(streams);
    let before = server.engine.stats().generation_tokens;
    let after = server.wait_until_free().generation_tokens;
    // The step that was under way, and one whose numbers were not published yet; two sequences each.
    assert!(after - before <= 4, "{} tokens too many", after - before);
    assert_eq!(server.engine.num_queued(), 0);
}

#[test]
fn how_sequences_end_is_counted() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let ended = |how: Ended| server.engine.request_metrics().num_ended(how);
    let mut body = json!({ "prompt": [500, 600, 700], "max_tokens": 40, "temperature": 0, "ignore_eos": true });
    let (_, answer) = server.post("/v1/completions", &body);
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert_eq!((ended(Ended::Length), ended(Ended::Stop)), (1, 0));

    let stop = text.char_indices().nth(text.chars().count() / 3).unwrap();
    body["stop"] = text[stop.0..].chars().take(3).collect::<String>().into();
    body["max_tokens"] = LONG.into();
    let (_, answer) = server.post("/v1/completions", &body);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    server.wait_until_free();
    assert_eq!((ended(Ended::Length), ended(Ended::Stop)), (1, 1));

    let mut request = request(Random(5).tokens(40), LONG);
    request.stop_token_ids.clear();
    let mut stream = server.submit(request);
    server.next(&mut stream);
    drop(stream);
    server.wait_until_free();
    assert_eq!((ended(Ended::Length), ended(Ended::Abort)), (1, 1));
}

#[test]
fn a_closed_socket_frees_its_blocks() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    for stream in [true, false] {
        let before = server.wait_until_free().generation_tokens;
        let body = json!({ "prompt": [500, 600, 700], "max_tokens": LONG, "ignore_eos": true, "stream": stream });
        let body = body.to_string();
        let mut socket = TcpStream::connect(server.address).unwrap();
        write!(
            socket,
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        if stream {
            let mut head = [0; 15];
            socket.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
        }
        server.wait_for("a running sequence", |stats| {
            stats.num_running == 1 && stats.generation_tokens > before + 3
        });
        drop(socket);
        let generated = server.wait_until_free().generation_tokens - before;
        assert!(
            generated < LONG as u64,
            "stream {stream}: it ran to its end"
        );
    }
}

/// Time that a thread has spent on a CPU.
fn cpu_time(thread: &Path) -> Duration {
    let stat = std::fs::read_to_string(thread.join("schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn an_idle_engine_uses_no_cpu() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let Some(thread) = &server.thread else { return };
    let idles = |when| {
        let before = cpu_time(thread);
        std::thread::sleep(Duration::from_millis(300));
        // Something for the end of what was done just before.
        let busy = cpu_time(thread) - before;
        assert!(
            busy < Duration::from_millis(10),
            "{when}: {busy:?} in 300 ms"
        );
    };
    idles("before the first request");
    let fresh = cpu_time(thread);

    server.complete(
        &Random(4).tokens(300),
        json!({ "max_tokens": 500, "ignore_eos": true }),
    );
    server.wait_until_free();
    // The steps themselves run on the pool of the kernels.
    let worked = cpu_time(thread) - fresh;
    assert!(
        worked > Duration::from_millis(1),
        "{worked:?}: this test cannot see the engine work"
    );
    idles("after a request");
}

#[test]
fn shutdown_drains_and_refuses() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let extra = json!({ "max_tokens": 400, "ignore_eos": true });
    let refused = || {
        let (status, answer) = server.post("/v1/completions", &json!({ "prompt": [500] }));
        assert_eq!(status, 503, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("shutting down"), "{message}");
    };
    std::thread::scope(|scope| {
        let clients = [5, 6, 7].map(|seed| {
            let (server, extra) = (&server, extra.clone());
            scope.spawn(move || server.stream(&Random(seed).tokens(20), extra))
        });
        server.wait_for("three running sequences", |stats| stats.num_running == 3);
        server.engine.begin_shutdown();
        refused();
        assert!(
            server.engine.is_alive(),
            "the sequences must still be running"
        );
        for client in clients {
            let answer = client.join().unwrap();
            assert_eq!(
                (answer.tokens.len(), &*answer.finish_reason),
                (400, "length")
            );
        }
    });
    server.drained();
    wait("the end of the engine", || !server.engine.is_alive());
    refused();
    let submitted = server.engine.submit(request(vec![500], 1));
    assert_eq!(submitted.unwrap_err(), SubmitError::ShuttingDown);
    if let Some(thread) = &server.thread {
        wait("the end of the thread", || !thread.exists());
    }
}

#[test]
fn an_idle_engine_ends_at_once_on_shutdown_and_without_handles() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    server.engine.begin_shutdown();
    wait("the end of the engine", || !server.engine.is_alive());

    let mut server = Server::start(&model, &[]);
    let thread = server.thread.take();
    drop(server);
    if let Some(thread) = thread {
        wait("the end of the thread", || !thread.exists());
    }
}
