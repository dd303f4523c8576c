//! As much of an HTTP/1.1 client as a benchmark needs: a status, and a stream of events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long one read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether `GET path` is answered with 200 within a second.
pub(super) fn is_ok(address: SocketAddr, path: &str) -> bool {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    send(address, &request, Duration::from_secs(1)).is_ok_and(|(status, _)| status == 200)
}

/// Posts JSON and reads the events of the answer to their end; the last one before `[DONE]`.
pub(super) fn last_event(address: SocketAddr, path: &str, json: &str) -> Result<String> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
        json.len()
    );
    let (status, mut body) = send(address, &request, READ_TIMEOUT)?;
    if status != 200 {
        let mut text = String::new();
        body.read_to_string(&mut text)?;
        bail!("POST {path}: status {status}: {text}");
    }
    let (mut last, mut is_done) = (String::new(), false);
    for line in BufReader::new(body).lines() {
        match line?.strip_prefix("data: ") {
            Some("[DONE]") => is_done = true,
            Some(event) => event.clone_into(&mut last),
            None => {}
        }
    }
    ensure!(is_done, "POST {path}: no [DONE] after `{last}`");
    Ok(last)
}

/// Sends a request; the status of the answer, and its body.
fn send(address: SocketAddr, request: &str, timeout: Duration) -> Result<(u16, Body)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(request.as_bytes())?;
    let mut stream = BufReader::new(stream);
    let first = read_line(&mut stream)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("no status in `{first}`"))?;
    let mut is_chunked = false;
    loop {
        let header = read_line(&mut stream)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        is_chunked |= header == "transfer-encoding: chunked";
    }
    let left = 0;
    let body = match is_chunked {
        true => Body::Chunked { stream, left },
        false => Body::UntilClosed(stream),
    };
    Ok((status, body))
}

/// A line without its end.
fn read_line(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    line.truncate(line.trim_end().len());
    Ok(line)
}

/// The body of an answer.
enum Body {
    /// The server closes the connection after it.
    UntilClosed(BufReader<TcpStream>),
    /// In chunks, each after a line with its length in hexadecimal.
    Chunked {
        stream: BufReader<TcpStream>,
        /// Bytes of the current chunk that were not read yet.
        left: usize,
    },
    Ended,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (stream, left) = match self {
            Self::UntilClosed(stream) => return stream.read(buffer),
            Self::Chunked { stream, left } => (stream, left),
            Self::Ended => return Ok(0),
        };
        if *left == 0 {
            let line = read_line(stream)?;
            *left = usize::from_str_radix(&line, 16).map_err(std::io::Error::other)?;
            if *left == 0 {
                *self = Self::Ended;
                return Ok(0);
            }
        }
        let len = buffer.len().min(*left);
        let len = stream.read(&mut buffer[..len])?;
        *left -= len;
        if len == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if *left == 0 {
            // The end of line after each chunk.
            read_line(stream)?;
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What [`last_event`] makes of an answer.
    fn last_event_of(answer: &'static str) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 4096];
            let len = stream.read(&mut request)?;
            assert!(request[..len].ends_with(b"\r\n\r\n{}"));
            stream.write_all(answer.as_bytes())
        });
        let event = last_event(address, "/", "{}");
        server.join().unwrap()?;
        event
    }

    #[test]
    fn reads_events_across_chunks() {
        let event = last_event_of(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             a\r\ndata: 1\n\nd\r\nA\r\nata: 2\n\nda\r\ne\r\nta: [DONE]\n\n   \r\n0\r\n\r\n",
        );
        assert_eq!(event.unwrap(), "2");
    }

    #[test]
    fn reports_what_went_wrong() {
        let refused = last_event_of("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno");
        assert!(refused.unwrap_err().to_string().ends_with("status 400: no"));
        let cut_off =
            last_event_of("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata:");
        assert!(cut_off.is_err());
    }
}
