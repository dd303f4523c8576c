//! Messages in the form that a template wants.

use super::*;

/// The golden case `name`, with each message changed by `change`, must render as before.
fn check_equivalent(file: &str, name: &str, change: impl Fn(&mut Value)) {
    let golden = golden(file);
    let template = template(&golden);
    let cases = golden["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == name).unwrap();
    let mut messages = case["messages"].as_array().unwrap().clone();
    let before = messages.clone();
    messages.iter_mut().for_each(change);
    assert_ne!(messages, before);
    let rendered = template.render(&messages, &options(case)).unwrap();
    assert_eq!(rendered, case["expected"].as_str().unwrap());
}

#[test]
fn text_parts_are_joined_when_the_template_wants_a_string() {
    let to_parts = |message: &mut Value| {
        if let Some(text) = message["content"].as_str() {
            let parts: Vec<Value> = text
                .split('\n')
                .map(|line| json!({"type": "text", "text": line}))
                .collect();
            message["content"] = Value::Array(parts);
        }
    };
    for file in ["qwen2_5", "qwen3", "deepseek_r1_distill_qwen"] {
        check_equivalent(file, "multi-turn", to_parts);
    }
}

#[test]
fn parts_stay_when_the_template_reads_them() {
    let template = from_source(
        "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}",
    );
    let messages = [
        json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
    ];
    assert_eq!(template.render(&messages, &prompt()).unwrap(), "[a][b]");
}

#[test]
fn tool_arguments_take_the_form_the_template_wants() {
    // OpenAI clients send a JSON string; the Qwen2.5 template wants an object.
    check_equivalent("qwen2_5", "tool call", |message| {
        if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
            for call in calls {
                let text = call["function"]["arguments"].to_string();
                call["function"]["arguments"] = Value::String(text);
            }
        }
    });
    // The DeepSeek template concatenates strings.
    check_equivalent("deepseek_r1_distill_qwen", "tool call", |message| {
        if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
            for call in calls {
                let text = call["function"]["arguments"].as_str().unwrap().to_owned();
                call["function"]["arguments"] = serde_json::from_str(&text).unwrap();
            }
        }
    });
    // A message with tool calls may lack content.
    check_equivalent("deepseek_r1_distill_qwen", "tool call", |message| {
        if message.get("tool_calls").is_some() {
            message.as_object_mut().unwrap().remove("content");
        }
    });
}

