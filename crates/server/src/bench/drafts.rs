//! What became of a server's drafts during a run, by the counters of its `/metrics`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::client::Client;
use super::table::Table;

/// What the names of the counters begin with.
const PREFIX: &str = "vllm:spec_decode_num_";

/// Counters of speculative decoding, all engines together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DraftCounts {
    drafts: f64,
    tokens: f64,
    accepted: f64,
    /// Accepted tokens by their place in the draft.
    by_place: BTreeMap<usize, f64>,
}

/// What became of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drafts {
    counts: DraftCounts,
}

impl DraftCounts {
    /// Those of a server; `None` of one that has no drafts, or no metrics.
    pub(super) async fn of(client: &Client) -> Option<Self> {
        Self::read(&client.text("/metrics").await.ok()?)
    }

    fn read(page: &str) -> Option<Self> {
        let mut counts = None;
        for line in page.lines() {
            let Some(line) = line.strip_prefix(PREFIX) else {
                continue;
            };
            let name_len = line.find(['{', ' ']).unwrap_or(line.len());
            let (name, rest) = line.split_at(name_len);
            // A time may follow the value.
            let values = rest.rsplit_once('}').map_or(rest, |(_, values)| values);
            let value = values.split_whitespace().next();
            let Some(value) = value.and_then(|value| value.parse::<f64>().ok()) else {
                continue;
            };
            let counts: &mut Self = counts.get_or_insert_default();
            match name {
                "drafts_total" => counts.drafts += value,
                "draft_tokens_total" => counts.tokens += value,
                "accepted_tokens_total" => counts.accepted += value,
                "accepted_tokens_per_pos_total" => {
                    if let Some(place) = label(rest, "position").and_then(|it| it.parse().ok()) {
                        *counts.by_place.entry(place).or_default() += value;
                    }
                }
                // When a counter began.
                _ => {}
            }
        }
        counts
    }

    /// What came since `before`; `None` if there was no draft.
    pub(super) fn since(self, before: &Self) -> Option<Drafts> {
        let place = |(place, count): (&usize, &f64)| {
            let begun = before.by_place.get(place).copied().unwrap_or_default();
            (*place, count - begun)
        };
        let counts = Self {
            drafts: self.drafts - before.drafts,
            tokens: self.tokens - before.tokens,
            accepted: self.accepted - before.accepted,
            by_place: self.by_place.iter().map(place).collect(),
        };
        (counts.drafts > 0.0 && counts.tokens > 0.0).then_some(Drafts { counts })
    }
}

/// The value of a label.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

impl Drafts {
    /// In percent.
    fn acceptance_rate(&self) -> f64 {
        self.counts.accepted / self.counts.tokens * 100.0
    }

    /// Tokens of a step, the one after the draft among them.
    fn acceptance_length(&self) -> f64 {
        1.0 + self.counts.accepted / self.counts.drafts
    }

    /// How many drafts had a right token at each place.
    fn by_place(&self) -> impl Iterator<Item = f64> {
        let counts = self.counts.by_place.values();
        counts.map(|count| count / self.counts.drafts)
    }

    /// vLLM's keys.
    pub(super) fn add_to(&self, result: &mut Map<String, Value>) {
        let counts = &self.counts;
        for (key, value) in [
            ("acceptance_rate", self.acceptance_rate().into()),
            ("acceptance_length", self.acceptance_length().into()),
            ("num_drafts", (counts.drafts as u64).into()),
            ("draft_tokens", (counts.tokens as u64).into()),
            ("accepted_tokens", (counts.accepted as u64).into()),
            (
                "per_position_acceptance_rates",
                self.by_place().collect::<Value>(),
            ),
        ] {
            result.insert(format!("spec_decode_{key}"), value);
        }
    }

    /// vLLM's lines.
    pub(super) fn show(&self, table: &mut Table) {
        let counts = &self.counts;
        table.heading("Speculative Decoding", '-');
        table.number("Acceptance rate (%):", self.acceptance_rate());
        table.number("Acceptance length:", self.acceptance_length());
        table.count("Drafts:", counts.drafts as usize);
        table.count("Draft tokens:", counts.tokens as usize);
        table.count("Accepted tokens:", counts.accepted as usize);
        if !counts.by_place.is_empty() {
            table.line("Per-position acceptance (%):");
        }
        for (place, rate) in self.by_place().enumerate() {
            table.number(&format!("  Position {place}:"), rate * 100.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page after so many drafts of three tokens, half of whose first two are right.
    fn page(drafts: u32) -> String {
        let half = f64::from(drafts) / 2.0;
        format!(
            "# TYPE vllm:spec_decode_num_drafts counter\n\
             vllm:spec_decode_num_drafts_total{{engine=\"0\",model_name=\"a }} b\"}} {drafts}\n\
             vllm:spec_decode_num_drafts_created{{engine=\"0\"}} 1.7e9\n\
             vllm:spec_decode_num_draft_tokens_total{{engine=\"0\"}} {}\n\
             vllm:spec_decode_num_accepted_tokens_total{{engine=\"0\"}} {}\n\
             vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine=\"0\",position=\"0\"}} {half}\n\
             vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine=\"0\",position=\"1\"}} {half}\n\
             vllm:num_requests_running{{engine=\"0\"}} 1\n",
            3 * drafts,
            2.0 * half
        )
    }

    #[test]
    fn drafts_are_counted_from_the_beginning_of_the_run() {
        let counts = |drafts| DraftCounts::read(&page(drafts)).unwrap();
        let drafts = counts(30).since(&counts(10)).unwrap();
        let mut result = Map::new();
        drafts.add_to(&mut result);
        let expected = serde_json::json!({
            "spec_decode_acceptance_rate": 20.0 / 60.0 * 100.0,
            "spec_decode_acceptance_length": 2.0,
            "spec_decode_num_drafts": 20,
            "spec_decode_draft_tokens": 60,
            "spec_decode_accepted_tokens": 20,
            "spec_decode_per_position_acceptance_rates": [0.5, 0.5],
        });
        assert_eq!(Value::Object(result), expected);
        let mut table = Table::default();
        drafts.show(&mut table);
        assert!(table.text().contains("  Position 1:"), "{}", table.text());
        assert_eq!(counts(10).since(&counts(10)), None);
        assert_eq!(DraftCounts::read("vllm:num_requests_running 1\n"), None);
    }
}
