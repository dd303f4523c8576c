//! Answers of `/v1/responses` that later requests refer to, within bounds of number and memory.
//!
//! An answer and its input are one [`Turn`], which holds the turns before it. A turn that is forgotten has no id any more, but
//! lives as long as a later turn needs it; its memory counts until then.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

/// Memory of a turn besides its texts, about.
const TURN_BYTES: usize = 512;
/// Memory of an item's id, about: in the turn and in the index.
const ID_BYTES: usize = 192;

/// The items of an input, as JSON.
#[derive(Debug, Default)]
pub struct Input {
    json: String,
    ids: Vec<String>,
}

impl Input {
    /// These items.
    pub fn new(items: &[Map<String, Value>]) -> Self {
        Self {
            json: serde_json::to_string(items).unwrap_or_default(),
            ids: ids(items),
        }
    }
}

fn ids(items: &[Map<String, Value>]) -> Vec<String> {
    let ids = items.iter().filter_map(|item| item.get("id")?.as_str());
    ids.map(str::to_owned).collect()
}

/// An answer and its input, as JSON.
#[derive(Debug)]
pub struct Turn {
    previous: Option<Arc<Turn>>,
    input: Input,
    response: String,
    output_ids: Vec<String>,
    num_bytes: usize,
    /// Bytes of all turns of the store.
    total: Arc<AtomicUsize>,
}

impl Turn {
    /// The answer.
    pub fn response(&self) -> &str {
        &self.response
    }

    /// The items of its input, without those of the turns before.
    pub fn input(&self) -> Vec<Map<String, Value>> {
        serde_json::from_str(&self.input.json).unwrap_or_default()
    }

    /// The items of its output.
    pub fn output(&self) -> Vec<Map<String, Value>> {
        #[derive(serde::Deserialize)]
        struct Output {
            output: Vec<Map<String, Value>>,
        }
        let output = serde_json::from_str(&self.response);
        output.map_or_else(|_| Vec::new(), |Output { output }| output)
    }

    fn item_ids(&self) -> impl Iterator<Item = &String> {
        self.input.ids.iter().chain(&self.output_ids)
    }

    /// All items of the conversation, the oldest first.
    pub fn conversation(&self) -> Vec<Map<String, Value>> {
        let mut turns = vec![self];
        while let Some(previous) = turns.last().and_then(|turn| turn.previous.as_deref()) {
            turns.push(previous);
        }
        let turns = turns.into_iter().rev();
        turns
            .flat_map(|turn| turn.input().into_iter().chain(turn.output()))
            .collect()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.total.fetch_sub(self.num_bytes, Ordering::Relaxed);
        // A long conversation must not end in as many nested calls.
        let mut next = self.previous.take();
        while let Some(turn) = next {
            next = Arc::into_inner(turn).and_then(|mut turn| turn.previous.take());
        }
    }
}

/// The turns that have an id.
#[derive(Debug)]
pub struct ResponseStore {
    max_num: usize,
    max_bytes: usize,
    total: Arc<AtomicUsize>,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    by_id: HashMap<String, Arc<Turn>>,
    /// Their ids, the oldest first.
    order: VecDeque<String>,
    /// Ids of items, and of the responses that they are part of.
    items: HashMap<String, String>,
}

impl Turns {
    fn remove(&mut self, id: &str) -> Option<Arc<Turn>> {
        let turn = self.by_id.remove(id)?;
        self.order.retain(|other| other != id);
        for item in turn.item_ids() {
            if self.items.get(item).is_some_and(|of| of == id) {
                self.items.remove(item);
            }
        }
        Some(turn)
    }
}

