//! `--kv-events-config`, with the keys of vLLM's.

use serde_json::Value;

use super::units::{Object, object};

/// Where changes of the prefix cache are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEventsConfig {
    /// Where subscribers are.
    pub endpoint: Endpoint,
    /// Where missed batches are asked for; `None` = nowhere.
    pub replay_endpoint: Option<Endpoint>,
    /// First part of each message.
    pub topic: String,
    /// Batches that are kept for replay.
    pub buffer_steps: usize,
    /// Messages that wait for one subscriber; further ones are dropped.
    pub hwm: usize,
    /// Batches that wait for the publisher; further ones are dropped.
    pub max_queue_size: usize,
    /// How an event is written.
    pub format: EventFormat,
}

/// The value of the flag; `None` turns events off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvEventsFlag(pub Option<KvEventsConfig>);

/// How an event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventFormat {
    /// A map with the key `type`, as vLLM does now.
    #[default]
    Map,
    /// An array that starts with the type, as vLLM did until early 2026.
    Array,
}

/// A TCP endpoint of ZeroMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Listens on this address.
    Bind(String),
    /// Connects to this address, again and again.
    Connect(String),
}

const KEYS: [&str; 9] = [
    "enable_kv_cache_events",
    "publisher",
    "endpoint",
    "replay_endpoint",
    "buffer_steps",
    "hwm",
    "max_queue_size",
    "topic",
    "event_format",
];
/// More messages than anybody keeps.
const MAX_MESSAGES: usize = 10_000_000;

/// Reads the value of the flag.
///
/// # Errors
/// What was expected, with the key.
pub(super) fn kv_events(text: &str) -> Result<KvEventsFlag, String> {
    read(text).map(KvEventsFlag)
}

fn read(text: &str) -> Result<Option<KvEventsConfig>, String> {
    let object = object(text)?;
    if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("unknown key `{key}`; expected {}", KEYS.join(", ")));
    }
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let is_on = match given("enable_kv_cache_events") {
        None => false,
        Some(Value::Bool(is_on)) => *is_on,
        Some(other) => {
            return Err(format!(
                "enable_kv_cache_events: expected true or false, found {other}"
            ));
        }
    };
    let publishes = match given("publisher") {
        None => is_on,
        Some(publisher) => match publisher.as_str() {
            Some("zmq") => true,
            Some("null") => false,
            _ => {
                return Err(format!(
                    "publisher: expected \"zmq\" or \"null\", found {publisher}"
                ));
            }
        },
    };
    let config = KvEventsConfig {
        endpoint: match endpoint(&object, "endpoint")? {
            Some(endpoint) => endpoint,
            None => Endpoint::Bind("0.0.0.0:5557".to_owned()),
        },
        replay_endpoint: replay_endpoint(&object)?,
        topic: text_of(&object, "topic")?.unwrap_or_default(),
        buffer_steps: number(&object, "buffer_steps", 10_000)?,
        hwm: number(&object, "hwm", 100_000)?,
        max_queue_size: number(&object, "max_queue_size", 100_000)?,
        format: match text_of(&object, "event_format")?.as_deref() {
            None | Some("map") => EventFormat::Map,
            Some("array") => EventFormat::Array,
            Some(other) => {
                return Err(format!(
                    "event_format: expected \"map\" or \"array\", found {other:?}"
                ));
            }
        },
    };
    match (is_on, publishes) {
        (true, true) => Ok(Some(config)),
        (false, true) => {
            Err("publisher: \"zmq\" needs \"enable_kv_cache_events\": true, found false".to_owned())
        }
        (_, false) => Ok(None),
    }
}

fn text_of(object: &Object, key: &str) -> Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{key}: expected a text, found {other}")),
    }
}

fn number(object: &Object, key: &str, default: usize) -> Result<usize, String> {
    let value = match object.get(key) {
        None | Some(Value::Null) => return Ok(default),
        Some(value) => value,
    };
    let number = value.as_u64().and_then(|value| usize::try_from(value).ok());
    number
        .filter(|number| (1..=MAX_MESSAGES).contains(number))
        .ok_or_else(|| format!("{key}: expected a number from 1 to {MAX_MESSAGES}, found {value}"))
}

/// Whoever asks for missed batches connects, so that this one listens.
fn replay_endpoint(object: &Object) -> Result<Option<Endpoint>, String> {
    let endpoint = endpoint(object, "replay_endpoint")?;
    Ok(endpoint.map(|endpoint| match endpoint {
        Endpoint::Bind(address) | Endpoint::Connect(address) => Endpoint::Bind(address),
    }))
}

