//! The output of a response as it grows: its items, and the events that tell of them.

use std::mem;

use serde_json::{Map, Value, json};

use super::new_id;
use crate::answer::Part;

/// Items and events of one answer.
#[derive(Debug, Default)]
pub struct Output {
    /// Items that are complete.
    items: Vec<Value>,
    open: Option<Open>,
    /// `None` if nobody reads events.
    events: Option<Vec<Value>>,
    num_events: usize,
}

/// The item that grows.
#[derive(Debug)]
struct Open {
    id: String,
    kind: Kind,
    /// The text so far; of a call, its arguments.
    text: String,
    /// Log-probabilities of the text's tokens.
    logprobs: Vec<Value>,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

impl Open {
    /// The item, without content before it is complete.
    fn item(&self, status: &str) -> Value {
        let is_new = status == IN_PROGRESS;
        let content = |part: Value| if is_new { json!([]) } else { json!([part]) };
        let (id, text) = (&self.id, &self.text);
        match &self.kind {
            Kind::Reasoning => {
                json!({ "id": id, "type": "reasoning", "summary": [], "content": content(self.part()),
                "encrypted_content": null, "status": status })
            }
            Kind::Message => {
                json!({ "id": id, "type": "message", "role": "assistant", "content": content(self.part()),
                "status": status })
            }
            Kind::Call { call_id, name } => {
                json!({ "id": id, "type": "function_call", "call_id": call_id, "name": name,
                "arguments": text, "status": status })
            }
        }
    }

    fn part(&self) -> Value {
        let text = &self.text;
        match &self.kind {
            Kind::Reasoning => json!({ "type": "reasoning_text", "text": text }),
            _ => {
                json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs })
            }
        }
    }
}

const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

impl Output {
    /// No output yet, with or without events.
    pub fn new(has_events: bool) -> Self {
        Self {
            events: has_events.then(Vec::new),
            ..Self::default()
        }
    }

    /// Adds a part. `logprobs` are of the tokens that it came from; those of text are taken.
    pub fn push(&mut self, part: Part, logprobs: &mut Vec<Value>) {
        match part {
            Part::Reasoning(text) => self.text(Kind::Reasoning, &text, Vec::new()),
            Part::Content(text) => self.text(Kind::Message, &text, mem::take(logprobs)),
            Part::Call { id, name, .. } => {
                self.close(COMPLETED);
                self.open(Kind::Call { call_id: id, name });
            }
            Part::Arguments { text, .. } => self.arguments(&text),
            Part::CallEnd { .. } => {
                // The end of an answer ends a call as well.
                let is_whole = self.open.as_ref().is_some_and(|open| {
                    serde_json::from_str::<serde::de::IgnoredAny>(&open.text).is_ok()
                });
                self.close(if is_whole { COMPLETED } else { INCOMPLETE });
            }
        }
    }

    /// Ends the last item, and gives all of them.
    pub fn finish(&mut self, is_whole: bool) -> Vec<Value> {
        self.close(if is_whole { COMPLETED } else { INCOMPLETE });
        self.items.clone()
    }

    /// Tells of the response itself.
    pub fn tell(&mut self, of_type: &str, response: &Value) {
        self.emit(of_type, || json!({ "response": response }));
    }

    /// Events since the last call.
    pub fn take_events(&mut self) -> Vec<Value> {
        self.events.as_mut().map(mem::take).unwrap_or_default()
    }

    fn text(&mut self, kind: Kind, text: &str, logprobs: Vec<Value>) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.close(COMPLETED);
            self.open(kind);
        }
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        open.logprobs.extend_from_slice(&logprobs);
        let is_reasoning = open.kind == Kind::Reasoning;
        let place = self.place();
        match is_reasoning {
            true => self.emit("response.reasoning_text.delta", || {
                with(place, json!({ "content_index": 0, "delta": text }))
            }),
            false => self.emit("response.output_text.delta", || {
                with(
                    place,
                    json!({ "content_index": 0, "delta": text, "logprobs": logprobs }),
                )
            }),
        }
    }

    fn arguments(&mut self, text: &str) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let place = self.place();
        self.emit("response.function_call_arguments.delta", || {
            with(place, json!({ "delta": text }))
        });
    }

    fn open(&mut self, kind: Kind) {
        let (prefix, has_part) = match kind {
            Kind::Reasoning => ("rs", true),
            Kind::Message => ("msg", true),
            Kind::Call { .. } => ("fc", false),
        };
        let open = Open {
            id: new_id(prefix),
            kind,
            text: String::new(),
            logprobs: Vec::new(),
        };
        let (item, part) = (open.item(IN_PROGRESS), open.part());
        let output_index = self.items.len();
        self.open = Some(open);
        let place = self.place();
        self.emit(
            "response.output_item.added",
            || json!({ "output_index": output_index, "item": item }),
        );
        if has_part {
            self.emit("response.content_part.added", || {
                with(place, json!({ "content_index": 0, "part": part }))
            });
        }
    }

    fn close(&mut self, status: &str) {
        let place = self.place();
        let Some(open) = self.open.take() else { return };
        let (output_index, item, text) = (self.items.len(), open.item(status), &open.text);
        let part = |place| with(place, json!({ "content_index": 0, "part": open.part() }));
        match &open.kind {
            Kind::Reasoning => {
                self.emit("response.reasoning_text.done", || {
                    with(place.clone(), json!({ "content_index": 0, "text": text }))
                });
                self.emit("response.content_part.done", || part(place));
            }
            Kind::Message => {
                self.emit("response.output_text.done", || {
                    let done =
                        json!({ "content_index": 0, "text": text, "logprobs": open.logprobs });
                    with(place.clone(), done)
                });
                self.emit("response.content_part.done", || part(place));
            }
            Kind::Call { name, .. } => self.emit("response.function_call_arguments.done", || {
                with(place, json!({ "name": name, "arguments": text }))
            }),
        }
        self.emit(
            "response.output_item.done",
            || json!({ "output_index": output_index, "item": item }),
        );
        self.items.push(item);
    }

    /// Where the open item is.
    fn place(&self) -> Value {
        let id = self.open.as_ref().map(|open| open.id.as_str());
        json!({ "item_id": id, "output_index": self.items.len() })
    }

    fn emit(&mut self, of_type: &str, fields: impl FnOnce() -> Value) {
        if let Some(events) = &mut self.events {
            let head = json!({ "type": of_type, "sequence_number": self.num_events });
            events.push(with(head, fields()));
            self.num_events += 1;
        }
    }
}

