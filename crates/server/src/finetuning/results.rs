//! The table of a job's metrics, a file that clients may download.

use std::fmt::Write as _;
use std::io;

use serde_json::Value;

use super::FineTuning;
use super::events::Event;
use super::files::FileObject;

/// Columns, by the names of events, and OpenAI's names of them.
const COLUMNS: [(&str, &str); 5] = [
    ("step", "step"),
    ("train_loss", "train_loss"),
    ("train_mean_token_accuracy", "train_accuracy"),
    ("full_valid_loss", "valid_loss"),
    (
        "full_valid_mean_token_accuracy",
        "valid_mean_token_accuracy",
    ),
];

impl FineTuning {
    /// Writes the table of a job.
    pub(super) fn write_results(&self, id: &str) -> io::Result<FileObject> {
        let table = match self.state().entry(id) {
            Some(entry) => table(&entry.events.all()),
            None => String::new(),
        };
        self.add_result(id, table.as_bytes())
    }
}

fn table(events: &[Event]) -> String {
    let header = COLUMNS.map(|(_, name)| name).join(",");
    let mut table = header + "\n";
    let metrics: Vec<_> = events
        .iter()
        .filter(|event| event.kind == "metrics")
        .collect();
    // An evaluation is told of before the step that it follows.
    for step in metrics.chunk_by(|a, b| a.data.get("step") == b.data.get("step")) {
        let cell = |name: &str| {
            let value = step.iter().find_map(|event| event.data.get(name));
            value.map_or_else(String::new, Value::to_string)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{}", COLUMNS.map(|(name, _)| cell(name)).join(","));
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_is_a_line() {
        let events = [
            Event::metrics("a".into(), json!({ "step": 1, "train_loss": 2.5 })),
            Event::with_data("b", json!({ "step": 1 })),
            Event::metrics("c".into(), json!({ "step": 2, "full_valid_loss": 1.5 })),
            Event::metrics(
                "d".into(),
                json!({ "step": 2, "train_loss": 2.0, "train_mean_token_accuracy": 0.5 }),
            ),
        ];
        let expected = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,,,\n2,2.0,0.5,1.5,\n";
        assert_eq!(table(&events), expected);
    }
}
