//! Lists of turns of all formats.

use serde_json::Value;

use super::super::error::DataError;
use super::reader::Reader;
use super::speaker::Speaker;
use super::turn::{Turn, reasoning_of};
use super::{TurnKind, role_of};

/// The text of a turn that has not been checked.
pub(super) fn text_of(turn: &Value) -> Option<&str> {
    ["content", "value"]
        .iter()
        .find_map(|key| turn.get(*key)?.as_str())
}

impl Reader<'_> {
    /// The turns of an OpenAI or ShareGPT list. Those before `start` are none of the answer.
    ///
    /// Calls that stand in turns of their own belong to the turn of the assistant before them: the model says them in one.
    pub(super) fn turns(
        &self,
        place: &str,
        items: &[Value],
        start: usize,
    ) -> Result<Vec<Turn>, DataError> {
        let mut turns: Vec<Turn> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let mut turn = self.turn(&format!("{place}[{index}]"), item)?;
            if index < start {
                turn.kind = turn.kind.before();
            }
            match turns.last_mut() {
                Some(last) if is_call(item) && can_join(last, &turn) => join(last, turn),
                _ => turns.push(turn),
            }
        }
        Ok(turns)
    }

    /// Pairs of `human` and `assistant`, as ms-swift has them, or of `input` and `output`, as in Capybara.
    pub(super) fn turns_of_pairs(&self, key: &str) -> Result<Vec<Turn>, DataError> {
        let mut turns = Vec::new();
        for (index, pair) in self
            .list(key, "pairs of `human` and `assistant`")?
            .iter()
            .enumerate()
        {
            let [asked, answered] = match pair.get("input").is_some() {
                true => ["input", "output"],
                false => ["human", "assistant"],
            };
            for (name, role) in [(asked, "user"), (answered, "assistant")] {
                let text = match pair.get(name) {
                    Some(Value::String(text)) => text,
                    Some(Value::Null) if role == "assistant" => "",
                    other => {
                        return Err(self.error(format!("{key}[{index}].{name}"), "text", other));
                    }
                };
                turns.push(Turn::plain(role, text));
            }
        }
        Ok(turns)
    }

    /// `history`: pairs of question and answer.
    pub(super) fn turns_of_history(&self) -> Result<Vec<Turn>, DataError> {
        let mut turns = Vec::new();
        let history = match self.value("history") {
            None => return Ok(turns),
            // As tables have nothing.
            Some(Value::String(text)) if ["", "[]", "null"].contains(&text.trim()) => {
                return Ok(turns);
            }
            Some(Value::Array(items)) if items.is_empty() => return Ok(turns),
            Some(_) => self.list("history", "pairs of texts")?,
        };
        for (index, pair) in history.iter().enumerate() {
            let texts = pair
                .as_array()
                .map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
            let Some([Some(question), Some(answer)]) = texts.as_deref() else {
                return Err(self.error(format!("history[{index}]"), "a pair of texts", Some(pair)));
            };
            turns.push(Turn::plain("user", question));
            turns.push(Turn::plain("assistant", answer));
        }
        Ok(turns)
    }
}

/// Whether a turn that is only calls can be said together with the turn before it: both are learnt, or none is.
fn can_join(last: &Turn, turn: &Turn) -> bool {
    let mut fields = turn.message.as_object().into_iter().flatten();
    let is_only_calls = fields.all(|(key, value)| match key.as_str() {
        "role" | "tool_calls" => true,
        "content" => value == "",
        _ => false,
    });
    let is_same =
        last.kind == turn.kind || (last.kind == TurnKind::Earlier && says_nothing(&last.message));
    role_of(&last.message) == "assistant" && is_only_calls && is_same
}

/// Whether a message has neither text nor calls nor reasoning.
pub(super) fn says_nothing(message: &Value) -> bool {
    let text = message.get("content").and_then(Value::as_str);
    let reasoning = message.as_object().and_then(reasoning_of);
    text.is_none_or(|text| text.trim().is_empty())
        && reasoning.is_none()
        && message.get("tool_calls").is_none()
}

/// Adds the calls of a turn to those of the one before it.
fn join(last: &mut Turn, turn: Turn) {
    let Some(Value::Array(calls)) = turn.message.get("tool_calls").cloned() else {
        return;
    };
    match last.message.get_mut("tool_calls") {
        Some(Value::Array(earlier)) => earlier.extend(calls),
        _ => last.message["tool_calls"] = calls.into(),
    }
    last.kind = turn.kind;
}

/// Turns with earlier ones before them, but behind the system's.
pub(super) fn after_system<T>(
    mut turns: Vec<T>,
    earlier: impl IntoIterator<Item = T>,
    message: impl Fn(&T) -> &Value,
) -> Vec<T> {
    let is_of_system = |turn: &&T| Speaker::of(message(turn)) == Some(Speaker::System);
    let at = turns.iter().take_while(is_of_system).count();
    turns.splice(at..at, earlier);
    turns
}

/// Whether a turn that has not been checked is the assistant's.
pub(super) fn is_of_assistant(turn: &Value) -> bool {
    Speaker::of(turn).is_some_and(Speaker::is_assistant)
}

/// Whether an item of a list is no turn, but a question with its answer.
pub(super) fn is_pair(item: &Value) -> bool {
    let has = |key: &str| item.get(key).is_some();
    (has("human") || has("input") && has("output")) && !has("from") && !has("role")
}

/// Whether a turn that has not been checked is a call.
pub(super) fn is_call(turn: &Value) -> bool {
    Speaker::of(turn) == Some(Speaker::AssistantCall)
}

/// Where the last answer of a list begins: calls belong to the turn of the assistant before them. `None` where the list does
/// not end with an answer.
pub(super) fn start_of_answer(turns: &[Value]) -> Option<usize> {
    if !turns.last().is_some_and(is_of_assistant) {
        return None;
    }
    let calls = turns.iter().rev().take_while(|turn| is_call(turn)).count();
    let start = turns.len() - calls;
    let follows_answer = start > 0 && is_of_assistant(&turns[start - 1]);
    Some(start - usize::from(follows_answer))
}