/// As in vLLM, an address with `*` or `::` is listened on, and any other one is connected to. `0.0.0.0` can be meant in one way only.
fn endpoint(object: &Object, key: &str) -> Result<Option<Endpoint>, String> {
    let Some(text) = text_of(object, key)? else {
        return Ok(None);
    };
    let expected = || {
        format!(
            "{key}: expected tcp://*:PORT to listen or tcp://HOST:PORT to connect, found {text:?}"
        )
    };
    let address = text.strip_prefix("tcp://").ok_or_else(expected)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(expected)?;
    let port: u16 = port.parse().map_err(|_| expected())?;
    let is_bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    Ok(Some(match host {
        "" => return Err(expected()),
        "*" => Endpoint::Bind(format!("0.0.0.0:{port}")),
        "0.0.0.0" => Endpoint::Bind(address.to_owned()),
        host if host.contains("::") && is_bare_v6 => Endpoint::Bind(format!("[{host}]:{port}")),
        host if host.contains("::") => Endpoint::Bind(address.to_owned()),
        _ if is_bare_v6 => return Err(expected()),
        _ if port == 0 => return Err(expected()),
        _ => Endpoint::Connect(address.to_owned()),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_vllms() {
        let config = read(r#"{"enable_kv_cache_events": true}"#)
            .unwrap()
            .unwrap();
        let expected = KvEventsConfig {
            endpoint: Endpoint::Bind("0.0.0.0:5557".to_owned()),
            replay_endpoint: None,
            topic: String::new(),
            buffer_steps: 10_000,
            hwm: 100_000,
            max_queue_size: 100_000,
            format: EventFormat::Map,
        };
        assert_eq!(config, expected);
        let config = read(
            r#"{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://epp.llm-d:5557", "topic": "kv@a@b",
                "replay_endpoint": "tcp://127.0.0.1:5558", "buffer_steps": 7, "hwm": 8, "max_queue_size": 9,
                "event_format": "array"}"#,
        );
        let expected = KvEventsConfig {
            endpoint: Endpoint::Connect("epp.llm-d:5557".to_owned()),
            replay_endpoint: Some(Endpoint::Bind("127.0.0.1:5558".to_owned())),
            topic: "kv@a@b".to_owned(),
            buffer_steps: 7,
            hwm: 8,
            max_queue_size: 9,
            format: EventFormat::Array,
        };
        assert_eq!(config, Ok(Some(expected)));
        for off in [
            "{}",
            r#"{"enable_kv_cache_events": false}"#,
            r#"{"enable_kv_cache_events": true, "publisher": "null"}"#,
            r#"{"publisher": null, "topic": "a"}"#,
        ] {
            assert_eq!(read(off), Ok(None), "{off}");
        }
    }

    #[test]
    fn endpoints_listen_or_connect_as_in_vllm() {
        let of = |text: &str| {
            let Value::Object(object) = serde_json::json!({ "endpoint": text }) else {
                panic!("not an object");
            };
            endpoint(&object, "endpoint").map(Option::unwrap)
        };
        for (text, address) in [
            ("tcp://*:5557", "0.0.0.0:5557"),
            ("tcp://*:0", "0.0.0.0:0"),
            ("tcp://0.0.0.0:1", "0.0.0.0:1"),
            ("tcp://[::]:5557", "[::]:5557"),
            ("tcp://:::5557", "[::]:5557"),
        ] {
            assert_eq!(of(text), Ok(Endpoint::Bind(address.to_owned())), "{text}");
        }
        for text in ["tcp://localhost:5557", "tcp://127.0.0.1:5557"] {
            let address = text.trim_start_matches("tcp://").to_owned();
            assert_eq!(of(text), Ok(Endpoint::Connect(address)), "{text}");
        }
        for text in [
            "ipc:///tmp/a",
            "inproc://a",
            "tcp://*",
            "tcp://:1",
            "tcp://a:b",
            "tcp://a:70000",
            "tcp://a:0",
            "*:5557",
        ] {
            assert!(of(text).unwrap_err().contains("expected tcp://"), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (given, expected) in [
            ("true", "object"),
            (r#"{"enable": true}"#, "unknown key `enable`"),
            (
                r#"{"enable_kv_cache_events": 1}"#,
                "enable_kv_cache_events: expected true or false, found 1",
            ),
            (
                r#"{"publisher": "nats"}"#,
                "publisher: expected \"zmq\" or \"null\", found \"nats\"",
            ),
            (
                r#"{"publisher": "zmq"}"#,
                "\"enable_kv_cache_events\": true",
            ),
            (r#"{"hwm": 0}"#, "hwm: expected a number from 1"),
            (r#"{"buffer_steps": 1.5}"#, "buffer_steps: expected"),
            (r#"{"max_queue_size": "9"}"#, "max_queue_size: expected"),
            (r#"{"topic": 1}"#, "topic: expected a text"),
            (r#"{"event_format": "json"}"#, "event_format: expected"),
            (
                r#"{"replay_endpoint": "ipc://a"}"#,
                "replay_endpoint: expected tcp://",
            ),
        ] {
            let error = read(given).unwrap_err();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }
}
