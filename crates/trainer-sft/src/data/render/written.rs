//! What a template would leave out in silence.

use serde_json::Value;

use crate::data::format::role_of;
use crate::data::{DataError, Extras, Source};
use crate::template_facts::TemplateFacts;

/// Refuses what the template would leave out.
///
/// # Errors
/// The field that it does not write.
pub(crate) fn check_written(
    facts: &TemplateFacts,
    source: &Source,
    messages: &[Value],
    with: &Extras,
) -> Result<(), DataError> {
    let refuse = |field: String, what, instead| {
        Err(DataError::NotWritten {
            source_place: source.clone(),
            field,
            what,
            instead,
        })
    };
    if with.tools.is_some() && !facts.writes_tools {
        let instead = "leave `tools` out, or give a model whose template has them";
        return refuse("tools".into(), "function schemas", instead);
    }
    for (index, message) in messages.iter().enumerate() {
        if message.get("tool_calls").is_some() && !facts.writes_calls {
            let instead =
                "give a model whose template writes them, or write the calls into `content`";
            let field = format!("messages[{index}].tool_calls");
            return refuse(field, "the arguments of tool calls", instead);
        }
        let text = message.get("content").and_then(Value::as_str);
        let says_both =
            message.get("tool_calls").is_some() && text.is_some_and(|text| !text.trim().is_empty());
        if says_both && !facts.writes_text_with_calls {
            let instead = "give a model whose template writes both, or leave the text out";
            let field = format!("messages[{index}].content");
            return refuse(field, "what is said beside tool calls", instead);
        }
        let (is_written, what) = match role_of(message) {
            "tool" => (facts.writes_results, "results of tools"),
            "system" => (facts.writes_system, "what the system says"),
            _ => (true, ""),
        };
        if !is_written {
            let instead = "give a model whose template writes them, or leave the turn out";
            return refuse(format!("messages[{index}]"), what, instead);
        }
    }
    Ok(())
}

/// Refuses what only a template would write, for a text that gets none: `why`.
///
/// # Errors
/// The field that would have no effect.
pub(crate) fn check_no_template(
    source: &Source,
    with: &Extras,
    why: &str,
) -> Result<(), DataError> {
    let field = match (&with.tools, with.variables.is_empty()) {
        (Some(_), _) => "tools",
        (None, false) => "chat_template_kwargs",
        (None, true) => return Ok(()),
    };
    Err(DataError::Render {
        source_place: source.clone(),
        reason: format!(
            "field `{field}`: expected none, since {why}, so that nothing would write it"
        ),
    })
}
