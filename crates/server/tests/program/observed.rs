//! What routers and collectors see of a request.

use std::io::{BufRead as _, BufReader};

use super::*;

/// Answers everything with 200; the bodies that came.
fn collector() -> (String, std::sync::mpsc::Receiver<Value>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let num = stream.read(&mut buffer).unwrap_or(0);
                bytes.extend(&buffer[..num]);
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
                let body = end.map(|end| serde_json::from_slice(&bytes[end + 4..]));
                if let Some(Ok(body)) = body {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    let _ = (stream.write_all(answer), sender.send(body));
                    break;
                }
                if num == 0 {
                    break;
                }
            }
        }
    });
    (url, receiver)
}

/// The bytes that a replay from batch 0 on has, as a DEALER of ZMTP 3.0 gets them.
fn replayed(port: u16) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL".to_vec();
    greeting.resize(64, 0);
    greeting.extend(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
    // An empty frame, then the number.
    greeting.extend(b"\x01\0\0\x08\0\0\0\0\0\0\0\0");
    stream.write_all(&greeting).unwrap();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !bytes.ends_with(b"\x01\x08\xff\xff\xff\xff\xff\xff\xff\xff\0\0") {
        let num = stream.read(&mut buffer).unwrap();
        assert!(num > 0, "{bytes:?}");
        bytes.extend(&buffer[..num]);
    }
    bytes
}

/// The log tells of the model on stderr, without colours where that is no terminal; stdout has what a person does next.
#[test]
fn the_start_tells_of_the_model_and_of_the_page() {
    let folder = TempDir::new().unwrap();
    let model = bundled();
    let model = model.to_str().unwrap();
    // What a program says until it serves, and its log.
    let start = |flags: &[&str]| {
        let log = folder.path().join("log");
        let mut command = command(model, flags);
        command
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap());
        let mut program = command.spawn().unwrap();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        // The last line is the example, or the page.
        let last = if flags.is_empty() {
            "Or open "
        } else {
            "  curl "
        };
        for line in lines.map_while(Result::ok) {
            said.push(line);
            if said.last().unwrap().starts_with(last) {
                break;
            }
        }
        // Nothing of it comes after that.
        program.kill().unwrap();
        let rest = program.wait_with_output().unwrap();
        assert!(!rest.status.success());
        (said.join("\n"), fs::read_to_string(log).unwrap())
    };
    let (said, log) = start(&[]);
    let (_, address) = said.split_once(" at http://127.0.0.1:").expect(&said);
    let (port, _) = address.split_once(". Try:").expect(&said);
    let page = format!("\nOr open http://127.0.0.1:{port} in a browser.");
    assert!(said.ends_with(&page), "{said}");
    let [loading, loaded] = ["loading the model", "model loaded"].map(|part| log.find(part));
    assert!(loading.is_some() && loading < loaded, "{log}");
    assert!(log.contains(model) && log.contains("seconds="), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    let (said, _) = start(&["--no-page"]);
    assert!(said.contains("Try:") && !said.contains("browser"), "{said}");
}

#[test]
fn a_request_is_seen_in_the_cache_s_events_and_in_a_trace() {
    let (collector, spans) = collector();
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let events = json!({
        "enable_kv_cache_events": true, "endpoint": "tcp://*:0", "topic": "kv@me",
        "replay_endpoint": format!("tcp://127.0.0.1:{port}"),
    });
    let flags = [
        "--kv-events-config",
        &events.to_string(),
        "--otlp-traces-endpoint",
        &collector,
        "--served-model-name",
        "duck",
    ];
    let mut command = command(bundled().to_str().unwrap(), &flags);
    command.env("OTEL_SERVICE_NAME", "ducks");
    let mut server = start(command);
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let body = json!({
        "prompt": "Once upon a time there was a little duck who lived near the lake and sang.",
        "n": 2, "max_tokens": 40, "ignore_eos": true, "temperature": 0.5, "stream": true,
    });
    let mut answer = ureq::post(format!("{}/v1/completions", server.url))
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"))
        .header("x-request-id", "mine")
        .send(body.to_string())
        .unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let events = replayed(port);
    for part in [
        &b"kv@me"[..],
        b"BlockStored",
        b"token_ids",
        b"full_attention",
    ] {
        assert!(events.windows(part.len()).any(|bytes| bytes == part));
    }

    // The last spans are sent before the program ends.
    let pid = server.program.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert!(server.program.wait().unwrap().success());
    let span = std::iter::from_fn(|| spans.try_recv().ok())
        .map(|body| body["resourceSpans"][0].clone())
        .inspect(|resource| {
            let service = &resource["resource"]["attributes"][0];
            assert_eq!(service["value"]["stringValue"], "ducks");
        })
        .flat_map(|resource| {
            resource["scopeSpans"][0]["spans"]
                .as_array()
                .unwrap()
                .clone()
        })
        .find(|span| span["traceId"] == trace_id)
        .unwrap();
    let attribute = |name: &str| {
        let all = span["attributes"].as_array().unwrap().iter();
        let mut found = all.filter(|attribute| attribute["key"] == format!("gen_ai.{name}"));
        found.next().map(|attribute| attribute["value"].clone())
    };
    for (name, value) in [
        ("request.id", json!({"stringValue": "mine"})),
        ("response.model", json!({"stringValue": "duck"})),
        ("request.n", json!({"intValue": "2"})),
        ("request.max_tokens", json!({"intValue": "40"})),
        ("request.temperature", json!({"doubleValue": 0.5})),
        ("usage.completion_tokens", json!({"intValue": "80"})),
        ("usage.num_sequences", json!({"intValue": "2"})),
    ] {
        assert_eq!(attribute(name), Some(value), "{name}: {span}");
    }
    let seconds = |name: &str| {
        attribute(&format!("latency.{name}")).unwrap()["doubleValue"]
            .as_f64()
            .unwrap()
    };
    let (first, all) = (seconds("time_to_first_token"), seconds("e2e"));
    assert!(
        0.0 < first && first < all && seconds("time_in_model_inference") < all,
        "{span}"
    );
    assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
}
