//! Clients that go away at any moment, send nothing, too much, or what is no HTTP.

use super::*;

use std::net::Shutdown;

use server::engine::GenerateRequest;

/// Files that the process has open; both ends of a connection are among them.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// What a client does with its connection.
#[derive(Clone, Copy, Debug)]
enum Client {
    Nothing,
    HalfAHead,
    HalfABody,
    HalfAStream,
    StopsWriting,
    Garbage,
    Pipelines,
}

const CLIENTS: [Client; 7] = [
    Client::Nothing,
    Client::HalfAHead,
    Client::HalfABody,
    Client::HalfAStream,
    Client::StopsWriting,
    Client::Garbage,
    Client::Pipelines,
];

impl Client {
    /// A connection on which this was done.
    fn connect(self, server: &TestServer) -> TcpStream {
        let mut connection = TcpStream::connect(server.address).unwrap();
        connection
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        let sent = match self {
            Self::Nothing => String::new(),
            Self::HalfAHead => head.to_owned(),
            Self::HalfABody => format!("{head}content-length: 1000\r\n\r\n{{\"prompt\": \"a"),
            Self::HalfAStream | Self::StopsWriting => {
                let body = r#"{"prompt": "zzz", "stream": true, "max_tokens": 50}"#;
                format!("{head}content-length: {}\r\n\r\n{body}", body.len())
            }
            Self::Garbage => "\u{16}\u{3}\u{1}\0\r\n\r\n".repeat(50),
            Self::Pipelines => "GET /health HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20),
        };
        // The server may have closed a connection that sends garbage.
        let _ = connection.write_all(sent.as_bytes());
        match self {
            Self::HalfAStream => {
                let mut start = [0; 200];
                connection.read_exact(&mut start).unwrap();
            }
            Self::StopsWriting => {
                let _ = connection.shutdown(Shutdown::Write);
            }
            _ => {}
        }
        connection
    }
}

/// Waits until something is so.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "not yet: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn clients_that_go_away_leave_nothing() {
    let server = TestServer::start(|request| match request.prompt.first() {
        // The prompt "zzz".
        Some(122) => Play::Hang(bytes("abc").collect()),
        _ => says("abc"),
    });
    let before = open_files();
    let mut idle = Vec::new();
    for i in 0..350 {
        let connection = CLIENTS[i % CLIENTS.len()].connect(&server);
        // Half of them stay for a while.
        match i % 2 {
            0 => drop(connection),
            _ => idle.push(connection),
        }
        if i % 50 == 0 {
            assert_eq!(server.complete(json!({})).status, 200);
        }
    }
    assert_eq!(server.complete(json!({})).status, 200);
    drop(idle);
    // Each stream is aborted; some of the clients were gone before their request was read.
    wait_for("every stream is aborted", || {
        let seen = server.seen.lock().unwrap();
        let hanging = |request: &&GenerateRequest| request.prompt.first() == Some(&122);
        let num_streams = seen.requests.iter().filter(hanging).count();
        num_streams >= 50 && seen.num_aborted >= num_streams
    });
    // Other tests of this process have connections, too.
    wait_for("connections are closed", || open_files() < before + 60);
    assert_eq!(server.complete(json!({})).status, 200);
}

#[test]
fn large_heads_are_refused() {
    let server = TestServer::start(|_| says("abc"));
    for head in [
        format!(
            "GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
            "a".repeat(2 << 20)
        ),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(2 << 20)),
        format!(
            "GET /health HTTP/1.1\r\n{}\r\n",
            "x-many: a\r\n".repeat(10_000)
        ),
    ] {
        let mut connection = TcpStream::connect(server.address).unwrap();
        // The server may answer before it has all, and close.
        let _ = connection.write_all(head.as_bytes());
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let refused = ["HTTP/1.1 431", "HTTP/1.1 414", "HTTP/1.1 400"];
        let is_refused = answer.is_empty() || refused.iter().any(|start| answer.starts_with(start));
        assert!(is_refused, "{answer:.200}");
    }
    assert_eq!(server.get("/health").status, 200);
}

/// Sends a body of 16 MiB in chunks, all of it before anything is read.
fn send_before_reading(server: &TestServer, head: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(server.address)?;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        connection,
        "{head} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    let chunk = "x".repeat(1 << 16);
    for _ in 0..256 {
        write!(connection, "{:x}\r\n{chunk}\r\n", chunk.len())?;
        // So the answer is there before the body is.
        std::thread::sleep(Duration::from_millis(1));
    }
    write!(connection, "0\r\n\r\n")?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn who_sends_a_body_in_vain_reads_why() {
    let open = TestServer::start(|_| says("abc"));
    let closed = TestServer::start_with(&["--api-key", "key"], |_| says("abc"));
    for (server, head, status) in [
        (&open, "POST /nowhere", "404"),
        (&open, "PUT /v1/completions", "405"),
        (&open, "POST /v1/chat/completions", "415"),
        (&closed, "POST /v1/completions", "401"),
    ] {
        let answer = send_before_reading(server, head).unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}"), "{head}");
    }
}

#[test]
fn who_asks_before_sending_is_not_asked_for_a_body_in_vain() {
    let server = TestServer::start_with(&["--api-key", "key"], |_| says("abc"));
    let mut connection = TcpStream::connect(server.address).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    connection.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"HTTP/1.1 401");
}

#[test]
fn who_leaves_is_noticed_behind_further_bytes() {
    let server = TestServer::start(|_| Play::Hang(Vec::new()));
    let next = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut num_gone = 0;
    for after in ["", "\r\n", next] {
        for body in [r#"{"prompt": "a"}"#, r#"{"prompt": "a", "stream": true}"#] {
            let mut connection = TcpStream::connect(server.address).unwrap();
            let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
            let num = body.len();
            write!(
                connection,
                "{head}\r\ncontent-length: {num}\r\n\r\n{body}{after}"
            )
            .unwrap();
            num_gone += 1;
            server.wait_for_requests(num_gone);
            drop(connection);
            let start = Instant::now();
            server.wait_for_aborts(num_gone);
            let waited = start.elapsed();
            assert!(
                waited < Duration::from_secs(2),
                "{body}{after:?}: {waited:?}"
            );
        }
    }
}

#[test]
fn who_only_stops_sending_has_the_answers_to_what_was_sent() {
    let server = TestServer::start(|_| says("abc"));
    let mut connection = TcpStream::connect(server.address).unwrap();
    let health = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let body = r#"{"prompt": "a"}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
    let num = body.len();
    write!(
        connection,
        "{health}{head}\r\ncontent-length: {num}\r\n\r\n{body}{health}"
    )
    .unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut answers = String::new();
    connection.read_to_string(&mut answers).unwrap();
    // hyper takes the end behind the last request for that of the client.
    assert!(answers.matches("HTTP/1.1 200").count() >= 2, "{answers}");
}
