//! A subscriber that was written from the specification of ZMTP, not from the publisher.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kv_paging::{AdapterKey, BlockPool, CacheKey};
use serde_json::{Value, json};

use super::*;
use crate::config::{Endpoint, EventFormat};

/// A socket of ZeroMQ.
struct Socket(TcpStream);

impl Socket {
    fn connect(port: u16, kind: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        Self::greet(stream, kind)
    }

    fn greet(mut stream: TcpStream, kind: &str) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL".to_vec();
        greeting.resize(64, 0);
        stream.write_all(&greeting).unwrap();
        let mut theirs = [0; 64];
        stream.read_exact(&mut theirs).unwrap();
        assert_eq!(
            (theirs[0], theirs[9], &theirs[12..16]),
            (255, 127, &b"NULL"[..])
        );
        let len = kind.len() as u8;
        let mut ready = b"\x05READY\x08Identity\0\0\0\0\x0bsocket-type\0\0\0".to_vec();
        ready.push(len);
        ready.extend(kind.as_bytes());
        stream.write_all(&[4, ready.len() as u8]).unwrap();
        stream.write_all(&ready).unwrap();
        let mut socket = Self(stream);
        let (flags, ready) = socket.frame();
        assert!(flags == 4 && ready.starts_with(b"\x05READY"), "{ready:?}");
        socket
    }

    fn send(&mut self, frames: &[&[u8]]) {
        for (i, frame) in frames.iter().enumerate() {
            let more = u8::from(i + 1 < frames.len());
            self.0.write_all(&[more, frame.len() as u8]).unwrap();
            self.0.write_all(frame).unwrap();
        }
    }

    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut flags = [0];
        self.0.read_exact(&mut flags).unwrap();
        let mut len = [0; 8];
        match flags[0] & 2 {
            0 => self.0.read_exact(&mut len[7..]).unwrap(),
            _ => self.0.read_exact(&mut len).unwrap(),
        }
        let mut body = vec![0; u64::from_be_bytes(len) as usize];
        self.0.read_exact(&mut body).unwrap();
        (flags[0], body)
    }

    fn message(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame();
            frames.push(body);
            if flags & 1 == 0 {
                return frames;
            }
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn config() -> KvEventsConfig {
    KvEventsConfig {
        endpoint: Endpoint::Bind(format!("127.0.0.1:{}", free_port())),
        replay_endpoint: None,
        topic: "kv@me".to_owned(),
        buffer_steps: 3,
        hwm: 100,
        max_queue_size: 100,
        format: EventFormat::Map,
    }
}

fn port(endpoint: &Endpoint) -> u16 {
    let (Endpoint::Bind(address) | Endpoint::Connect(address)) = endpoint;
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// A pool of blocks with two tokens.
struct Pool {
    pool: BlockPool,
    key: Arc<CacheKey>,
}

impl Pool {
    fn new() -> Self {
        let mut pool = BlockPool::new(8);
        pool.record_events();
        let key = Arc::default();
        Self { pool, key }
    }

    /// Computes a text, whose blocks nobody holds then.
    fn compute(&mut self, tokens: &[u32]) -> Vec<CacheEvent> {
        let (mut held, mut parent) = (Vec::new(), None);
        for tokens in tokens.chunks(2) {
            let block = self.pool.allocate().unwrap();
            let (block, id) = self.pool.cache(block, parent, &self.key, tokens);
            held.push(block);
            parent = Some(id);
        }
        held.iter()
            .rev()
            .for_each(|&block| self.pool.release(block));
        self.pool.take_events()
    }
}

fn decode(payload: &[u8]) -> (f64, Value, u64) {
    rmp_serde::from_slice(payload).unwrap()
}

/// Publishes until a subscriber has got something: subscriptions take their time.
fn subscribed(events: &mut KvEvents, pool: &mut Pool, socket: &mut Socket) -> Vec<Vec<u8>> {
    let timeout = Some(Duration::from_millis(50));
    socket.0.set_read_timeout(timeout).unwrap();
    let start = Instant::now();
    let mut token = 1000;
    loop {
        assert!(start.elapsed() < Duration::from_secs(20), "no message");
        token += 1;
        events.publish(pool.compute(&[token, token]));
        if socket.0.peek(&mut [0]).is_ok_and(|num| num > 0) {
            let timeout = Some(Duration::from_secs(20));
            socket.0.set_read_timeout(timeout).unwrap();
            return socket.message();
        }
    }
}

#[test]
fn a_subscriber_reads_vllms_events() {
    let config = config();
    let mut events = KvEvents::start(&config, 2).unwrap();
    let mut pool = Pool::new();
    let mut socket = Socket::connect(port(&config.endpoint), "SUB");
    socket.send(&[b"\x01kv@"]);
    let first = subscribed(&mut events, &mut pool, &mut socket);
    assert_eq!(first[0], b"kv@me");
    let mut number = u64::from_be_bytes(first[1].as_slice().try_into().unwrap());
    let mut next = |socket: &mut Socket, events: &mut KvEvents, changes| {
        events.publish(changes);
        let [topic, seq, payload] = socket.message().try_into().unwrap();
        number += 1;
        assert_eq!(
            (topic.as_slice(), seq),
            (&b"kv@me"[..], number.to_be_bytes().to_vec())
        );
        let (time, events, rank) = decode(&payload);
        assert!((time - unix_seconds()).abs() < 60.0);
        assert_eq!(rank, 0);
        events
    };

    pool.pool.clear();
    let changes = pool.pool.take_events();
    let cleared = next(&mut socket, &mut events, changes);
    assert_eq!(cleared, json!([{"type": "AllBlocksCleared"}]));

    let changes = pool.compute(&[1, 2, 3, 4]);
    let stored = next(&mut socket, &mut events, changes);
    let hashes = stored[0]["block_hashes"].as_array().unwrap().clone();
    let expected = json!([{
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": null, "token_ids": [1, 2, 3, 4],
        "block_size": 2, "lora_id": null, "medium": "GPU", "lora_name": null, "extra_keys": [null, null],
        "group_idx": 0, "kv_cache_spec_kind": "full_attention",
    }]);
    assert_eq!(stored, expected);
    assert_eq!(hashes.len(), 2);

    pool.key = Arc::new(CacheKey {
        adapter: Some(AdapterKey {
            id: 3,
            name: "sql:v2".to_owned(),
        }),
        salt: Some("s".to_owned()),
    });
    let changes = pool.compute(&[1, 2]);
    let salted = next(&mut socket, &mut events, changes);
    assert_eq!(
        (&salted[0]["lora_id"], &salted[0]["lora_name"]),
        (&json!(3), &json!("sql:v2"))
    );
    assert_eq!(salted[0]["extra_keys"], json!([["sql:v2", "s"]]));
    assert_ne!(salted[0]["block_hashes"][0], hashes[0]);

    pool.pool.forget(|key| key.adapter.is_none());
    let changes = pool.pool.take_events();
    let removed = next(&mut socket, &mut events, changes);
    assert_eq!(removed[0]["type"], "BlockRemoved");
    let mut gone = removed[0]["block_hashes"].as_array().unwrap().clone();
    let by_number = |hash: &Value| hash.as_u64().unwrap();
    gone.sort_by_key(by_number);
    let mut expected = hashes;
    expected.sort_by_key(by_number);
    assert_eq!(gone, expected);

    // A text that was computed again has the same names, and says what it goes on from.
    pool.key = Arc::default();
    let changes = pool.compute(&[1, 2, 3, 4, 5, 6]);
    let again = next(&mut socket, &mut events, changes);
    assert_eq!(again[0]["block_hashes"].as_array().unwrap().len(), 3);
    assert!(
        again[0]["block_hashes"]
            .as_array()
            .unwrap()
            .contains(&expected[0])
    );

    // Nobody gets a topic that was not asked for.
    socket.send(&[b"\x00kv@"]);
    socket.send(&[b"\x01other"]);
    assert_eq!(events.counts().num_dropped, 0);
}

#[test]
fn missed_batches_are_replayed() {
    for format in [EventFormat::Map, EventFormat::Array] {
        let replay_endpoint = Some(Endpoint::Bind(format!("127.0.0.1:{}", free_port())));
        let config = KvEventsConfig {
            replay_endpoint,
            format,
            ..config()
        };
        let mut events = KvEvents::start(&config, 2).unwrap();
        let mut pool = Pool::new();
        for token in 0..5 {
            events.publish(pool.compute(&[token, token]));
        }
        let mut socket = Socket::connect(port(config.replay_endpoint.as_ref().unwrap()), "DEALER");
        let end = vec![255; 8];
        // The publisher may not have seen all of them yet.
        let start = Instant::now();
        let answers = loop {
            assert!(start.elapsed() < Duration::from_secs(20));
            socket.send(&[b"", &1_u64.to_be_bytes()]);
            let mut answers = Vec::new();
            loop {
                let answer = socket.message();
                if answer[answer.len() - 2] == end {
                    break;
                }
                answers.push(answer);
            }
            if answers.len() == 3 && answers[2][answers[2].len() - 2][7] == 4 {
                break answers;
            }
        };
        let numbers: Vec<u8> = answers.iter().map(|a| a[a.len() - 2][7]).collect();
        assert_eq!(numbers, [2, 3, 4]);
        let (_, batch, _) = decode(answers[0].last().unwrap());
        match format {
            EventFormat::Map => {
                assert_eq!(
                    (answers[0].len(), answers[0][1].as_slice()),
                    (4, &b"kv@me"[..])
                );
                assert_eq!(batch[0]["token_ids"], json!([2, 2]));
            }
            EventFormat::Array => {
                assert_eq!(answers[0].len(), 3);
                let hashes = &batch[0][1];
                let expected = json!([["BlockStored", hashes, null, [2, 2], 2, null, "GPU", null]]);
                assert_eq!(batch, expected);
            }
        }
        // What is no request has no answer, and does no harm.
        socket.send(&[b"", b"too long for it"]);
        socket.send(&[b"x"]);
        socket.send(&[b"", &[4]]);
        assert_eq!(socket.message().last(), answers[2].last());
    }
}

#[test]
fn a_subscriber_that_reads_nothing_costs_only_itself() {
    let config = KvEventsConfig {
        hwm: 4,
        max_queue_size: 8,
        ..config()
    };
    let mut events = KvEvents::start(&config, 2).unwrap();
    let mut pool = Pool::new();
    let mut slow = Socket::connect(port(&config.endpoint), "SUB");
    slow.send(&[b"\x01"]);
    subscribed(&mut events, &mut pool, &mut slow);
    // Large batches fill what the system keeps for the connection.
    let tokens: Vec<u32> = (0..100_000).collect();
    let start = Instant::now();
    while events.counts().num_dropped == 0 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nothing is dropped"
        );
        let id = pool.compute(&[7, 7]);
        events.publish(id.into_iter().chain(large(&tokens)).collect());
        pool.pool.clear();
        events.publish(pool.pool.take_events());
        assert!(events.queue.max_capacity() == 8);
    }
    // Another one still gets what is new.
    let mut quick = Socket::connect(port(&config.endpoint), "XSUB");
    quick.send(&[b"\x01"]);
    subscribed(&mut events, &mut pool, &mut quick);
}

