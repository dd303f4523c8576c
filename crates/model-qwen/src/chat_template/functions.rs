//! Functions that transformers gives to templates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{DynObject, Kwargs, Object, ObjectRepr, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, functions};

use super::arguments::{Given, invalid};
use super::{fuel, operators, printf, python};

/// Puts the functions where templates find them.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
    environment.add_function("lipsum", lipsum);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function(
        operators::REMAINDER,
        |state: &State<'_, '_>, a: &Value, b: &Value| printf::remainder(state, a, b),
    );
    environment.add_function(
        operators::SUM,
        |state: &State<'_, '_>, a: &Value, b: &Value| printf::sum(state, a, b),
    );
}

/// Whether an object can be called.
pub(super) fn is_function(object: &DynObject) -> bool {
    let name = object.type_name();
    ["Function", "::Macro", "Joiner", "::Loop"]
        .iter()
        .any(|part| name.contains(part))
}

/// Random words, of which no prompt is made.
fn lipsum(_args: Given) -> Result<Value, Error> {
    Err(invalid(
        "lipsum: not supported, it makes a prompt that changes",
    ))
}

/// `dict(mapping or pairs, **more)`.
fn dict(state: &State<'_, '_>, given: Given) -> Result<Value, Error> {
    let given = given.into_values();
    let (first, more): (Option<Value>, Kwargs) = from_args(&given)?;
    let is_pairs = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    let Some(pairs) = first.as_ref().filter(|first| is_pairs(first)) else {
        return functions::dict(first, more);
    };
    let mut items = Vec::new();
    for pair in pairs.try_iter()?.checked() {
        fuel::pay(state, 64)?;
        let pair = pair?
            .try_iter()?
            .checked()
            .take(3)
            .collect::<Result<Vec<_>, _>>()?;
        let Ok([key, value]) = <[Value; 2]>::try_from(pair) else {
            return Err(invalid("dict: expected a mapping or pairs"));
        };
        items.push((key, value));
    }
    functions::dict(Some(Value::from_pairs(items)), more)
}

/// `namespace(mapping or pairs, **more)`.
fn namespace(state: &State<'_, '_>, given: Given) -> Result<Value, Error> {
    functions::namespace(Some(dict(state, given)?.into()))
}

/// Carries the text of `raise_exception` through minijinja's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RaisedException(String);

pub(super) fn raise_exception(state: &State<'_, '_>, message: Value) -> Result<Value, Error> {
    let message = python::to_display(&message, &|num_bytes| fuel::pay(state, num_bytes))?;
    Err(Error::new(ErrorKind::InvalidOperation, message.clone())
        .with_source(RaisedException(message)))
}

/// What [`cycler`] makes.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        let at = self.at.load(Ordering::Relaxed);
        self.items[at % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = from_args(args)?;
        match method {
            "next" => {
                let item = self.current();
                self.at.fetch_add(1, Ordering::Relaxed);
                Ok(item)
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(ErrorKind::UnknownMethod.into()),
        }
    }
}

/// `cycler(*items)`.
pub(super) fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    match items.0.is_empty() {
        true => Err(Error::new(
            ErrorKind::InvalidOperation,
            "cycler: expected at least one item",
        )),
        false => Ok(Value::from_object(Cycler {
            items: items.0,
            at: AtomicUsize::new(0),
        })),
    }
}

pub(super) fn raised(error: &Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(RaisedException(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        next = error.source();
    }
    None
}

pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    use chrono::format::{Item, StrftimeItems};
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: {format:?} is not a valid format"),
        ));
    }
    Ok(chrono::Local::now()
        .format_with_items(items.into_iter())
        .to_string())
}
