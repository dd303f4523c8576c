//! What was found in the data, for the log.

use std::collections::BTreeMap;

use tracing::warn;

use super::example::Source;
use super::format::Format;

/// Kinds of reasons that are listed one by one.
const MAX_REASONS: usize = 5;

/// Counts of what was read, learnt, shortened and left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataReport {
    /// Records read.
    pub num_records: usize,
    /// Records of each format.
    pub formats: BTreeMap<Format, usize>,
    /// Tokens of all examples.
    pub num_tokens: usize,
    /// Tokens that are learnt.
    pub num_targets: usize,
    /// Records that lost the left of their prompt, or earlier turns.
    pub num_truncated: usize,
    /// Answers that are compared and lost their end.
    pub num_cut_answers: usize,
    /// Tokens that would have been learnt, but are in earlier turns or left-out examples that do not fit.
    pub num_lost_targets: usize,
    /// Records that give no example at all.
    pub num_left_out: usize,
    /// Why, with the number of records and the first of them.
    pub left_out: BTreeMap<String, Found>,
    /// Turns before the first question or after the last answer.
    pub cut_turns: Found,
    /// Prompts that the template has been applied to already.
    pub rendered: Found,
    /// Texts with the template's own tokens.
    pub own_tokens: Found,
    /// Answers that ended with a token in whose place the template's own end is learnt.
    pub ends: Found,
    /// Rows of a table whose cells say that a value is missing, such as `nan`.
    pub missing: Found,
    /// Fields of `--columns` that a record has had, as [`Columns::found_in`](crate::config::Columns::found_in) counts them.
    pub(super) columns: u32,
}

/// How many records, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Records.
    pub count: usize,
    /// The first record.
    pub first: Option<Source>,
}

impl Found {
    pub(super) fn add(&mut self, source: &Source) {
        self.count += 1;
        self.first.get_or_insert_with(|| source.clone());
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }

    fn first(&self) -> String {
        self.first
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    }
}

impl DataReport {
    /// Counts a record that teaches nothing.
    pub(super) fn leave_out(&mut self, source: &Source, reason: String) {
        self.num_left_out += 1;
        self.left_out.entry(reason).or_default().add(source);
    }

    /// Adds the counts of records that come later.
    pub(super) fn merge(&mut self, other: Self) {
        self.num_records += other.num_records;
        for (format, count) in other.formats {
            *self.formats.entry(format).or_default() += count;
        }
        self.num_tokens += other.num_tokens;
        self.num_targets += other.num_targets;
        self.num_truncated += other.num_truncated;
        self.num_cut_answers += other.num_cut_answers;
        self.num_lost_targets += other.num_lost_targets;
        self.num_left_out += other.num_left_out;
        for (reason, found) in other.left_out {
            self.left_out.entry(reason).or_default().merge(found);
        }
        self.cut_turns.merge(other.cut_turns);
        self.rendered.merge(other.rendered);
        self.own_tokens.merge(other.own_tokens);
        self.ends.merge(other.ends);
        self.missing.merge(other.missing);
        self.columns |= other.columns;
    }

    /// The first record that was left out for the commonest reason, with that reason.
    pub(super) fn commonest_left_out(&self) -> String {
        let all = self.left_out.iter();
        let most = all.max_by_key(|(_, found)| found.count);
        most.map(|(reason, found)| format!("{}: {reason}", found.first()))
            .unwrap_or_default()
    }

    /// Warns of everything that is not learnt as it stands in the data.
    pub(super) fn warn(&self, max_length: usize) {
        let all = self.num_records;
        if self.num_truncated > 0 {
            let count = self.num_truncated;
            warn!(
                "{count} of {all} records are longer than --max-length {max_length} and lost the left of their prompt"
            );
        }
        if self.num_cut_answers > 0 {
            let count = self.num_cut_answers;
            warn!(
                "{count} answers are longer than --max-length {max_length} with their prompts and lost their end"
            );
        }
        for (reason, found) in self.left_out.iter().take(MAX_REASONS) {
            let (count, first) = (found.count, found.first());
            warn!(
                "{count} of {all} records teach nothing and are left out; the first is {first}: {reason}"
            );
        }
        if self.left_out.len() > MAX_REASONS {
            let all = self.num_left_out;
            warn!("{all} records are left out in all, also for other reasons");
        }
        if self.num_lost_targets > 0 {
            let count = self.num_lost_targets;
            warn!("{count} tokens of answers are not learnt because they do not fit");
        }
        let Found { count, .. } = self.cut_turns;
        if count > 0 {
            let first = self.cut_turns.first();
            warn!(
                "{count} of {all} records lose turns before the first question or after the last answer; the first is {first}"
            );
        }
        let Found { count, .. } = self.rendered;
        if count > 0 {
            let first = self.rendered.first();
            warn!(
                "{count} of {all} prompts have the chat template's tokens already and get no second template; the first is {first}"
            );
        }
        let Found { count, .. } = self.own_tokens;
        if count > 0 {
            let first = self.own_tokens.first();
            warn!(
                "{count} of {all} records have the chat template's own tokens, or others that end a text, in their text; the first is {first}"
            );
        }
        let Found { count, .. } = self.ends;
        if count > 0 {
            let first = self.ends.first();
            warn!(
                "{count} of {all} records have answers that end with a token that ends a text; the chat template's own end is learnt in its place; the first is {first}"
            );
        }
        let Found { count, .. } = self.missing;
        if count > 0 {
            let first = self.missing.first();
            warn!(
                "{count} of {all} records have a cell such as nan, None, NULL or N/A, which is read as that text: leave the cell empty where a value is missing; the first is {first}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::example::Place;
    use super::*;

    #[test]
    fn the_commonest_reason_comes_with_its_first_record() {
        let mut report = DataReport::default();
        for (line, reason) in [
            (1, "empty"),
            (2, "too long"),
            (4, "too long"),
            (5, "by its mark"),
        ] {
            let source = Source {
                file: Path::new("t.jsonl").into(),
                place: Place::Line(line),
            };
            report.leave_out(&source, reason.to_owned());
        }
        assert_eq!(report.commonest_left_out(), "t.jsonl:2: too long");
    }
}