/// A block with very many tokens.
fn large(tokens: &[u32]) -> Vec<CacheEvent> {
    let mut pool = BlockPool::new(1);
    pool.record_events();
    let block = pool.allocate().unwrap();
    pool.cache(block, None, &Arc::default(), tokens);
    let mut events = pool.take_events();
    let ids = &mut events;
    // Ids of another pool would clash with those of the first one; the end of the world clears both.
    ids.push(CacheEvent::Cleared);
    events
}

#[test]
fn a_publisher_connects_where_the_endpoint_says_so() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let config = KvEventsConfig {
        endpoint: Endpoint::Connect(address.to_string()),
        ..config()
    };
    let mut events = KvEvents::start(&config, 2).unwrap();
    let mut pool = Pool::new();
    // The first connection ends, and there is another one.
    drop(listener.accept().unwrap());
    let (stream, _) = listener.accept().unwrap();
    let mut socket = Socket::greet(stream, "SUB");
    socket.send(&[b"\x01"]);
    let message = subscribed(&mut events, &mut pool, &mut socket);
    assert_eq!(message[0], b"kv@me");
}

#[test]
fn what_is_no_subscriber_is_turned_away() {
    let config = config();
    let mut events = KvEvents::start(&config, 2).unwrap();
    for start in [
        &b"GET / HTTP/1.1\r\nhost: a\r\nuser-agent: nobody who speaks ZMTP at all\r\n\r\n"[..],
        &[0xff; 80],
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port(&config.endpoint))).unwrap();
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).unwrap();
        stream.write_all(start).unwrap();
        // A greeting at most, then the end.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() <= 64, "{answer:?}");
    }
    let mut pool = Pool::new();
    let mut socket = Socket::connect(port(&config.endpoint), "SUB");
    socket.send(&[b"\x01"]);
    subscribed(&mut events, &mut pool, &mut socket);
    let taken = KvEventsConfig {
        endpoint: Endpoint::Bind(format!("127.0.0.1:{}", port(&config.endpoint))),
        ..config
    };
    let error = KvEvents::start(&taken, 2).unwrap_err().to_string();
    assert!(
        error.contains("--kv-events-config: endpoint: cannot listen on 127.0.0.1"),
        "{error}"
    );
}

#[test]
fn a_host_without_an_address_is_an_error_at_start() {
    let config = KvEventsConfig {
        endpoint: Endpoint::Connect("no-such-host.invalid:5557".to_owned()),
        replay_endpoint: None,
        topic: String::new(),
        buffer_steps: 1,
        hwm: 1,
        max_queue_size: 1,
        format: EventFormat::Map,
    };
    let error = KvEvents::start(&config, 2).unwrap_err().to_string();
    let expected =
        "--kv-events-config: endpoint: cannot find the host of no-such-host.invalid:5557";
    assert!(error.contains(expected), "{error}");
}
