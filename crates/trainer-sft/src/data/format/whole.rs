//! Answers that are whole conversations, beside a prompt that is a part of them.

use serde_json::{Map, Value};

use super::speaker::Speaker;
use super::turns::{is_of_assistant, text_of};

/// A list of turns that has its prompt in itself.
pub(super) struct Whole {
    /// The turns up to the last one of the prompt.
    pub(super) context: Vec<Value>,
    /// Where the turns after the prompt begin.
    pub(super) start: usize,
}

/// Why a conversation that has a question of its own is no answer to `prompt`, a text or turns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// The prompt is not in it.
    OtherQuestion,
    /// It ends with the prompt.
    NoAnswer,
}

impl Whole {
    /// Finds `prompt` in `turns`; `None` where they are only the answer to it.
    ///
    /// # Errors
    /// Turns that begin with another question, or end with this one.
    pub(super) fn find(prompt: &Value, turns: &[Value]) -> Result<Option<Self>, Unfit> {
        if !turns.first().is_some_and(is_asked) {
            return Ok(None);
        }
        match prompt {
            Value::String(text) => {
                let is_prompt = |turn: &Value| {
                    !is_of_assistant(turn)
                        && text_of(turn).is_some_and(|own| own.trim() == text.trim())
                };
                let at = turns
                    .iter()
                    .position(is_prompt)
                    .ok_or(Unfit::OtherQuestion)?;
                Self::up_to(turns, at + 1).map(Some)
            }
            Value::Array(prompt) => Self::after_turns(prompt, turns),
            _ => Ok(None),
        }
    }

    /// The turns of the prompt begin `turns`. One of the two may lack the system's.
    fn after_turns(prompt: &[Value], turns: &[Value]) -> Result<Option<Self>, Unfit> {
        let [of_prompt, of_turns] =
            [prompt, turns].map(|turns| turns.iter().take_while(|turn| is_of_system(turn)).count());
        let asked = &prompt[of_prompt..];
        let is_inside = !asked.is_empty()
            && turns.len() - of_turns >= asked.len()
            && are_same(asked, &turns[of_turns..of_turns + asked.len()]);
        let has_other_system =
            of_prompt > 0 && of_turns > 0 && !are_same(&prompt[..of_prompt], &turns[..of_turns]);
        if is_inside && !has_other_system {
            let mut whole = Self::up_to(turns, of_turns + asked.len())?;
            if of_turns == 0 {
                whole.context = prompt.to_vec();
            }
            return Ok(Some(whole));
        }
        // TRL has turns of both sides after a prompt that ends with an answer, or is only what the system says.
        match asked.last().is_some_and(is_asked) {
            true => Err(Unfit::OtherQuestion),
            false => Ok(None),
        }
    }

    fn up_to(turns: &[Value], start: usize) -> Result<Self, Unfit> {
        match start < turns.len() {
            true => Ok(Self {
                context: turns[..start].to_vec(),
                start,
            }),
            false => Err(Unfit::NoAnswer),
        }
    }

    /// All turns, and where those after the prompt begin.
    pub(super) fn joined(self, turns: &[Value]) -> (Vec<Value>, usize) {
        let start = self.context.len();
        ([&self.context, &turns[self.start..]].concat(), start)
    }
}

/// Whether two lists of turns say the same, but for white space around texts.
pub(super) fn are_same(one: &[Value], other: &[Value]) -> bool {
    let mut pairs = one.iter().zip(other);
    one.len() == other.len() && pairs.all(|(one, other)| is_same(one, other))
}

/// Whether two turns say the same, but for white space around their texts.
pub(super) fn is_same(one: &Value, other: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (one, other) else {
        return one == other;
    };
    let texts = (text_of(one).map(str::trim), text_of(other).map(str::trim));
    one == other
        || (Speaker::of(one) == Speaker::of(other)
            && Speaker::of(one).is_some()
            && texts.0.is_some()
            && texts.0 == texts.1
            && rest(a).eq(rest(b)))
}

/// What a turn has besides who says it and the text.
fn rest(turn: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    let is_said = |key: &str| ["role", "from", "content", "value"].contains(&key);
    turn.iter()
        .filter(move |(key, value)| !is_said(key) && !value.is_null())
}

/// Whether a turn that has not been checked is the user's or the system's.
pub(super) fn is_asked(turn: &Value) -> bool {
    matches!(Speaker::of(turn), Some(Speaker::User | Speaker::System))
}

fn is_of_system(turn: &Value) -> bool {
    Speaker::of(turn) == Some(Speaker::System)
}