impl ResponseStore {
    /// A store for at most so many answers and bytes.
    pub fn new(max_num: usize, max_bytes: usize) -> Self {
        Self {
            max_num,
            max_bytes,
            total: Arc::default(),
            turns: Mutex::default(),
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.max_num > 0 && self.max_bytes > 0
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        // Every change is complete before anything can panic.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an answer and its input.
    pub fn insert(&self, id: &str, previous: Option<Arc<Turn>>, input: Input, response: String) {
        let mut turn = Turn {
            previous,
            input,
            response,
            output_ids: Vec::new(),
            num_bytes: 0,
            total: Arc::clone(&self.total),
        };
        turn.output_ids = ids(&turn.output());
        let of_ids: usize = turn.item_ids().map(|id| ID_BYTES + 2 * id.len()).sum();
        let of_texts = turn.input.json.len() + turn.response.len();
        let num_bytes = TURN_BYTES + 2 * id.len() + of_ids + of_texts;
        if !self.is_on() {
            return;
        }
        if num_bytes > self.max_bytes {
            tracing::warn!(id, num_bytes, "a response is too large to be kept");
            return;
        }
        turn.num_bytes = num_bytes;
        self.total.fetch_add(num_bytes, Ordering::Relaxed);

        let mut turns = self.turns();
        turns.remove(id);
        for item in turn.item_ids() {
            turns.items.insert(item.clone(), id.to_owned());
        }
        turns.by_id.insert(id.to_owned(), Arc::new(turn));
        turns.order.push_back(id.to_owned());
        while turns.by_id.len() > self.max_num
            || self.total.load(Ordering::Relaxed) > self.max_bytes
        {
            let Some(oldest) = turns.order.front().cloned() else {
                return;
            };
            turns.remove(&oldest);
        }
    }

    /// The answer with this id.
    pub fn get(&self, id: &str) -> Option<Arc<Turn>> {
        self.turns().by_id.get(id).cloned()
    }

    /// Forgets an answer; `false` if there is none.
    pub fn remove(&self, id: &str) -> bool {
        self.turns().remove(id).is_some()
    }

    /// The item with this id, of an input or an output.
    pub fn item(&self, id: &str) -> Option<Map<String, Value>> {
        let turn = {
            let turns = self.turns();
            turns.by_id.get(turns.items.get(id)?)?.clone()
        };
        let mut items = turn.input().into_iter().chain(turn.output());
        items.find(|item| item.get("id").and_then(Value::as_str) == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(id: &str) -> Map<String, Value> {
        json!({ "id": id }).as_object().unwrap().clone()
    }

    fn response(id: &str, item: &str) -> String {
        json!({ "id": id, "output": [{ "id": item }] }).to_string()
    }

    fn ids(items: &[Map<String, Value>]) -> Vec<&str> {
        items
            .iter()
            .map(|item| item["id"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn a_turn_has_what_was_said_before() {
        let store = ResponseStore::new(10, 1 << 20);
        store.insert("a", None, Input::new(&[item("a1")]), response("a", "a2"));
        store.insert(
            "b",
            store.get("a"),
            Input::new(&[item("b1")]),
            response("b", "b2"),
        );
        let b = store.get("b").unwrap();
        assert_eq!(ids(&b.conversation()), ["a1", "a2", "b1", "b2"]);
        assert_eq!(ids(&b.input()), ["b1"]);
        assert_eq!(b.response(), response("b", "b2"));
        assert_eq!(store.item("a2"), Some(item("a2")));
        // What is forgotten has no id, but is part of what came after it.
        assert!(store.remove("a") && !store.remove("a"));
        assert!(store.get("a").is_none() && store.item("a2").is_none());
        assert_eq!(b.conversation().len(), 4);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let store = ResponseStore::new(2, 1 << 20);
        for id in ["a", "b", "b", "c"] {
            store.insert(id, None, Input::default(), response(id, id));
        }
        assert!(store.get("a").is_none());
        assert!(store.get("b").is_some() && store.get("c").is_some());
        assert_eq!(store.turns().items.len(), 2);
        assert!(store.remove("b") && store.remove("c"));
        assert_eq!(store.total.load(Ordering::Relaxed), 0);
        let off = ResponseStore::new(0, 1 << 20);
        off.insert("a", None, Input::default(), response("a", "a"));
        assert!(!off.is_on() && off.get("a").is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let store = ResponseStore::new(1000, 20_000);
        let long =
            |id: &str| json!({ "id": id, "text": "x".repeat(4000), "output": [] }).to_string();
        for i in 0..100 {
            store.insert(&i.to_string(), None, Input::default(), long("a"));
        }
        assert!(store.total.load(Ordering::Relaxed) <= 20_000);
        assert_eq!(store.turns().by_id.len(), 4);
        // A conversation needs all of its turns.
        for i in 100..110 {
            let previous = store.get(&(i - 1).to_string());
            store.insert(&i.to_string(), previous, Input::default(), long("b"));
            assert!(store.total.load(Ordering::Relaxed) <= 20_000);
        }
        let num = store.turns().by_id.len();
        store.insert("huge", None, Input::default(), "x".repeat(30_000));
        assert!(store.get("huge").is_none());
        assert_eq!(store.turns().by_id.len(), num);
    }

    #[test]
    fn a_long_conversation_is_dropped_without_nested_calls() {
        let store = ResponseStore::new(1, usize::MAX);
        for i in 0..200_000 {
            let previous = i.to_string();
            store.insert(
                &(i + 1).to_string(),
                store.get(&previous),
                Input::default(),
                "{}".to_owned(),
            );
        }
        assert!(store.remove("200000"));
        assert_eq!(store.total.load(Ordering::Relaxed), 0);
    }
}
