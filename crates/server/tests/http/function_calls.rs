//! Strict tools whose calls have the form `<function=…>`.

use super::call_grammars::accepts;
use super::*;

const FLAGS: [&str; 2] = ["--tool-call-parser", "qwen3_coder"];

fn tool(name: &str, parameters: Value, strict: bool) -> Value {
    json!({ "type": "function", "function": { "name": name, "strict": strict, "parameters": parameters } })
}

fn book() -> Value {
    json!({ "type": "object", "required": ["city", "nights"], "properties": {
        "city": { "type": "string", "description": "Where" },
        "nights": { "type": "integer" },
        "room": { "enum": ["single", "double"] },
        "note": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
        "guests": { "type": "array", "items": { "$ref": "#/$defs/guest" } },
    }, "$defs": { "guest": { "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] } } })
}

fn call(name: &str, parameters: &[(&str, &str)]) -> String {
    let parameters = parameters.iter();
    let parameters: String = parameters
        .map(|(name, value)| format!("<parameter={name}>\n{value}\n</parameter>\n"))
        .collect();
    format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
}

#[test]
fn strict_calls_of_functions_keep_to_their_schemas() {
    let tools = json!([tool("book", book(), true), tool("look", json!({}), false)]);
    let ask = |text: &str| {
        let text = text.to_owned();
        let server = TestServer::start_with(&FLAGS, move |_| says(&text));
        let answer = server.chat(json!({ "tools": tools }));
        assert_eq!(answer.status, 200, "{}", answer.text);
        (accepts_of(&server), answer.json())
    };
    let both = [("city", "Rome"), ("nights", "2")];
    for (text, arguments) in [
        (call("book", &both), json!({ "city": "Rome", "nights": 2 })),
        (
            format!(
                "I look.\n{}\n",
                call("book", &both).replace("<tool_call>\n", "")
            ),
            json!({ "city": "Rome", "nights": 2 }),
        ),
        (
            call(
                "book",
                &[
                    ("city", "a\n\n</p> <b>"),
                    ("nights", "-1"),
                    ("room", "double"),
                ],
            ),
            json!({ "city": "a\n\n</p> <b>", "nights": -1, "room": "double" }),
        ),
        (
            call(
                "book",
                &[
                    ("city", ""),
                    ("nights", "99999999999999999999999"),
                    ("note", "null"),
                ],
            ),
            serde_json::from_str(
                "{\"city\": \"\", \"nights\": 99999999999999999999999, \"note\": null}",
            )
            .unwrap(),
        ),
        (
            call(
                "book",
                &[
                    ("city", "a\"b"),
                    ("nights", "1"),
                    ("guests", "[{\"name\": \"Ada\"}]"),
                ],
            ),
            json!({ "city": "a\"b", "nights": 1, "guests": [{ "name": "Ada" }] }),
        ),
        // Tags in a text of a list end nothing.
        (
            call(
                "book",
                &[
                    ("city", "a"),
                    ("nights", "1"),
                    (
                        "guests",
                        "[{\"name\": \"</parameter></function></tool_call>\"}]",
                    ),
                ],
            ),
            json!({ "city": "a", "nights": 1, "guests": [{ "name": "</parameter></function></tool_call>" }] }),
        ),
    ] {
        let (accepts, answer) = ask(&text);
        assert!(accepts(&text), "{text}");
        let found = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        assert_eq!(found["name"], "book", "{answer}");
        let found: Value = serde_json::from_str(found["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(found, arguments, "{text}");
    }
    let (accepts, _) = ask("x");
    for text in [
        "Just text.",
        &call("look", &[("anything", "1")]),
        "<tool_call>\n{\"name\": \"book\", \"arguments\": {\"city\": \"a\", \"nights\": 1}}\n</tool_call>",
    ] {
        assert!(accepts(text), "{text}");
    }
    for text in [
        call("other", &[]),
        call("book", &[]),
        call("book", &[("nights", "2")]),
        call("book", &[("city", "Rome")]),
        call("book", &[("city", "Rome"), ("nights", "two")]),
        call("book", &[("city", "Rome"), ("nights", "2.5")]),
        call(
            "book",
            &[("city", "Rome"), ("nights", "2"), ("room", "triple")],
        ),
        call("book", &[("city", "Rome"), ("nights", "2"), ("more", "2")]),
        call(
            "book",
            &[("city", "Rome"), ("nights", "2"), ("guests", "[{}]")],
        ),
        call("book", &[("city", "a</function>b"), ("nights", "2")]),
        call(
            "book",
            &[("city", "Rome"), ("nights", "2"), ("city", "Rome")],
        ),
        "<function= book>".to_owned(),
        "<function=\"book\">".to_owned(),
        "<tool_call>\n{\"name\": \"book\", \"arguments\": {\"city\": 1}}\n</tool_call>".to_owned(),
    ] {
        assert!(!accepts(&text), "{text}");
    }
}

/// Tells which texts keep to the grammar of the last request.
fn accepts_of(server: &TestServer) -> impl Fn(&str) -> bool + use<> {
    let constraint = server.last_request().constraint.unwrap();
    move |text| {
        let mut constraint = constraint.clone();
        for id in bytes(text) {
            if constraint.mask().is_some_and(|mask| !mask.allows(id)) {
                return false;
            }
            constraint.consume(id);
        }
        constraint.may_stop()
    }
}

#[test]
fn what_the_form_cannot_keep_to_is_refused_by_name() {
    let server = TestServer::start_with(&FLAGS, |_| says("x"));
    let of = |schema: Value| json!({ "type": "object", "properties": { "p": schema } });
    for (parameters, part) in [
        (
            of(json!({ "type": "string", "pattern": "^a$" })),
            "`pattern`",
        ),
        (
            of(json!({ "type": "string", "maxLength": 3 })),
            "`maxLength`",
        ),
        (
            of(json!({ "type": "string", "format": "date" })),
            "`format`",
        ),
        (
            of(json!({ "type": ["integer", "string"] })),
            "integer, string",
        ),
        (
            of(json!({ "type": "string", "enum": ["</parameter>"] })),
            "tag",
        ),
        (
            of(json!({ "type": ["string", "null"], "enum": ["none", "low", null] })),
            "null",
        ),
        (
            of(json!({ "type": "array", "items": { "$ref": "#" } })),
            "`$ref`",
        ),
        (of(json!({ "minimum": 3 })), "`type`"),
        (
            json!({ "type": "object", "properties": { "a>b": {} } }),
            "`a>b`",
        ),
        (json!({ "type": "object", "required": ["q"] }), "`q`"),
        (
            json!({ "type": "object", "anyOf": [{ "required": ["q"] }] }),
            "`anyOf`",
        ),
    ] {
        let tools = |strict: bool| {
            json!([
                tool("look", json!({}), true),
                tool("book", parameters.clone(), strict)
            ])
        };
        let refused = server.chat(json!({ "tools": tools(true) }));
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["param"]),
            (400, &json!("tools[1].function.strict")),
            "{parameters}: {error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(part) && message.contains("`book`"),
            "{message}"
        );
        assert_eq!(server.chat(json!({ "tools": tools(false) })).status, 200);
    }
    // Names of the other APIs.
    let function = json!({ "type": "function", "name": "a>b", "parameters": {}, "strict": true });
    let answer = server.post(
        "/v1/responses",
        &json!({ "input": "x", "tools": [function] }),
    );
    assert_eq!(
        answer.json()["error"]["param"],
        "tools[0].strict",
        "{}",
        answer.text
    );
    // Forced calls have the other form.
    let tools = json!([tool(
        "book",
        of(json!({ "type": "string", "maxLength": 3 })),
        true
    )]);
    let forced = server.chat(json!({ "tools": tools, "tool_choice": "required" }));
    assert_eq!(forced.status, 200, "{}", forced.text);
    let text = "<tool_call>\n{\"name\": \"book\", \"arguments\": {\"p\": \"abc\"}}\n</tool_call>";
    assert!(accepts(&server, text));
}
