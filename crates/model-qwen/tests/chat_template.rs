//! Chat templates against what transformers renders (xtask/golden/chat_template.py and chat_expressions.py).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use model_qwen::{ChatTemplate, RenderOptions, TemplateError};
use serde_json::{Map, Value, json};

/// Cases of expressions.json.
const NUM_CASES: usize = 309;

fn golden(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/golden/chat_template")
        .join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn template(golden: &Value) -> ChatTemplate {
    let tokens = golden["special_tokens"].as_object().unwrap().clone();
    ChatTemplate::from_source(golden["template"].as_str().unwrap(), tokens).unwrap()
}

fn options(case: &Value) -> RenderOptions {
    RenderOptions {
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        continue_final_message: case["continue_final_message"].as_bool().unwrap(),
        tools: Some(case["tools"].clone()).filter(|tools| !tools.is_null()),
        extra: case["extra"].as_object().unwrap().clone(),
    }
}

fn check(name: &str, num_cases: usize) {
    let golden = golden(name);
    let template = template(&golden);
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), num_cases);
    for case in cases {
        let messages = case["messages"].as_array().unwrap();
        let rendered = template.render(messages, &options(case));
        assert_eq!(
            rendered.unwrap(),
            case["expected"].as_str().unwrap(),
            "{name}: {}",
            case["name"]
        );
    }
}

#[test]
fn qwen2_5() {
    check("qwen2_5", 22);
}

#[test]
fn qwen2_5_with_generation_tags() {
    check("qwen2_5_training", 22);
}

#[test]
fn qwen3() {
    check("qwen3", 22);
}

#[test]
fn deepseek_r1_distill_qwen() {
    check("deepseek_r1_distill_qwen", 22);
}

#[test]
fn deepseek_r1_distill_qwen_first_version() {
    check("deepseek_r1_distill_qwen_first", 22);
}

#[test]
fn language_features() {
    check("features", 1);
}

fn from_source(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source, Map::new()).unwrap()
}

/// What jinja2 renders of these, as transformers sets it up.
#[test]
fn expressions_give_what_jinja2_gives() {
    let messages = [json!({"role": "user", "content": "Hi <b>\"é\" & it's"})];
    for (source, expected) in [
        (
            "{{ messages[0].content|e }}",
            "Hi &lt;b&gt;&#34;é&#34; &amp; it&#39;s",
        ),
        (
            "{{ messages[0].content|escape|escape }}",
            "Hi &lt;b&gt;&#34;é&#34; &amp; it&#39;s",
        ),
        ("{{ 5|e }}{{ nothing|e }}", "5"),
        (
            "{{ {'b': 1, 'a': (1,)}|items|list }}",
            "[('b', 1), ('a', (1,))]",
        ),
        ("{{ {'b': 1, 'a': 2}|dictsort }}", "[('a', 2), ('b', 1)]"),
        (
            "{{ {'b': 1}.items()|list }} {{ () }} {{ [(1, 'x')] }}",
            "[('b', 1)] () [(1, 'x')]",
        ),
        (
            "{{ (1, 2)|string }} {{ ['a', ('b', 2.5)]|join('-') }}",
            "(1, 2) a-('b', 2.5)",
        ),
        (
            "{{ {'b': 'x', 'a': [{'d': 1, 'c': none}]}|pprint }}",
            "{'a': [{'c': None, 'd': 1}], 'b': 'x'}",
        ),
        ("{{ 'x'|pprint }}", "'x'"),
        (
            "[{{ messages[0]|attr('role') }}]{% set ns = namespace(a=1) %}{{ ns|attr('a') }}",
            "[]1",
        ),
        (
            "{{ 'x-y'.removeprefix('x') }} {{ 'x-y'.removesuffix('-y') }} {{ 'x'.removeprefix('y') }}",
            "-y x x",
        ),
        (
            "{{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b'.rsplit(',') }}",
            "['a,b', 'c'] ['a', 'b']",
        ),
        (
            "{{ ' a  b c '.rsplit(none, 1) }} {{ ' a  b '.rsplit() }}",
            "[' a  b', 'c'] ['a', 'b']",
        ),
        (
            "{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }}",
            "('a', '-', 'b-c') ('a-b', '-', 'c')",
        ),
        (
            "{{ 'ab'.partition('-') }} {{ 'ab'.rpartition('-') }}",
            "('ab', '', '') ('', '', 'ab')",
        ),
        (
            "{{ 'éabab'.index('b') }} {{ 'éabab'.rindex('b') }} {{ [1, 2].index(2) }}",
            "2 4 1",
        ),
        (
            "{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '*') }}|{{ 'abc'.center(8, '*') }}|{{ 'ab'.center(5, '*') }}",
            "a  |**a|**abc***|**ab*",
        ),
        (
            "{{ 'abc'.zfill(5) }} {{ '-5'.zfill(4) }} {{ 'abc'.zfill(1) }}",
            "00abc -005 abc",
        ),
        (
            "{{ 'a,b,c'.rsplit(',', maxsplit=1) }} {{ 'a,b,c'.split(',', maxsplit=1) }} {{ 'a b c'.split(maxsplit=1) }}",
            "['a,b', 'c'] ['a', 'b,c'] ['a', 'b c']",
        ),
        (
            "{{ 'a b c'.split(sep=none) }} {{ 'a\nb'.splitlines(keepends=true) }}",
            "['a', 'b', 'c'] ['a\\n', 'b']",
        ),
        (
            "{{ 'éabab'.find('b', 3) }} {{ 'éabab'.find('b', 0, 2) }} {{ 'éabab'.rfind('b', -3, -1) }} {{ 'ab'.find('', 3) }}",
            "4 -1 2 -1",
        ),
        (
            "{{ 'ab'.index('b', 1) }} {{ 'abab'.rindex('a', 0, 2) }} {{ [1, 2, 1].index(1, 1) }} {{ 'ab'.find('x') }}",
            "1 0 2 -1",
        ),
        ("[{{ 'a'.ljust(-1) }}{{ 'b'.zfill(-3) }}]", "[ab]"),
        (
            "{% set c = cycler('a', 'b') %}{{ c.current }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
            "aabNonea",
        ),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}",
            "ab,",
        ),
    ] {
        let rendered = from_source(source).render(&messages, &RenderOptions::default());
        let rendered = rendered.unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!(rendered, expected, "{source}");
    }
    for (source, expected) in [
        ("{{ 'ab'.index('x') }}", "substring not found"),
        ("{{ [1].index(2) }}", "is not in list"),
        ("{{ 'ab'.partition('') }}", "empty separator"),
        ("{{ [1, 2].index(1, 1) }}", "is not in list"),
        ("{{ 'ab'.index('a', 1) }}", "substring not found"),
        ("{{ 'a'.zfill(3, '*') }}", "too many arguments"),
        ("{{ 'a'.split(by=1) }}", "unknown keyword argument"),
        ("{{ cycler() }}", "at least one item"),
        ("{{ 'a'.ljust(1000000000) }}", "does more work"),
    ] {
        let error = from_source(source)
            .render(&messages, &RenderOptions::default())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{source}: {error}");
    }
}

