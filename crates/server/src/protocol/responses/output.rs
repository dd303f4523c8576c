//! The output of a response as it grows: its items, and the events that tell of them.

use std::collections::BTreeMap;
use std::mem;

use serde_json::{Map, Value, json};

use super::callee::{Callee, input_of};
use super::new_id;
use crate::answer::Part;

/// Before the reasoning in `encrypted_content`. Nothing is kept from the client, who has the reasoning in `content` as well.
pub(crate) const ENCRYPTED: &str = "qwen-burn:";

/// Items and events of one answer.
#[derive(Debug, Default)]
pub struct Output {
    /// Items that are complete.
    items: Vec<Value>,
    open: Option<Open>,
    /// `None` if nobody reads events.
    events: Option<Vec<Value>>,
    num_events: usize,
    /// The tools, by the names that the model calls.
    callees: BTreeMap<String, Callee>,
    /// Whether reasoning comes as `encrypted_content`, too.
    encrypts: bool,
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
    Call { call_id: String, callee: Callee },
}

impl Open {
    /// The item, without content before it is complete.
    fn item(&self, status: &str, encrypts: bool) -> Value {
        let is_new = status == IN_PROGRESS;
        let content = |part: Value| if is_new { json!([]) } else { json!([part]) };
        let (id, text) = (&self.id, &self.text);
        match &self.kind {
            Kind::Reasoning => {
                let encrypted = (encrypts && !is_new).then(|| format!("{ENCRYPTED}{text}"));
                json!({ "id": id, "type": "reasoning", "summary": [], "content": content(self.part()),
                "encrypted_content": encrypted, "status": status })
            }
            Kind::Message => {
                json!({ "id": id, "type": "message", "role": "assistant", "content": content(self.part()),
                "status": status })
            }
            Kind::Call { call_id, callee } => {
                let (of_type, field, given) = match callee.is_custom {
                    true => ("custom_tool_call", "input", &input_of(text)),
                    false => ("function_call", "arguments", text),
                };
                let mut call = json!({ "id": id, "type": of_type, "call_id": call_id, "name": callee.name,
                    field: given, "status": status });
                if let Some(namespace) = &callee.namespace {
                    call["namespace"] = Value::from(namespace.as_str());
                }
                call
            }
        }
    }

    fn is_custom(&self) -> bool {
        matches!(&self.kind, Kind::Call { callee, .. } if callee.is_custom)
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

    /// The same for an answer that may call these tools.
    #[must_use]
    pub fn calling(self, callees: BTreeMap<String, Callee>) -> Self {
        Self { callees, ..self }
    }

    /// The same with the reasoning as `encrypted_content`, too.
    #[must_use]
    pub fn encrypting(self, encrypts: bool) -> Self {
        Self { encrypts, ..self }
    }

    /// Adds a part. `logprobs` are of the tokens that it came from; those of text are taken.
    pub fn push(&mut self, part: Part, logprobs: &mut Vec<Value>) {
        match part {
            Part::Reasoning(text) => self.text(Kind::Reasoning, &text, Vec::new()),
            Part::Content(text) => self.text(Kind::Message, &text, mem::take(logprobs)),
            Part::Call { id, name, .. } => {
                self.close(COMPLETED);
                let callee = self.callees.get(&name).cloned();
                let callee = callee.unwrap_or_else(|| Callee {
                    name,
                    ..Callee::default()
                });
                self.open(Kind::Call {
                    call_id: id,
                    callee,
                });
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
        // The input of a custom tool is known when its arguments are complete.
        if open.is_custom() {
            return;
        }
        let place = self.place();
        self.emit("response.function_call_arguments.delta", || {
            with(place, json!({ "delta": text }))
        });
    }

    fn open(&mut self, kind: Kind) {
        let (prefix, has_part) = match kind {
            Kind::Reasoning => ("rs", true),
            Kind::Message => ("msg", true),
            Kind::Call { ref callee, .. } if callee.is_custom => ("ctc", false),
            Kind::Call { .. } => ("fc", false),
        };
        let open = Open {
            id: new_id(prefix),
            kind,
            text: String::new(),
            logprobs: Vec::new(),
        };
        let (item, part) = (open.item(IN_PROGRESS, self.encrypts), open.part());
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
        let item = open.item(status, self.encrypts);
        let (output_index, text) = (self.items.len(), &open.text);
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
            Kind::Call { callee, .. } if callee.is_custom => {
                let input = &item["input"];
                self.emit("response.custom_tool_call_input.delta", || {
                    with(place.clone(), json!({ "delta": input }))
                });
                self.emit("response.custom_tool_call_input.done", || {
                    with(place, json!({ "input": input }))
                });
            }
            Kind::Call { callee, .. } => self.emit("response.function_call_arguments.done", || {
                with(place, json!({ "name": callee.name, "arguments": text }))
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
    fn a_call_is_one_of_its_tool() {
        let callee = Callee {
            name: "patch".to_owned(),
            namespace: Some("n".to_owned()),
            is_custom: true,
        };
        let callees = BTreeMap::from([("n__patch".to_owned(), callee)]);
        let mut output = Output::new(true).calling(callees).encrypting(true);
        let call = |index: usize, name: &str| Part::Call {
            index,
            id: format!("call_{index}"),
            name: name.to_owned(),
        };
        let arguments = |index: usize, text: &str| Part::Arguments {
            index,
            text: text.to_owned(),
        };
        for part in [
            Part::Reasoning("hm".to_owned()),
            call(0, "n__patch"),
            arguments(0, r#"{"input": "a\n"#),
            arguments(0, r#"b"}"#),
            Part::CallEnd { index: 0 },
            call(1, "n__patch"),
            arguments(1, r#"{"input": "cut"#),
        ] {
            output.push(part, &mut Vec::new());
        }
        let items = output.finish(false);
        assert_eq!(items[0]["encrypted_content"], "qwen-burn:hm");
        for (item, input, status) in [(1, "a\nb", "completed"), (2, "cut", "incomplete")] {
            let id = &items[item]["id"];
            assert!(id.as_str().unwrap().starts_with("ctc_"));
            assert_eq!(
                items[item],
                json!({ "id": id, "type": "custom_tool_call", "call_id": format!("call_{}", item - 1), "name": "patch",
                    "namespace": "n", "input": input, "status": status })
            );
        }
        let events = output.take_events();
        assert_eq!(events[0]["item"]["encrypted_content"], Value::Null);
        assert_eq!(
            types(&events)[6..],
            [
                "1 output_item.added",
                "1 custom_tool_call_input.delta",
                "1 custom_tool_call_input.done",
                "1 output_item.done",
                "2 output_item.added",
                "2 custom_tool_call_input.delta",
                "2 custom_tool_call_input.done",
                "2 output_item.done",
            ]
        );
        assert_eq!(events[6]["item"]["input"], "");
        assert_eq!(
            (&events[7]["delta"], &events[8]["input"]),
            (&json!("a\nb"), &json!("a\nb"))
        );
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