/// GLM-4.5 and LFM2 give the arguments a name, and refuse texts or go through the items.
#[test]
fn tool_arguments_may_have_another_name() {
    let call = json!({ "function": { "name": "f", "arguments": "{\"a\": [1, \"x\"]}" } });
    let messages = [json!({ "role": "assistant", "tool_calls": [call] })];
    let with = |source: &str| {
        let source = format!("{{% for call in messages[0].tool_calls %}}{source}{{% endfor %}}");
        from_source(&source)
            .render(&messages, &RenderOptions::default())
            .unwrap()
    };
    let items = "{% for k, v in args.items() %}{{ k }}={{ v }}{% endfor %}";
    for source in [
        "{% set args = call.function.arguments %}",
        "{% set args = call.function.get(\"arguments\") %}",
        "{%- set args = call['function']['arguments'] -%}{% if args is string %}{{ raise_exception('no') }}{% endif %}",
    ] {
        assert_eq!(with(&format!("{source}{items}")), "a=[1, 'x']");
    }
    let source = "{% set args = call.function.arguments %}{{ args | tojson }}";
    assert_eq!(with(source), r#"{"a": [1, "x"]}"#);
    let source = "{% set args = call.function.arguments %}{{ '(' + args + ')' }}";
    assert_eq!(with(source), r#"({"a": [1, "x"]})"#);
}

/// Where a template looks for itself, it gets the object that the trainer, transformers and vLLM give it. What is no object
/// stays a text.
#[test]
fn a_template_that_takes_both_gets_an_object() {
    let rendered = |source: &str, arguments: &str| {
        let source = format!("{{% for call in messages[0].tool_calls %}}{source}{{% endfor %}}");
        let call = json!({ "function": { "name": "f", "arguments": arguments } });
        let messages = [json!({ "role": "assistant", "tool_calls": [call] })];
        from_source(&source)
            .render(&messages, &RenderOptions::default())
            .unwrap()
    };
    let sources = [
        "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments|tojson }}{% endif %}",
        "{% set args = call.function.arguments %}{% if args is mapping %}{{ args|tojson }}{% else %}{{ args }}{% endif %}",
    ];
    for source in sources {
        let compact = "{\"city\":\"K\\u00f6ln\",\"days\":[1,2]}";
        let expected = r#"{"city": "Köln", "days": [1, 2]}"#;
        assert_eq!(rendered(source, compact), expected);
        assert_eq!(rendered(source, ""), "{}");
        // A float is one, however large.
        let floats = "{\"a\":[6.02e23,1e20,-3.4028235e38,1e18]}";
        let expected = "{\"a\": [6.02e+23, 1e+20, -3.4028235e+38, 1e+18]}";
        assert_eq!(rendered(source, floats), expected);
        // The last one is no number of 64 bits.
        for text in ["[1]", "3", "{\"a\":", "{\"a\":[12345678901234567890123]}"] {
            assert_eq!(rendered(source, text), text);
        }
    }
    let whole = "{{ call|tojson }}";
    let expected = r#"{"function": {"name": "f", "arguments": {"a": 1}}}"#;
    assert_eq!(rendered(whole, "{\"a\":1}"), expected);
    let refuses =
        "{% if call.function.arguments is string %}{{ raise_exception('no text') }}{% endif %}ok";
    assert_eq!(rendered(refuses, "{}"), "ok");
}

/// gpt-oss looks into the text, DeepSeek-R1 asks whether there is any.
#[test]
fn a_turn_of_calls_has_a_text_only_where_the_template_needs_one() {
    let messages = [
        json!({ "role": "user", "content": "u" }),
        json!({ "role": "assistant", "content": null, "tool_calls": [] }),
        json!({ "role": "assistant", "tool_calls": [] }),
    ];
    let rendered = |source: &str| {
        let source = format!("{{% for m in messages %}}{source};{{% endfor %}}");
        from_source(&source).render(&messages, &prompt())
    };
    let looks = "{% if 'u' in m.content %}yes{% else %}{{ '(' + m.content + ')' }}{% endif %}";
    assert_eq!(rendered(looks).unwrap(), "yes;();();");
    let asks = "{{ m.content is none }}";
    assert_eq!(rendered(asks).unwrap(), "False;True;True;");
    let strict = "{% if m.content is not string %}{{ raise_exception('no') }}{% endif %}t";
    assert_eq!(rendered(strict).unwrap(), "t;t;t;");
    // The error is that of the messages as they are.
    let error =
        rendered("{{ raise_exception(m.content|tojson) if m.role != 'user' }}").unwrap_err();
    assert!(matches!(error, TemplateError::Raised(text) if text == "null"));
}

#[test]
fn malformed_messages_are_named() {
    let template = from_source("{% for m in messages %}{{ m.content }}{% endfor %}");
    let ok = json!({"role": "user", "content": "x"});
    for (bad, expected) in [
        (
            json!("hi"),
            "messages[1]: expected an object with role and content, found a string",
        ),
        (
            json!({"content": "x"}),
            "messages[1].role: expected a string, found nothing",
        ),
        (
            json!({"role": 3}),
            "messages[1].role: expected a string, found a number",
        ),
        (
            json!({"role": "user", "content": 3}),
            "messages[1].content: expected a string or a list of parts, found a number",
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}),
            "messages[1].content[1].type: expected \"text\" (this model reads text only), found \"image_url\"",
        ),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            "messages[1].content[0].text: expected a string, found nothing",
        ),
    ] {
        let error = template.render(&[ok.clone(), bad], &prompt()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
