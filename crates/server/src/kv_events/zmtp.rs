//! ZMTP 3.0, the protocol of ZeroMQ over TCP, as far as a publisher and its replay need it: the mechanism `NULL`, and messages of
//! several frames. The specification is <https://rfc.zeromq.org/spec/23/>.

use std::io::{Error, ErrorKind, Result};

use tokio::net::TcpStream;

/// Signature, version 3.0, mechanism `NULL`, no server of the mechanism.
const GREETING: [u8; 64] = {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    let mut i = 0;
    while i < MECHANISM.len() {
        greeting[12 + i] = MECHANISM[i];
        i += 1;
    }
    greeting
};
const MECHANISM: [u8; 4] = *b"NULL";
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// Longest frame that is read: topics and numbers are short.
const MAX_FRAME: usize = 64 << 10;
/// Most frames of a message that is read.
const MAX_FRAMES: usize = 16;

/// Greets the peer, and tells it what kind of socket this is. The peer must be one of `peers`.
pub(super) async fn handshake(stream: &TcpStream, own: &str, peers: &[&str]) -> Result<()> {
    write_all(stream, &GREETING).await?;
    let mut greeting = [0; 64];
    read_exact(stream, &mut greeting).await?;
    let is_zmtp = greeting[0] == 0xff && greeting[9] == 0x7f && greeting[10] >= 3;
    let mechanism = &greeting[12..32];
    if !is_zmtp || mechanism[..4] != MECHANISM || mechanism[4..].iter().any(|&byte| byte != 0) {
        return Err(wrong("expected ZMTP 3 with the mechanism NULL"));
    }
    let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
    ready.extend((own.len() as u32).to_be_bytes());
    ready.extend(own.as_bytes());
    let mut command = vec![COMMAND, ready.len() as u8];
    command.extend(ready);
    write_all(stream, &command).await?;
    let (flags, body) = read_frame(stream).await?;
    let kind = body
        .strip_prefix(b"\x05READY")
        .filter(|_| flags & COMMAND != 0)
        .and_then(socket_type)
        .ok_or_else(|| wrong("expected the command READY with a Socket-Type"))?;
    match peers.iter().any(|peer| peer.as_bytes() == kind) {
        true => Ok(()),
        false => Err(wrong("a socket of the wrong kind")),
    }
}

/// The property `Socket-Type` of a READY: properties are names with a length of one byte and values with one of four.
fn socket_type(mut properties: &[u8]) -> Option<&[u8]> {
    loop {
        let (&len, rest) = properties.split_first()?;
        let (name, rest) = rest.split_at_checked(len.into())?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value);
        }
        properties = rest;
    }
}

/// The bytes of a message.
pub(super) fn message(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frames.iter().map(|frame| frame.len() + 9).sum());
    for (i, frame) in frames.iter().enumerate() {
        let more = if i + 1 < frames.len() { MORE } else { 0 };
        match u8::try_from(frame.len()) {
            Ok(len) => bytes.extend([more, len]),
            Err(_) => {
                bytes.push(more | LONG);
                bytes.extend((frame.len() as u64).to_be_bytes());
            }
        }
        bytes.extend(*frame);
    }
    bytes
}

/// The frames of the next message; commands are passed over.
pub(super) async fn read_message(stream: &TcpStream) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    loop {
        let (flags, body) = read_frame(stream).await?;
        if flags & COMMAND != 0 {
            continue;
        }
        frames.push(body);
        if flags & MORE == 0 {
            return Ok(frames);
        }
        if frames.len() == MAX_FRAMES {
            return Err(wrong("a message with too many frames"));
        }
    }
}

async fn read_frame(stream: &TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut flags = [0];
    read_exact(stream, &mut flags).await?;
    let len = match flags[0] & LONG {
        0 => {
            let mut len = [0];
            read_exact(stream, &mut len).await?;
            u64::from(len[0])
        }
        _ => {
            let mut len = [0; 8];
            read_exact(stream, &mut len).await?;
            u64::from_be_bytes(len)
        }
    };
    let len = usize::try_from(len).ok().filter(|&len| len <= MAX_FRAME);
    let mut body = vec![0; len.ok_or_else(|| wrong("a frame that is too long"))?];
    read_exact(stream, &mut body).await?;
    Ok((flags[0], body))
}

async fn read_exact(stream: &TcpStream, mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        stream.readable().await?;
        match stream.try_read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(num) => bytes = &mut bytes[num..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all bytes.
pub(super) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(num) => bytes = &bytes[num..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wrong(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}
