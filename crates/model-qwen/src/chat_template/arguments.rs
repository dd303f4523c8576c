//! What filters, functions and methods are given.

use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

/// Arguments of a filter.
pub(super) type Given = Rest<ValueOrKwargs>;

/// An error of a call.
pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// What a filter gets after its value, by place or by name; `None` where nothing is given.
pub(super) fn arguments<const N: usize>(
    given: Given,
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let given = given.into_values();
    let (places, named): (&[Value], Kwargs) = from_args(&given)?;
    if places.len() > N {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let mut values = names.map(|_| None);
    for (i, name) in names.iter().enumerate() {
        values[i] = match (places.get(i), named.has(name)) {
            (Some(_), true) => return Err(invalid(format!("{name}: given twice"))),
            (Some(value), false) => Some(value.clone()),
            (None, true) => Some(named.get(name)?),
            (None, false) => None,
        };
    }
    named.assert_all_used()?;
    Ok(values)
}

/// The same as named arguments.
pub(super) fn by_name<const N: usize>(given: Given, names: [&str; N]) -> Result<Kwargs, Error> {
    let values = arguments(given, names)?;
    let pairs = names.into_iter().zip(values);
    Ok(pairs
        .filter_map(|(name, value)| Some((name, value?)))
        .collect())
}

/// Whether an argument is true.
pub(super) fn is_true(value: Option<Value>, otherwise: bool) -> bool {
    value.map_or(otherwise, |value| value.is_true())
}

/// An argument that is a number of things.
pub(super) fn count(value: Option<Value>, name: &str, otherwise: usize) -> Result<usize, Error> {
    let Some(value) = value else {
        return Ok(otherwise);
    };
    let number = usize::try_from(value.clone());
    number.map_err(|_| invalid(format!("{name}: expected a whole number, found {value:?}")))
}