#[test]
fn expressions_give_what_transformers_gives() {
    let golden = golden("expressions");
    let messages = golden["messages"].as_array().unwrap();
    let options = RenderOptions {
        tools: Some(golden["tools"].clone()),
        ..RenderOptions::default()
    };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), NUM_CASES);
    for case in cases {
        let source = case["source"].as_str().unwrap();
        let template = ChatTemplate::from_source(source, Map::new());
        let rendered = template.and_then(|template| template.render(messages, &options));
        match case["expected"].as_str() {
            Some(expected) => {
                let rendered = rendered.unwrap_or_else(|error| panic!("{source}: {error}"));
                assert_eq!(rendered, expected, "{source}");
            }
            None => assert!(rendered.is_err(), "{source}: expected {}", case["error"]),
        }
    }
}

/// What transformers renders, and this crate refuses by name.
#[test]
fn what_is_not_supported_is_refused() {
    for (source, expected) in [
        ("{{ 'see http://a.b'|urlize }}", "urlize: not supported"),
        ("{{ [1, 2]|random }}", "random: not supported"),
        ("{{ lipsum() }}", "lipsum: not supported"),
        ("{{ '&copy;'|striptags }}", "`&copy` is not supported"),
        ("{{ '{:1000}'.format(1) }}", "widths below 1000"),
        ("{{ '%s' % ('a', 'b') }}", "not all arguments converted"),
        ("{{ '%s %s' % 'a' }}", "not enough arguments"),
        ("{{ '%y' % 1 }}", "unsupported format character 'y'"),
        ("{{ '%d' % 'a' }}", "a real number is required, not string"),
        ("{{ '%(a)s' % {'b': 1} }}", "no key \"a\""),
        ("{{ [1] % 2 }}", "unsupported operand types for %"),
        ("{{ 5 % 0 }}", "division by zero"),
        ("{{ '{!r}'.format('a') }}", "found '!'"),
        ("{{ 'a'.encode() }}", "no method named encode"),
        (
            "{{ 'a'.translate({97: 'x'}) }}",
            "no method named translate",
        ),
        (
            "{{ '{a}'.format_map({'a': 1}) }}",
            "no method named format_map",
        ),
        ("{{ [1].append(2) }}", "no method named append"),
        ("{{ {'a': 1}.update({'b': 2}) }}", "no method named update"),
        (
            "{{ ('%s'|e).format('<') }}",
            "format: not supported for escaped text",
        ),
        (r"{{ '\N{BULLET}' }}", "characters have no names here"),
        ("{{ +5 }}", "unexpected `+`"),
        ("{{ 1, 2 }}", "unexpected `,`"),
        (
            "{% macro f() %}{{ varargs }}{% endmacro %}{{ f(1) }}",
            "too many arguments",
        ),
    ] {
        let template = ChatTemplate::from_source(source, Map::new());
        let rendered =
            template.and_then(|template| template.render(&[], &RenderOptions::default()));
        let error = rendered.unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn errors_name_the_line_of_the_template() {
    let source = "a\r\n{{ 5\n %\n 3 }}{{ '%s' % 'x' }}\n{{ 5 % 'a' }}";
    let error = from_source(source).render(&[], &prompt()).unwrap_err();
    assert!(
        error.to_string().contains("(line 5 of the template)"),
        "{error}"
    );
}

fn prompt() -> RenderOptions {
    RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    }
}

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
    // A text stays one where the template takes both.
    let source = "{% set args = call.function.arguments %}{% if args is string %}{{ args }}{% else %}{{ args|tojson }}{% endif %}";
    assert_eq!(with(source), r#"{"a": [1, "x"]}"#);
    let source = "{% set args = call.function.arguments %}{{ '(' + args + ')' }}";
    assert_eq!(with(source), r#"({"a": [1, "x"]})"#);
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

#[test]
fn errors_of_the_template_are_told_apart() {
    let messages = [json!({"role": "user", "content": "x"})];
    let render = |source: &str, options: &RenderOptions| {
        from_source(source).render(&messages, options).unwrap_err()
    };
    match render("{{ raise_exception('roles must alternate') }}", &prompt()) {
        TemplateError::Raised(text) => assert_eq!(text, "roles must alternate"),
        other => panic!("{other}"),
    }
    match render("line\n{{ messages[0].content.nothing.here }}", &prompt()) {
        TemplateError::Render(text) => assert!(text.contains("line 2"), "{text}"),
        other => panic!("{other}"),
    }
    assert!(matches!(
        ChatTemplate::from_source("{% if %}", Map::new()),
        Err(TemplateError::Syntax { .. })
    ));
    let continued = RenderOptions {
        continue_final_message: true,
        ..RenderOptions::default()
    };
    assert!(matches!(
        render("fixed text", &continued),
        TemplateError::ContinueFinalMessage(_)
    ));
    let both = RenderOptions {
        add_generation_prompt: true,
        ..continued
    };
    assert!(matches!(
        render("{{ messages[0].content }}", &both),
        TemplateError::ContinueFinalMessage(_)
    ));
}

#[test]
fn strftime_now_gives_the_date_and_refuses_nonsense() {
    let year = from_source("{{ strftime_now('%Y') }}").render(&[], &prompt());
    assert_eq!(year.unwrap().len(), 4);
    assert!(
        from_source("{{ strftime_now('%') }}")
            .render(&[], &prompt())
            .is_err()
    );
}

#[test]
fn endless_recursion_is_an_error() {
    let source = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(from_source(source).render(&[], &prompt()).is_err());
}

fn from_dir(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>, TemplateError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path: &Path = &dir.path().join(name);
        std::fs::write(path, text).unwrap();
    }
    ChatTemplate::from_dir(dir.path())
}

#[test]
fn templates_are_found_in_the_folder() {
    assert!(from_dir(&[]).unwrap().is_none());
    assert!(
        from_dir(&[("tokenizer_config.json", "{}")])
            .unwrap()
            .is_none()
    );

    let config = r#"{"chat_template": "config {{ bos_token }}{{ unk_token }}{{ eos_token }}",
        "bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>", "unk_token": null}"#;
    let template = from_dir(&[("tokenizer_config.json", config)])
        .unwrap()
        .unwrap();
    assert_eq!(template.render(&[], &prompt()).unwrap(), "config <s></s>");

    let both = from_dir(&[
        ("tokenizer_config.json", config),
        ("chat_template.jinja", "file {{ eos_token }}"),
    ]);
    assert_eq!(
        both.unwrap().unwrap().render(&[], &prompt()).unwrap(),
        "file </s>"
    );
}

#[test]
fn named_templates_are_chosen_by_tools() {
    let config = r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}"#;
    let template = from_dir(&[("tokenizer_config.json", config)])
        .unwrap()
        .unwrap();
    assert_eq!(template.source(), "plain");
    assert_eq!(template.render(&[], &prompt()).unwrap(), "plain");
    let with_tools = RenderOptions {
        tools: Some(json!([])),
        ..prompt()
    };
    assert_eq!(template.render(&[], &with_tools).unwrap(), "tools");
}

#[test]
fn malformed_files_are_named() {
    for (text, expected) in [
        ("[]", "expected a JSON object, found a list"),
        ("{", "expected a JSON object: EOF"),
        (
            r#"{"chat_template": 3}"#,
            "chat_template: expected a string",
        ),
        (
            r#"{"chat_template": [{"name": "x"}]}"#,
            "chat_template[0].template",
        ),
        (
            r#"{"chat_template": [{"name": "x", "template": ""}]}"#,
            "named \"default\", found [\"x\"]",
        ),
        (r#"{"chat_template": "{% if %}"}"#, "not valid Jinja"),
    ] {
        let message = from_dir(&[("tokenizer_config.json", text)])
            .unwrap_err()
            .to_string();
        assert!(message.contains("tokenizer_config.json"), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}
