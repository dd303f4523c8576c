//! Templates of model folders.

use std::path::Path;

use super::*;

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

/// Also of the only template that has another name.
#[test]
fn the_only_named_template_is_the_default() {
    let config = r#"{"chat_template": [{"name": "rag", "template": "only"}]}"#;
    let template = from_dir(&[("tokenizer_config.json", config)])
        .unwrap()
        .unwrap();
    assert_eq!(template.render(&[], &prompt()).unwrap(), "only");
}

/// Its reason may hold what Jinja reads otherwise.
#[test]
fn a_template_may_refuse_all_messages() {
    let reason = "a/b \\ \"default\" {{ x }} {% if %} 'é'\n#}";
    let refused = ChatTemplate::refusing(reason, None, Map::new()).unwrap();
    assert_eq!(refused.source(), "");
    match refused.render(&[], &prompt()) {
        Err(TemplateError::Raised(text)) => assert_eq!(text, reason),
        other => panic!("{other:?}"),
    }
    let tokens = Map::from_iter([("eos_token".to_owned(), json!("</s>"))]);
    let refused = ChatTemplate::refusing(reason, Some("tools {{ eos_token }}"), tokens).unwrap();
    let with_tools = RenderOptions {
        tools: Some(json!([])),
        ..prompt()
    };
    assert_eq!(refused.render(&[], &with_tools).unwrap(), "tools </s>");
    assert!(refused.render(&[], &prompt()).is_err());
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
            r#"{"chat_template": [{"name": "x", "template": ""}, {"name": "y", "template": ""}]}"#,
            "named \"default\", found [\"x\", \"y\"]",
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