/// An object with more fields.
fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut object, more) {
        fields.extend::<Map<String, Value>>(more);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        let arguments = |text: &str| Part::Arguments {
            index: 0,
            text: text.to_owned(),
        };
        vec![
            Part::Reasoning("h".to_owned()),
            Part::Reasoning("m".to_owned()),
            Part::Content("ok".to_owned()),
            Part::Call {
                index: 0,
                id: "call_1".to_owned(),
                name: "f".to_owned(),
            },
            arguments("{\"a\""),
            arguments(": 1}"),
            Part::CallEnd { index: 0 },
        ]
    }

    /// Types of events, numbered without gaps, each with its item's place.
    fn types(events: &[Value]) -> Vec<String> {
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], i);
        }
        let types = events.iter().map(|event| {
            let of_type = event["type"]
                .as_str()
                .unwrap()
                .trim_start_matches("response.");
            format!("{} {of_type}", event["output_index"])
        });
        types.collect()
    }

    #[test]
    fn events_come_in_order() {
        let mut output = Output::new(true);
        for part in parts() {
            output.push(part, &mut Vec::new());
        }
        let items = output.finish(true);
        let events = output.take_events();
        assert_eq!(
            types(&events),
            [
                "0 output_item.added",
                "0 content_part.added",
                "0 reasoning_text.delta",
                "0 reasoning_text.delta",
                "0 reasoning_text.done",
                "0 content_part.done",
                "0 output_item.done",
                "1 output_item.added",
                "1 content_part.added",
                "1 output_text.delta",
                "1 output_text.done",
                "1 content_part.done",
                "1 output_item.done",
                "2 output_item.added",
                "2 function_call_arguments.delta",
                "2 function_call_arguments.delta",
                "2 function_call_arguments.done",
                "2 output_item.done",
            ]
        );
        let done = events
            .iter()
            .filter(|event| event["type"] == "response.output_item.done");
        assert_eq!(
            done.map(|event| event["item"].clone()).collect::<Vec<_>>(),
            items
        );
        assert_eq!(
            items[0]["content"],
            json!([{ "type": "reasoning_text", "text": "hm" }])
        );
        assert_eq!(items[1]["content"][0]["text"], "ok");
        assert_eq!(
            (
                &items[2]["call_id"],
                &items[2]["name"],
                &items[2]["arguments"],
                &items[2]["status"]
            ),
            (
                &json!("call_1"),
                &json!("f"),
                &json!("{\"a\": 1}"),
                &json!("completed")
            )
        );
        assert_eq!(events[0]["item"]["content"], json!([]));
        assert_eq!(events[13]["item"]["arguments"], "");
        assert_eq!(events[16]["arguments"], "{\"a\": 1}");
        for (event, item) in [(2, 0), (9, 1), (14, 2)] {
            assert_eq!(events[event]["item_id"], items[item]["id"]);
        }
        for (item, prefix) in items.iter().zip(["rs_", "msg_", "fc_"]) {
            assert!(item["id"].as_str().unwrap().starts_with(prefix));
        }
    }

    #[test]
    fn what_is_cut_off_is_incomplete() {
        let statuses = |num: usize| {
            let mut output = Output::new(false);
            for part in parts()
                .into_iter()
                .take(num)
                .chain([Part::CallEnd { index: 0 }])
            {
                if num > 3 || !matches!(part, Part::CallEnd { .. }) {
                    output.push(part, &mut Vec::new());
                }
            }
            let items = output.finish(false);
            assert!(output.take_events().is_empty());
            items
                .iter()
                .map(|item| item["status"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(statuses(0), Vec::<String>::new());
        assert_eq!(statuses(2), ["incomplete"]);
        assert_eq!(statuses(3), ["completed", "incomplete"]);
        assert_eq!(statuses(5), ["completed", "completed", "incomplete"]);
        assert_eq!(statuses(6), ["completed", "completed", "completed"]);
    }

    #[test]
    fn log_probabilities_are_of_the_text() {
        let mut output = Output::new(true);
        let mut of = |part: Part, logprob: i64| {
            let mut logprobs = vec![json!(logprob)];
            output.push(part, &mut logprobs);
            logprobs.is_empty()
        };
        assert!(!of(Part::Reasoning("h".to_owned()), 1));
        assert!(of(Part::Content("a".to_owned()), 2));
        assert!(of(Part::Content("b".to_owned()), 3));
        let items = output.finish(true);
        assert_eq!(items[1]["content"][0]["logprobs"], json!([2, 3]));
        let events = output.take_events();
        let of_type = |of_type: &str| {
            let mut events = events.iter();
            events.find(|event| event["type"] == of_type).unwrap()["logprobs"].clone()
        };
        assert_eq!(of_type("response.output_text.delta"), json!([2]));
        assert_eq!(of_type("response.output_text.done"), json!([2, 3]));
    }
}
