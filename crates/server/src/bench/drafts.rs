//! What became of a server's drafts during a run, by the counters of its `/metrics`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::client::Client;
use super::table::Table;

/// What the names of the counters begin with.
const PREFIX: &str = "vllm:spec_decode_num_";

/// Places that a draft may have: a server may say anything.
const MAX_PLACES: usize = 1024;

/// Counters of speculative decoding, all engines together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DraftCounts {
    drafts: f64,
    tokens: f64,
    accepted: f64,
    /// Accepted tokens by their place in the draft.
    by_place: BTreeMap<usize, f64>,
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
                    let place = label(rest, "position").and_then(|it| it.parse::<usize>().ok());
                    if let Some(place) = place.filter(|place| *place < MAX_PLACES) {
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
    pub(super) fn since(self, before: &Self) -> Option<Self> {
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
        (counts.drafts > 0.0 && counts.tokens > 0.0).then_some(counts)
    }

    /// In percent.
    fn acceptance_rate(&self) -> f64 {
        self.accepted / self.tokens * 100.0
    }

    /// Tokens of a step, the one after the draft among them.
    fn acceptance_length(&self) -> f64 {
        1.0 + self.accepted / self.drafts
    }

    /// Each place of a draft, and the share of drafts whose token there was accepted.
    fn rates(&self) -> impl Iterator<Item = (usize, f64)> {
        let num_places = self.by_place.last_key_value();
        let num_places = num_places.map_or(0, |(last, _)| last + 1);
        (0..num_places).map(move |place| {
            let accepted = self.by_place.get(&place).copied().unwrap_or_default();
            (place, accepted / self.drafts)
        })
    }

    /// vLLM's keys.
    pub(super) fn add_to(&self, result: &mut Map<String, Value>) {
        let rates = self.rates().map(|(_, rate)| rate);
        for (key, value) in [
            ("acceptance_rate", self.acceptance_rate().into()),
            ("acceptance_length", self.acceptance_length().into()),
            ("num_drafts", (self.drafts as u64).into()),
            ("draft_tokens", (self.tokens as u64).into()),
            ("accepted_tokens", (self.accepted as u64).into()),
            ("per_position_acceptance_rates", rates.collect::<Value>()),
        ] {
            result.insert(format!("spec_decode_{key}"), value);
        }
    }

    /// vLLM's lines.
    pub(super) fn show(&self, table: &mut Table) {
        table.heading("Speculative Decoding", '-');
        table.number("Acceptance rate (%):", self.acceptance_rate());
        table.number("Acceptance length:", self.acceptance_length());
        table.count("Drafts:", self.drafts as usize);
        table.count("Draft tokens:", self.tokens as usize);
        table.count("Accepted tokens:", self.accepted as usize);
        if !self.by_place.is_empty() {
            table.line("Per-position acceptance (%):");
        }
        for (place, rate) in self.rates() {
            table.number(&format!("  Position {place}:"), rate * 100.0);
        }
    }
}

/// The value of a label.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of two engines after so many drafts of three tokens for each. Half of the first engine's have a right first token; all
    /// of the second's have one, and half of them a right third token, too.
    fn page(drafts: u32) -> String {
        let tokens = 3 * drafts;
        let (half, more) = (drafts / 2, drafts + drafts / 2);
        format!(
            "# TYPE vllm:spec_decode_num_drafts counter\n\
             vllm:spec_decode_num_drafts_total{{engine=\"0\",model_name=\"a }} b\"}} {drafts}\n\
             vllm:spec_decode_num_drafts_total{{engine=\"1\",model_name=\"a }} b\"}} {drafts}\n\
             vllm:spec_decode_num_drafts_created{{engine=\"0\"}} 1.7e9\n\
             vllm:spec_decode_num_draft_tokens_total{{engine=\"0\"}} {tokens}\n\
             vllm:spec_decode_num_draft_tokens_total{{engine=\"1\"}} {tokens}\n\
             vllm:spec_decode_num_accepted_tokens_total{{engine=\"0\"}} {half}\n\
             vllm:spec_decode_num_accepted_tokens_total{{engine=\"1\"}} {more}\n\
             vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine=\"0\",position=\"0\"}} {half}\n\
             vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine=\"1\",position=\"0\"}} {drafts}\n\
             vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine=\"1\",position=\"2\"}} {half}\n\
             vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine=\"1\",position=\"99999\"}} {half}\n\
             vllm:num_requests_running{{engine=\"0\"}} 1\n"
        )
    }

    #[test]
    fn drafts_are_counted_from_the_beginning_of_the_run() {
        let counts = |drafts| DraftCounts::read(&page(drafts)).unwrap();
        let drafts = counts(30).since(&counts(10)).unwrap();
        let mut result = Map::new();
        drafts.add_to(&mut result);
        let expected = serde_json::json!({
            "spec_decode_acceptance_rate": 40.0 / 120.0 * 100.0,
            "spec_decode_acceptance_length": 2.0,
            "spec_decode_num_drafts": 40,
            "spec_decode_draft_tokens": 120,
            "spec_decode_accepted_tokens": 40,
            "spec_decode_per_position_acceptance_rates": [0.75, 0.0, 0.25],
        });
        assert_eq!(Value::Object(result), expected);
        let mut table = Table::default();
        drafts.show(&mut table);
        for (place, percent) in [(0, "75.00"), (1, "0.00"), (2, "25.00")] {
            let name = format!("  Position {place}:");
            let line = format!("{name:<40} {percent}");
            let text = table.text();
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(counts(10).since(&counts(10)), None);
        assert_eq!(DraftCounts::read("vllm:num_requests_running 1\n"), None);
    }
}
