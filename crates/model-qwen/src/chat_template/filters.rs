//! Filters and tests of jinja2 that minijinja lacks, or that take other arguments there.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, State, Value, filters};

use super::arguments::{Given, arguments, by_name, count, invalid, is_true};
use super::{fuel, functions, number_filters, printf, python, text_filters};

/// Puts the filters and tests where templates find them.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    text_filters::add_to(environment);
    number_filters::add_to(environment);
    environment.add_filter("attr", python::attr);
    environment.add_filter("format", printf::format_filter);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("sort", sort);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("unique", unique);
    environment.add_filter("max", max);
    environment.add_filter("min", min);
    environment.add_filter("map", map);
    environment.add_filter("urlize", |_: Value, _: Given| {
        refuse("urlize", "links for browsers")
    });
    environment.add_filter("random", |_: Value, _: Given| {
        refuse("random", "a prompt that changes")
    });
    environment.add_test("callable", is_callable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| {
        value.try_iter().is_ok() && !value.is_none() && !python::is_namespace(value)
    });
    environment.add_test("mapping", |value: &Value| {
        value.kind() == ValueKind::Map && !python::is_namespace(value)
    });
}

fn refuse(name: &str, makes: &str) -> Result<Value, Error> {
    Err(invalid(format!("{name}: not supported, it makes {makes}")))
}

fn default(value: &Value, given: Given) -> Result<Value, Error> {
    let [default_value, boolean] = arguments(given, ["default_value", "boolean"])?;
    let is_missing = value.is_undefined() || is_true(boolean, false) && !value.is_true();
    Ok(match is_missing {
        true => default_value.unwrap_or_else(|| Value::from("")),
        false => value.clone(),
    })
}

fn batch(state: &State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    let [linecount, fill_with] = arguments(given, ["linecount", "fill_with"])?;
    let linecount = count(linecount, "batch: linecount", 0)?;
    filters::batch(state, value, linecount, fill_with)
}

fn slice(state: &State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    let [slices, fill_with] = arguments(given, ["slices", "fill_with"])?;
    filters::slice(state, value, count(slices, "slice: slices", 0)?, fill_with)
}

fn sort(state: &State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    filters::sort(
        state,
        value,
        by_name(given, ["reverse", "case_sensitive", "attribute"])?,
    )
}

fn dictsort(state: &State<'_, '_>, value: &Value, given: Given) -> Result<Value, Error> {
    fuel::pay(state, value.len().unwrap_or(0).saturating_mul(64))?;
    let named = by_name(given, ["case_sensitive", "by", "reverse"])?;
    match named.peek::<Option<&str>>("by") {
        Ok(None | Some("key" | "value")) => filters::dictsort(value, named),
        _ => Err(invalid("dictsort: by: expected \"key\" or \"value\"")),
    }
}

fn unique(state: &State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    filters::unique(
        state,
        value,
        by_name(given, ["case_sensitive", "attribute"])?,
    )
}

fn max(state: &State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    filters::max(
        state,
        value,
        by_name(given, ["case_sensitive", "attribute"])?,
    )
}

fn min(state: &State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    filters::min(
        state,
        value,
        by_name(given, ["case_sensitive", "attribute"])?,
    )
}

/// An attribute of each item, or what a filter makes of it with the other arguments.
fn map(state: &mut State<'_, '_>, value: Value, given: Given) -> Result<Value, Error> {
    let is_filter = given.first().is_some_and(|first| !first.is_kwargs());
    if !is_filter {
        return filters::map(state, value, given).map(Value::from);
    }
    let mut args = given.into_values();
    let name = args[0].clone();
    let name = name
        .as_str()
        .ok_or_else(|| invalid("map: expected the name of a filter"))?;
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        fuel::pay(state, 64)?;
        args[0] = item?;
        items.push(state.apply_filter(name, &args)?);
    }
    Ok(Value::from(items))
}

/// `callable(value)`: what is undefined can be called in Python, to say that it is undefined.
fn is_callable(value: &Value) -> bool {
    match value.as_object() {
        Some(object) => functions::is_function(object),
        None => value.is_undefined(),
    }
}

/// Whether a value has a length and items by key or place.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Undefined => true,
        ValueKind::Map => !python::is_namespace(value),
        ValueKind::Iterable => {
            value.len().is_some() && value.downcast_object_ref::<python::View>().is_none()
        }
        _ => false,
    }
}
