//! `--structured-outputs-config`: vLLM's settings of constrained output.

use model_qwen::JsonStyle;
use serde_json::Value;

/// Without settings: objects have only the properties that their schema lists, as with vLLM's default backend and with OpenAI.
pub(super) fn default_style() -> JsonStyle {
    JsonStyle {
        closed_objects: true,
        ..JsonStyle::default()
    }
}

/// The settings in a JSON object.
///
/// # Errors
/// Names the key that is not understood.
pub(super) fn json_style(text: &str) -> Result<JsonStyle, String> {
    let settings = super::units::object(text)?;
    let mut style = default_style();
    for (key, value) in &settings {
        let flag = || match value {
            Value::Bool(flag) => Ok(*flag),
            other => Err(format!("`{key}`: expected true or false, found {other}")),
        };
        match key.as_str() {
            "disable_any_whitespace" => style.compact = flag()?,
            "disable_additional_properties" => style.closed_objects = flag()?,
            // There is no other one to fall back to.
            "disable_fallback" => {
                flag()?;
            }
            "backend" if value == "auto" || value == "guidance" => {}
            "backend" => {
                return Err(format!(
                    "`backend`: expected auto or guidance, found {value}: grammars are compiled by llguidance"
                ));
            }
            "enable_in_reasoning" if !flag()? => {}
            "reasoning_parser" | "reasoning_parser_plugin" if value == "" => {}
            "enable_in_reasoning" | "reasoning_parser" | "reasoning_parser_plugin" => {
                return Err(format!(
                    "`{key}` is not supported: reasoning is free text, and ends with `</think>`"
                ));
            }
            _ => {
                return Err(format!(
                    "`{key}` is not known, expected backend, disable_fallback, disable_any_whitespace, \
                     disable_additional_properties"
                ));
            }
        }
    }
    Ok(style)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_understood_or_refused() {
        let settings = r#"{"backend": "guidance", "disable_any_whitespace": true, "disable_fallback": true, "reasoning_parser": ""}"#;
        let compact = JsonStyle {
            compact: true,
            ..default_style()
        };
        assert_eq!(json_style(settings), Ok(compact));
        assert_eq!(json_style("{}"), Ok(default_style()));
        let open = r#"{"disable_additional_properties": false}"#;
        assert_eq!(json_style(open), Ok(JsonStyle::default()));
        for (settings, part) in [
            ("[]", "object"),
            (r#"{"backend": "outlines"}"#, "outlines"),
            (r#"{"disable_any_whitespace": 1}"#, "disable_any_whitespace"),
            (r#"{"enable_in_reasoning": true}"#, "enable_in_reasoning"),
            (r#"{"other": 1}"#, "`other`"),
        ] {
            let error = json_style(settings).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
