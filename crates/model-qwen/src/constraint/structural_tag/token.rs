//! Formats of a single token.

use serde_json::Value;

use super::keys::object;
use crate::constraint::grammar_error::{GrammarError, invalid};
use crate::json_file::json_type;

/// A token by its id, or a special token by its name.
pub(super) fn of_format(format: &Value) -> Result<String, GrammarError> {
    let token = object(format, "token", &["type", "token"])?;
    match token.get("token") {
        Some(Value::Number(id)) if id.as_u64().is_some_and(|id| u32::try_from(id).is_ok()) => {
            Ok(format!("<[{id}]>"))
        }
        Some(Value::String(name)) if is_special(name) => Ok(name.clone()),
        Some(Value::String(name)) => invalid(format!(
            "token: expected an id, or the name of a special token such as <|im_end|>, found {name:?}"
        )),
        Some(other) => invalid(format!(
            "token: expected an id or the name of a special token, found {}",
            json_type(other)
        )),
        None => invalid("token: expected `token`"),
    }
}

/// Whether a name is one of Lark's special tokens; `<[` begins a list of ids there.
fn is_special(name: &str) -> bool {
    let inner = name
        .strip_prefix('<')
        .and_then(|name| name.strip_suffix('>'));
    inner.is_some_and(|inner| {
        let is_plain = |c: char| !c.is_whitespace() && !matches!(c, '<' | '>');
        !inner.is_empty() && !inner.starts_with('[') && inner.chars().all(is_plain)
    })
}
