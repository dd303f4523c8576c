//! Which fields of a record are read.

use crate::config::Columns;

/// The name of a field, for messages: a table may have a column without one.
pub(crate) fn shown_key(key: &str) -> &str {
    match key.is_empty() {
        true => "(no name)",
        false => key,
    }
}

/// The first names of fields, for messages.
pub(super) fn shown_keys<'k>(keys: impl Iterator<Item = &'k String>) -> String {
    let names = keys.take(8).map(|key| format!("`{}`", shown_key(key)));
    names.collect::<Vec<_>>().join(", ")
}

/// The names of a record's fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    columns: &'a Columns,
    /// Whether a field that no `--columns` names keeps its own name.
    keeps_others: bool,
}

impl<'a> Names<'a> {
    /// Of records whose other fields do not count once some are named.
    pub(super) fn only(columns: &'a Columns) -> Self {
        Self {
            columns,
            keeps_others: columns.is_empty(),
        }
    }

    /// Of records whose other fields count as well.
    pub(super) fn and_others(columns: &'a Columns) -> Self {
        Self {
            columns,
            keeps_others: true,
        }
    }

    /// The field that is this one of ours; `None` if there is none.
    pub(super) fn of<'n>(&self, ours: &'n str) -> Option<&'n str>
    where
        'a: 'n,
    {
        let mut named = self.columns.iter().filter(|(name, _)| *name == ours);
        let named = named.next().map(|(_, theirs)| theirs);
        named.or(self.keeps_others.then_some(ours))
    }

    /// Whether a field is one of `ours`, or is named.
    pub(super) fn has(&self, field: &str, ours: &[&str]) -> bool {
        let is_named = self.columns.iter().any(|(_, theirs)| theirs == field);
        is_named || (self.keeps_others && ours.contains(&field))
    }
}
