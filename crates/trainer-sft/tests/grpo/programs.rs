//! Rewards by a program.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use super::*;

/// A server that answers one request after the other with what `answer` makes of its body.
pub(super) fn server(answer: impl Fn(usize, Value) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/rewards", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let (status, text) = answer(number, serde_json::from_slice(&body).unwrap());
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                text.len()
            );
            // A client that has lost patience is gone.
            let _ = stream.write_all((head + &text).as_bytes());
        }
    });
    url
}

#[test]
fn a_program_gives_rewards() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("a"));
    config.grpo.rewards.clear();
    let url = server(|_, body| {
        let completions = body["completions"].as_array().unwrap();
        assert_eq!(body["prompts"].as_array().unwrap().len(), completions.len());
        let answers = body["columns"]["answer"].as_array().unwrap();
        assert!(answers.iter().all(Value::is_string), "{body}");
        let rewards = completions.iter().enumerate().map(|(i, text)| match i {
            0 => Value::Null,
            _ => json!(text.as_str().unwrap().len() as f64 / 100.0),
        });
        (
            200,
            json!({"rewards": rewards.collect::<Vec<_>>()}).to_string(),
        )
    });
    config.grpo.reward_urls = vec![url];
    let summary = run(&config).unwrap();
    let line = &lines(&summary.output)[2];
    assert!(line["rewards/url/mean"].as_f64().unwrap() > 0.0, "{line}");
}

#[test]
fn a_program_that_fails_is_named_and_the_steps_so_far_are_kept() {
    type Reply = fn(usize, Value) -> (u16, String);
    let right = |body: &Value| {
        let count = body["completions"].as_array().unwrap().len();
        (200, json!({"rewards": vec![0.5; count]}).to_string())
    };
    let cases: [(Reply, &str); 6] = [
        (
            |_, _| (500, "boom".into()),
            "expected status 200, found 500",
        ),
        (
            |_, _| (302, "elsewhere".into()),
            "expected status 200, found 302",
        ),
        (
            |_, body| {
                let count = body["completions"].as_array().unwrap().len();
                (200, json!({"rewards": vec![1e308; count]}).to_string())
            },
            "a number from -1e9 to 1e9, true, false or null for each completion, found rewards[0] = the number",
        ),
        (|_, _| (200, "[1, 2]".into()), "expected {\"rewards\": […]}"),
        (
            |_, _| (200, "{\"rewards\": [1]}".into()),
            "found 1 rewards for 8 completions",
        ),
        (
            |_, _| {
                std::thread::sleep(std::time::Duration::from_secs(3));
                (200, String::new())
            },
            "expected an answer within 1 seconds (--reward-timeout), found none",
        ),
    ];
    for (reply, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir.path().join("a"));
        config.grpo.rewards.clear();
        config.grpo.reward_timeout = Some(1.0);
        config.grpo.reward_urls = vec![server(move |number, body| match number {
            0 => right(&body),
            _ => reply(number, body),
        })];
        let refused = run(&config).unwrap_err().to_string();
        assert!(refused.starts_with("--reward-url http://"), "{refused}");
        assert!(refused.contains(expected), "{refused}");
        assert!(config.run.output.join("checkpoint-1").is_dir());
        let page = std::fs::read_to_string(config.run.output.join("report.html")).unwrap();
        assert!(page.contains("<th>Steps</th><td>1</td>"), "{page}");
        assert!(
            page.contains("<td>by an error: --reward-url http://"),
            "{page}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("a"));
    config.grpo.reward_urls = vec!["http://127.0.0.1:1/".into()];
    let refused = run(&config).unwrap_err().to_string();
    assert!(refused.contains("expected an answer, found: "), "{refused}");
}

/// A run that is told to stop while a program owes it rewards does not wait for them.
#[test]
fn a_run_that_waits_for_rewards_ends_soon() {
    static STOP: AtomicBool = AtomicBool::new(false);
    for steps in [0, 2] {
        STOP.store(false, Ordering::SeqCst);
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir.path().join("a"));
        config.grpo.rewards.clear();
        config.grpo.reward_urls = vec![server(move |number, body| {
            if number == steps {
                STOP.store(true, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_secs(60));
            }
            let count = body["completions"].as_array().unwrap().len();
            (200, json!({"rewards": vec![0.5; count]}).to_string())
        })];
        let start = std::time::Instant::now();
        let training = Training::new(&config).device(&Device::flex());
        let ended = training.records(records()).stop_when(&STOP).run();
        assert!(start.elapsed().as_secs() < 50, "{:?}", start.elapsed());
        match (steps, ended) {
            (0, Err(TrainError::Stopped)) => assert!(!config.run.output.exists()),
            (_, Ok(summary)) => {
                let checkpoint = config.run.output.join("checkpoint-2");
                assert_eq!(summary.stopped, Some(checkpoint));
                // It goes on with the same answers.
                let mut rest = config.clone();
                rest.run.resume = summary.stopped;
                rest.grpo.reward_urls = vec![server(|_, body| {
                    let count = body["completions"].as_array().unwrap().len();
                    (200, json!({"rewards": vec![0.5; count]}).to_string())
                })];
                let refused = run(&rest).unwrap_err().to_string();
                assert!(refused.contains("--reward-url: "), "{refused}");
                rest.run.resume_anyway = true;
                assert_eq!(run(&rest).unwrap().num_steps, 3);
            }
            (_, ended) => panic!("{ended:?}"),
        }
    }
}
