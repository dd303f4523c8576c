//! The program, started as people start it.

use std::io::{BufRead as _, BufReader, Lines, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The folder of the bundled model.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn bundled() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/model");
    folder.canonicalize().unwrap()
}

/// A program that listens, and ends with the test.
pub(crate) struct Server {
    pub(crate) program: Child,
    pub(crate) url: String,
    /// Stays open, as a program may fail that has nobody to write to.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Starts a program, and waits until it answers.
#[track_caller]
pub(crate) fn start(mut command: Command) -> Server {
    let mut program = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap()).lines();
    let url = output.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once(" at http")?;
        Some(format!("http{}", rest.strip_suffix(". Try:")?))
    });
    let Some(url) = url else {
        let mut said = String::new();
        let _ = program.stderr.take().unwrap().read_to_string(&mut said);
        panic!("it has not started: {said}");
    };
    let server = Server {
        program,
        url,
        _output: output,
    };
    // The address is told a moment before requests are answered.
    while server.post("/tokenize", json!({"prompt": "a"})).0 == 503 {
        thread::sleep(Duration::from_millis(5));
    }
    server
}

/// The client of tests that start the program. Each request has a connection of its own. Buffers are small, since `ureq` fills them with zeros for each
/// request: a test that waits asks often, and would take the time of the server that it waits for.
pub(crate) fn agent() -> &'static ureq::Agent {
    static AGENT: LazyLock<ureq::Agent> = LazyLock::new(|| {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .input_buffer_size(8 << 10)
            .output_buffer_size(8 << 10)
            .max_idle_connections(0);
        config.build().into()
    });
    &AGENT
}

impl Server {
    /// Status and answer of a POST.
    pub(crate) fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let request = agent()
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/json");
        let mut answer = request.send(body.to_string()).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (answer.status().as_u16(), value)
    }
}
