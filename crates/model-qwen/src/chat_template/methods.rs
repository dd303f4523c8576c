//! Python's methods of strings, lists and dicts, each at the cost of what it reads and writes.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python::View;
use super::{fuel, plain_text, python, safe_text, text_methods};

/// Calls a method that minijinja itself does not have.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let args = &*text_methods::by_place(method, args)?;
    match value.as_str() {
        Some(text) if value.is_safe() => return safe_text::call(state, text, method, args),
        Some(text) => return plain_text::call(state, text, method, args),
        None if value.kind() == ValueKind::Seq => {
            let num = value.len().unwrap_or(0);
            fuel::pay(state, num.saturating_mul(64))?;
            match method {
                "index" => return text_methods::list_index(value, args),
                "copy" if !python::is_tuple(value) => {
                    let () = from_args(args)?;
                    return Ok(value.clone());
                }
                _ => {}
            }
        }
        None if value.kind() == ValueKind::Map && !python::is_namespace(value) => {
            if let Some(result) = of_dict(state, value, method, args) {
                return result;
            }
        }
        None => {}
    }
    unknown_method_callback(state, value, method, args)
}

/// Calls a method of a dict; `None` where it is none of these.
fn of_dict(
    state: &State<'_, '_>,
    dict: &Value,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    let name = match method {
        "keys" => "dict_keys",
        "values" => "dict_values",
        "items" => "dict_items",
        // Nothing changes a dict, so that both may be one.
        "copy" => return Some(from_args(args).map(|()| dict.clone())),
        _ => return None,
    };
    let view = || {
        let () = from_args(args)?;
        fuel::pay(state, dict.len().unwrap_or(0).saturating_mul(64))?;
        let mut items = Vec::new();
        for key in dict.try_iter()?.checked() {
            let key = key?;
            items.push(match method {
                "keys" => key,
                "values" => dict.get_item(&key)?,
                _ => {
                    let value = dict.get_item(&key)?;
                    Value::from(Tuple::from([key, value]))
                }
            });
        }
        Ok(Value::from_object(View { name, items }))
    };
    Some(view())
}
