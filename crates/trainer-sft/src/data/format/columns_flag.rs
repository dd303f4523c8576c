//! `--columns` as a shell takes it.

use crate::commands::quoted;

/// Parts, and the fields of the record that would play them.
pub(super) type Pairs<'a> = Vec<(&'static str, &'a str)>;

/// `--columns` as a shell takes it; `None` where a name of a field has a comma.
pub(super) fn flag(pairs: &Pairs<'_>) -> Option<String> {
    let is_written = pairs.iter().all(|(_, field)| !field.contains(','));
    is_written.then(|| format!("--columns {}", quoted(&texts(pairs).join(","))))
}

/// A `part=field` for each pair.
pub(super) fn texts(pairs: &Pairs<'_>) -> Vec<String> {
    let texts = pairs.iter().map(|(part, field)| format!("{part}={field}"));
    texts.collect()
}
