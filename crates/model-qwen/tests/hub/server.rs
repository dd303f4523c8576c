//! The Hub that downloads are tried against.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use model_qwen::HubOptions;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server that answers as the Hugging Face Hub does.
pub(crate) struct Hub {
    pub(crate) address: String,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves `files` of the repository `org/name`; with `status`, answers everything with it.
    pub(crate) fn start(files: &[(&str, &str)], status: Option<u16>) -> Self {
        Self::start_with(files, status, true)
    }

    /// Without `ranges` it is a mirror that sends whole files, and none of the Hub's headers.
    pub(crate) fn start_with(files: &[(&str, &str)], status: Option<u16>, ranges: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files: BTreeMap<String, String> = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (files.clone(), log.clone());
                std::thread::spawn(move || answer(&stream, &files, status, ranges, &log));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: self.address.clone(),
            token: Some("hf_secret".to_owned()),
            cache_dir: cache.to_path_buf(),
            offline: false,
            progress: false,
        }
    }

    pub(crate) fn num_requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn answer(
    mut stream: &TcpStream,
    files: &BTreeMap<String, String>,
    status: Option<u16>,
    ranges: bool,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut range = None;
    let mut authorized = false;
    for line in lines {
        let line = line.ok()?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            let (from, to) = value.split_once('-')?;
            range = Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()));
        }
        authorized |= line == "authorization: bearer hf_secret";
    }
    log.lock().unwrap().push(path.clone());

    let mut send = |status: u16, headers: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()
    };
    if let Some(status) = status {
        // A Hub with too many requests takes the fourth.
        match status {
            429 if log.lock().unwrap().len() > 3 => {}
            429 => return send(status, "Retry-After: 1\r\n", b"later"),
            503 => return send(status, "Retry-After: 3600\r\n", b"later"),
            status => return send(status, "", b"no"),
        }
    }
    if !authorized {
        return send(401, "", b"no token");
    }
    let revision = |rest: &str| rest == "main" || rest == COMMIT;
    if path
        .strip_prefix("/api/models/org/name/revision/")
        .is_some_and(revision)
    {
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let info = serde_json::json!({ "siblings": siblings, "sha": COMMIT });
        return send(
            200,
            "Content-Type: application/json\r\n",
            info.to_string().as_bytes(),
        );
    }
    let file = path.strip_prefix("/org/name/resolve/").and_then(|rest| {
        let (found, name) = rest.split_once('/')?;
        files.get(name).filter(|_| revision(found))
    });
    let Some(text) = file else {
        return send(404, "", b"not found");
    };
    if !ranges {
        return send(200, "", text.as_bytes());
    }
    let (from, to) = range.unwrap_or((0, None));
    let to = to.map_or(text.len(), |to| (to + 1).min(text.len()));
    let headers = format!(
        "x-repo-commit: {COMMIT}\r\netag: \"etag-{}\"\r\nContent-Range: bytes {from}-{}/{}\r\n",
        path.replace('/', "-"),
        to.saturating_sub(1),
        text.len()
    );
    send(206, &headers, &text.as_bytes()[from..to])
}

/// A repository with one file of weights.
pub(crate) const SINGLE: [(&str, &str); 6] = [
    ("README.md", "not needed"),
    ("config.json", "{\"model_type\": \"qwen2\"}"),
    ("generation_config.json", "{}"),
    ("model.safetensors", "weights"),
    ("tokenizer.json", "{\"a\": 1}"),
    ("tokenizer_config.json", "{}"),
];
