//! Chat templates against what transformers renders (xtask/golden/chat_template.py and chat_expressions.py).

#![allow(clippy::unwrap_used)]

mod expressions;
mod folders;
mod messages;

use std::path::PathBuf;

use model_qwen::{ChatTemplate, RenderOptions, TemplateError};
use serde_json::{Map, Value, json};

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
