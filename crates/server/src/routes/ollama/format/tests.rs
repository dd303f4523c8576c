use serde_json::json;

use super::*;
use crate::postprocess::Finish;

fn format(api: Api, shows_thinking: bool) -> LineFormat {
    LineFormat {
        api,
        model: "m:latest".to_owned(),
        shows_thinking,
        view: None,
        num_prompt_tokens: 5,
        started: Instant::now(),
        first: None,
        space: WithoutSpace::default(),
        joiner: TextJoiner::default(),
        call: None,
        arguments: String::new(),
    }
}

fn delta(parts: Vec<Part>, reason: Option<FinishReason>) -> Delta {
    Delta {
        parts,
        num_tokens: 3,
        finish: reason.map(|reason| Finish {
            reason,
            stop_reason: Value::Null,
        }),
        ..Delta::default()
    }
}

fn parts() -> Vec<Part> {
    let arguments = |text: &str| Part::Arguments {
        index: 0,
        text: text.to_owned(),
    };
    vec![
        Part::Reasoning("\nhm".into()),
        Part::Content("\n\nYes.".into()),
        Part::Call {
            index: 0,
            id: "call_0".into(),
            name: "f".into(),
        },
        arguments("{\"x\""),
        arguments(": 1}"),
        Part::CallEnd { index: 0 },
    ]
}

#[test]
fn a_call_comes_whole() {
    let mut format = format(Api::Chat, true);
    let mut lines = Vec::new();
    for part in parts() {
        lines.extend(format.delta(0, delta(vec![part], None)));
    }
    lines.extend(format.delta(0, delta(Vec::new(), Some(FinishReason::Stop))));
    let messages: Vec<&Value> = lines.iter().map(|line| &line["message"]).collect();
    let call =
        json!({ "id": "call_0", "function": { "index": 0, "name": "f", "arguments": { "x": 1 } } });
    let expected = [
        json!({ "role": "assistant", "content": "", "thinking": "hm" }),
        json!({ "role": "assistant", "content": "Yes." }),
        json!({ "role": "assistant", "content": "", "tool_calls": [call] }),
        json!({ "role": "assistant", "content": "" }),
    ];
    assert_eq!(messages, expected.iter().collect::<Vec<_>>());
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    assert_eq!(
        (&last["prompt_eval_count"], &last["eval_count"]),
        (&json!(5), &json!(3))
    );
    let nanos = |field: &str| last[field].as_u64().unwrap();
    assert_eq!(
        nanos("total_duration"),
        nanos("prompt_eval_duration") + nanos("eval_duration")
    );
    assert!(lines[..3].iter().all(|line| line["done"] == json!(false)));
}

#[test]
fn the_whole_answer_is_one_line() {
    let line = format(Api::Chat, false).response(delta(parts(), Some(FinishReason::Length)));
    let line = value(&line);
    assert_eq!(line["done_reason"], "length");
    assert_eq!(line["message"]["content"], "Yes.");
    assert!(line["message"].get("thinking").is_none());
    assert_eq!(
        line["message"]["tool_calls"][0]["function"]["arguments"],
        json!({ "x": 1 })
    );

    let text = vec![Part::Reasoning("hm".into()), Part::Content("Yes.".into())];
    let line = format(Api::Generate, true).response(delta(text, Some(FinishReason::Stop)));
    let line = value(&line);
    assert_eq!(
        (&line["response"], &line["thinking"]),
        (&json!("Yes."), &json!("hm"))
    );
    let plain = Delta {
        text: "raw".to_owned(),
        ..delta(Vec::new(), Some(FinishReason::Stop))
    };
    let line = value(&format(Api::Generate, true).response(plain));
    assert_eq!(line["response"], "raw");
}

#[test]
fn nothing_to_do_is_loaded() {
    let line = value(&format(Api::Generate, true).loaded());
    assert_eq!(
        (&line["done"], &line["done_reason"], &line["response"]),
        (&json!(true), &json!("load"), &json!(""))
    );
    assert!(line.get("total_duration").is_none());
}
