//! `--reward-url`: a program that gives rewards over HTTP.
//!
//! It gets `{"prompts": […], "completions": […], "columns": {"name": […]}}`, with one value for each answer in every list, and
//! gives `{"rewards": […]}`: a number for each answer (true is 1, false is 0), or null for one that it says nothing about.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use ureq::Agent;
use ureq::http::StatusCode;

use super::answer::{Answer, RewardError};
use crate::config::ConfigError;
use crate::data::format::describe;

/// Bytes of an answer.
const MAX_BYTES: u64 = 64 << 20;
/// Size of a reward: the squares of larger ones, and their sums, are soon no numbers.
const MAX_REWARD: f64 = 1e9;
/// How often a run that waits looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Characters of a wrong answer that a message shows.
const SHOWN: usize = 200;

/// A program that gives rewards.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: String,
    seconds: f64,
    agent: Agent,
}

impl Endpoint {
    /// The program at `url`, which may take `seconds` to answer.
    ///
    /// # Errors
    /// An address that is none of this kind.
    pub(super) fn new(url: &str, seconds: f64) -> Result<Self, ConfigError> {
        let is_address = url.strip_prefix("http://").is_some_and(|rest| {
            !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace)
        });
        if !is_address {
            return Err(ConfigError::Value {
                flag: "reward-url",
                expected: "an address such as http://127.0.0.1:8080/rewards (without TLS)".into(),
                found: format!("`{url}`"),
            });
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(seconds)))
            .http_status_as_error(false)
            // A question is not one for another address.
            .max_redirects(0)
            .build();
        Ok(Self {
            url: url.to_owned(),
            seconds,
            agent: agent.into(),
        })
    }

    /// The reward of each answer. When `stop` becomes true, nobody waits any longer.
    pub(super) fn of(
        &self,
        answers: &[Answer<'_>],
        stop: Option<&AtomicBool>,
    ) -> Result<Vec<f64>, RewardError> {
        let failed = |reason: String| RewardError {
            url: self.url.clone(),
            reason,
        };
        let (sender, receiver) = mpsc::channel();
        let (agent, url, question) = (self.agent.clone(), self.url.clone(), question(answers));
        std::thread::spawn(move || sender.send(ask(&agent, &url, &question)));
        let answer = loop {
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok(answer) => break answer.map_err(|error| failed(self.reason(&error)))?,
                Err(RecvTimeoutError::Timeout) => {
                    if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                        return Err(failed(
                            "expected an answer, found the end of the run".into(),
                        ));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed("expected an answer, found none".into()));
                }
            }
        };
        let (status, text) = answer;
        if !status.is_success() {
            return Err(failed(format!(
                "expected status 200, found {status}: {}",
                shown(&text)
            )));
        }
        rewards(&text, answers.len()).map_err(failed)
    }

    fn reason(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::Timeout(_) => format!(
                "expected an answer within {} seconds (--reward-timeout), found none",
                self.seconds
            ),
            error => format!("expected an answer, found: {error}"),
        }
    }
}

/// Status and text of the answer to a question.
fn ask(agent: &Agent, url: &str, question: &Value) -> Result<(StatusCode, String), ureq::Error> {
    let mut response = agent.post(url).send_json(question)?;
    let body = response.body_mut().with_config().limit(MAX_BYTES);
    let text = body.read_to_string()?;
    Ok((response.status(), text))
}

fn question(answers: &[Answer<'_>]) -> Value {
    let mut columns: Map<String, Value> = Map::new();
    let names = answers.iter().flat_map(|answer| answer.columns.keys());
    for name in names {
        if columns.contains_key(name) {
            continue;
        }
        let values = answers.iter();
        let values = values.map(|answer| answer.columns.get(name).cloned().unwrap_or_default());
        columns.insert(name.clone(), Value::Array(values.collect()));
    }
    json!({
        "prompts": answers.iter().map(|answer| answer.prompt).collect::<Vec<_>>(),
        "completions": answers.iter().map(|answer| answer.completion).collect::<Vec<_>>(),
        "columns": columns,
    })
}

/// The rewards in an answer, one for each of `num` completions.
fn rewards(text: &str, num: usize) -> Result<Vec<f64>, String> {
    const EXPECTED: &str = "{\"rewards\": […]} with a number from -1e9 to 1e9, true, false or null for each completion";
    let wrong = |found: String| Err(format!("expected {EXPECTED}, found {found}"));
    let Ok(answer) = serde_json::from_str::<Value>(text) else {
        return wrong(format!("no JSON: {}", shown(text)));
    };
    let Some(Value::Array(rewards)) = answer.get("rewards") else {
        return wrong(shown(text));
    };
    if rewards.len() != num {
        return wrong(format!("{} rewards for {num} completions", rewards.len()));
    }
    let mut values = Vec::with_capacity(num);
    for (index, reward) in rewards.iter().enumerate() {
        values.push(match reward {
            Value::Null => f64::NAN,
            Value::Bool(is) => f64::from(u8::from(*is)),
            reward => match reward.as_f64() {
                Some(value) if value.abs() <= MAX_REWARD => value,
                _ => return wrong(format!("rewards[{index}] = {}", describe(Some(reward)))),
            },
        });
    }
    Ok(values)
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_another_kind_are_refused() {
        for url in [
            "https://a.b/c",
            "a.b",
            "http://",
            "http:///x",
            "http://a b",
            "",
        ] {
            let refused = Endpoint::new(url, 1.0).unwrap_err().to_string();
            assert!(
                refused.starts_with("--reward-url: expected an address"),
                "{refused}"
            );
        }
        assert!(Endpoint::new("http://127.0.0.1:8080/rewards", 1.0).is_ok());
    }

    #[test]
    fn rewards_are_numbers_or_nothing() {
        let found = rewards("{\"rewards\": [1, 0.5, null, true], \"more\": 1}", 4).unwrap();
        assert_eq!((found[0], found[1], found[3]), (1.0, 0.5, 1.0));
        assert!(found[2].is_nan());
        for (text, expected) in [
            ("{\"rewards\": [1]}", "found 1 rewards for 2 completions"),
            ("{\"rewards\": [1, \"a\"]}", "found rewards[1] = \"a\""),
            (
                "{\"rewards\": [1, -1e308]}",
                "found rewards[1] = the number -1e+308",
            ),
            ("{\"reward\": [1, 2]}", "found \"{"),
            ("oh", "found no JSON: \"oh\""),
        ] {
            let refused = rewards(text, 2).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn a_question_has_each_column_for_each_answer() {
        let records = [json!({"answer": "4"}), json!({"level": 2})];
        let answers = records.iter().map(|record| Answer {
            prompt: &Value::Null,
            completion: "x",
            num_tokens: 1,
            columns: record.as_object().unwrap(),
        });
        let question = question(&answers.collect::<Vec<_>>());
        assert_eq!(question["columns"]["answer"], json!(["4", null]));
        assert_eq!(question["columns"]["level"], json!([null, 2]));
        assert_eq!(question["completions"], json!(["x", "x"]));
    }
}
