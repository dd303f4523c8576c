//! Bytes that no socket of ZeroMQ sends: nothing may panic, and the connection ends with them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../model-qwen/tests/hostile/mutate.rs"]
#[allow(dead_code, reason = "it has more than bytes need")]
mod mutate;

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use mutate::Random;
use tokio::net::TcpListener;

use super::peer::Subscribers;
use super::replay::Replay;
use super::zmtp::message;
use crate::config::EventFormat;

/// What an honest peer sends: its greeting, its kind, and messages.
fn honest(kind: &str, messages: &[&[&[u8]]]) -> Vec<u8> {
    let mut bytes = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL".to_vec();
    bytes.resize(64, 0);
    let mut ready = b"\x05READY\x08Identity\0\0\0\0\x0bSocket-Type\0\0\0".to_vec();
    ready.push(kind.len() as u8);
    ready.extend(kind.as_bytes());
    bytes.extend([4, ready.len() as u8]);
    bytes.extend(ready);
    messages
        .iter()
        .for_each(|frames| bytes.extend(message(frames)));
    bytes
}

#[test]
fn bytes_of_peers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let subscribers = Subscribers::new(4, Arc::default());
    let replay = Replay::new(4, b"kv@me", EventFormat::Map);
    replay.keep(0, Arc::from(&b"batch"[..]));
    let long = [b"\x01".as_slice(), &[b'k'; 300]].concat();
    let subscriber = honest("SUB", &[&[b"\x01kv@"], &[&long], &[b"\0kv@"], &[b"\x01"]]);
    let lacks = honest(
        "DEALER",
        &[&[b"", &0_u64.to_be_bytes()], &[b"", b"\x01"], &[b"x"]],
    );
    // The end of a peer ends its connection, whatever it has sent.
    let serve = |input: &[u8]| {
        let (kind, sent) = input.split_first().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        runtime.block_on(async {
            let (server, _) = listener.accept().await.unwrap();
            let served = async {
                match kind {
                    0 => subscribers.serve(server).await,
                    _ => replay.serve(server).await,
                }
            };
            let ended = tokio::time::timeout(Duration::from_secs(30), served).await;
            ended.expect("it goes on").unwrap_err().kind()
        })
    };
    for (kind, sent) in [(0, &subscriber), (1, &lacks)] {
        let ended = serve(&[&[kind], &sent[..]].concat());
        assert_eq!(ended, std::io::ErrorKind::UnexpectedEof);
    }
    let make = |random: &mut Random| {
        let kind = random.below(2);
        let mut sent = [&subscriber, &lacks][kind].clone();
        // Behind the greeting there is more to get wrong.
        let kept = match random.below(4) {
            0 => Vec::new(),
            _ => sent.drain(..64).collect(),
        };
        mutate::bytes(random, &mut sent);
        [&[kind as u8][..], &kept, &sent].concat()
    };
    mutate::run("zmtp", make, |input| {
        serve(input);
    });
}
