//! Two answers that are compared, and where the prompt of both ends.

use serde_json::Value;

use super::super::error::DataError;
use super::preference::Answer;
use super::reader::{Reader, is_filled};
use super::turn::plain;
use super::turns::{is_call, is_of_assistant};
use super::whole::{Unfit, Whole, are_same, is_same};
use super::{Content, Format};

/// Turns, and where the answer begins among them.
type Conversation = (Vec<Value>, usize);

impl Reader<'_> {
    /// `chosen` and `rejected`, with a question or with the same beginning; `own` has the fields by the record's own names.
    pub(super) fn pair(&self, own: &Reader<'_>) -> Result<Vec<Answer>, DataError> {
        let is_blank = |value: &&Value| value.as_str().is_some_and(|text| text.trim().is_empty());
        let prompt = self.value("prompt").filter(|prompt| !is_blank(prompt));
        let [chosen, rejected] = ["chosen", "rejected"].map(|key| self.side(key));
        let (chosen, rejected) = (chosen?, rejected?);
        let (contents, is_plain) = match (&chosen, &rejected) {
            (Value::Array(one), Value::Array(other)) if begin_alike(one, other, prompt) => {
                let common = common_turns(one, other);
                self.check_shared(own, &one[..common])?;
                let other = [&one[..common], &other[common..]].concat();
                let turns = |key, items: &[Value]| self.turns_after(key, items, common);
                ([turns("chosen", one), turns("rejected", &other)], false)
            }
            (Value::Array(one), Value::Array(other))
                if common_turns(one, other) > 0
                    && !is_of_assistant(&one[0])
                    && is_filled(own.fields.get("history")) =>
            {
                let expected = "none beside answers that are whole conversations";
                return Err(self.error("history", expected, own.value("history")));
            }
            (Value::String(one), Value::String(other)) if prompt.is_none() => {
                own.refuse_beside_texts()?;
                let end = common_text(one, other);
                let texts = |key, text: &str| self.texts(key, text, end);
                ([texts("chosen", one), texts("rejected", other)], true)
            }
            (Value::Array(one), Value::Array(_)) if prompt.is_none() => {
                let expected = "the turn that `rejected` begins with, since there is no `prompt`";
                return Err(self.error("chosen[0]", expected, one.first()));
            }
            _ => match self.whole_sides(own, [&chosen, &rejected])? {
                Some([one, other]) => {
                    let turns =
                        |key, (turns, start): Conversation| self.turns_after(key, &turns, start);
                    ([turns("chosen", one), turns("rejected", other)], false)
                }
                None => {
                    self.refuse_second(own)?;
                    (
                        ["chosen", "rejected"].map(|key| self.own_prompt(key)),
                        false,
                    )
                }
            },
        };
        let [chosen, rejected] = contents;
        let (chosen, rejected) = (chosen?, rejected?);
        if chosen == rejected {
            let [chosen, rejected] = ["chosen", "rejected"].map(|key| self.own_name(key));
            return Err(self.teaches_nothing(format!("`{chosen}` and `{rejected}` say the same")));
        }
        let answer = |content, is_wanted| Answer {
            record: self.record(content, Format::Preference),
            is_wanted,
            is_plain,
        };
        Ok(vec![answer(chosen, true), answer(rejected, false)])
    }

    /// The turns of both sides, and where their answers begin, if one side at least is a whole conversation with the prompt in it.
    fn whole_sides(
        &self,
        own: &Reader<'_>,
        sides: [&Value; 2],
    ) -> Result<Option<[Conversation; 2]>, DataError> {
        let Some(prompt) = self.value("prompt") else {
            return Ok(None);
        };
        let found = sides.map(|side| match side {
            Value::Array(turns) => Whole::find(prompt, turns),
            _ => Ok(None),
        });
        for (key, found) in ["chosen", "rejected"].iter().zip(&found) {
            if let Err(Unfit::NoAnswer) = found {
                let own = self.own_name(key);
                return Err(self.teaches_nothing(format!("`{own}` has no answer of the assistant")));
            }
        }
        let [one, other] = found;
        let (Ok(one), Ok(other)) = (one, other) else {
            return Err(self.error("prompt", OF_BOTH, Some(prompt)));
        };
        let context = match (&one, &other) {
            (Some(one), Some(other)) if !are_same(&one.context, &other.context) => {
                let expected = format!(
                    "the turns that `{}` has before the answer",
                    self.own_name("chosen")
                );
                return Err(self.error("rejected", &expected, self.value("rejected")));
            }
            (Some(whole), _) | (None, Some(whole)) => whole.context.clone(),
            (None, None) => return Ok(None),
        };
        self.check_shared(own, &context)?;
        let after = |side: &Value, whole: Option<Whole>| match side {
            Value::Array(turns) => turns[whole.map_or(0, |whole| whole.start)..].to_vec(),
            text => vec![plain("assistant", text.as_str().unwrap_or_default())],
        };
        let joined = |answer: Vec<Value>| ([&context[..], &answer].concat(), context.len());
        Ok(Some([
            joined(after(sides[0], one)),
            joined(after(sides[1], other)),
        ]))
    }

    /// Refuses a text of the question that the turns with which both answers begin do not have.
    fn check_shared(&self, own: &Reader<'_>, shared: &[Value]) -> Result<(), DataError> {
        let messages = shared.iter().enumerate();
        let messages =
            messages.map(|(at, turn)| Ok(self.turn(&format!("chosen[{at}]"), turn)?.message));
        let messages = messages.collect::<Result<Vec<Value>, DataError>>()?;
        let texts = messages
            .iter()
            .filter_map(|message| message.get("content")?.as_str());
        let texts: Vec<&str> = texts.collect();
        let prompt = self.value("prompt").and_then(Value::as_str);
        if let Some(prompt) = prompt.map(str::trim).filter(|prompt| !prompt.is_empty())
            && !texts.iter().any(|text| text.trim() == prompt)
        {
            return Err(self.error("prompt", OF_BOTH, self.value("prompt")));
        }
        own.refuse_second_question(&texts)
    }

    /// The text under `key`, which is the answer from byte `start` on.
    fn texts(&self, key: &str, text: &str, start: usize) -> Result<Content, DataError> {
        let (prompt, completion) = text.split_at(start);
        if completion.trim().is_empty() {
            return Err(self.teaches_nothing(format!("`{}` is empty", self.own_name(key))));
        }
        Ok(Content::Completion {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
            with: self.extras()?,
        })
    }
}

/// What a prompt beside whole conversations has to be.
const OF_BOTH: &str = "the text of a turn with which both answers begin; to leave it out, give \
                       --columns chosen=chosen,rejected=rejected";

/// Whether two lists of turns are whole conversations that begin with the same prompt, and do not go on with `prompt`.
fn begin_alike(one: &[Value], other: &[Value], prompt: Option<&Value>) -> bool {
    let begins_with_answer = || one.first().is_some_and(is_of_assistant);
    let common = common_turns(one, other);
    match prompt {
        None => common > 0,
        // A list is the prompt, and TRL puts the answers after it; here it may be their beginning, too.
        Some(Value::Array(turns)) => {
            let is_side = turns == one || turns == other;
            common > 0 && (is_side || starts_with(&one[..common], turns))
        }
        Some(_) => common > 0 && !begins_with_answer(),
    }
}

fn starts_with(all: &[Value], first: &[Value]) -> bool {
    all.len() >= first.len() && are_same(&all[..first.len()], first)
}

/// With how many equal turns two lists begin, so that something is left of each.
fn common_turns(one: &[Value], other: &[Value]) -> usize {
    let most = one.len().min(other.len()).saturating_sub(1);
    let pairs = one.iter().zip(other).take(most);
    let mut common = pairs.take_while(|(one, other)| is_same(one, other)).count();
    // Calls are said in one turn with what the assistant says before them.
    while common > 1
        && (is_call(&one[common]) || is_call(&other[common]))
        && is_of_assistant(&one[common - 1])
    {
        common -= 1;
    }
    common
}

/// With how many equal bytes two texts begin, cut before the last word of these.
fn common_text(one: &str, other: &str) -> usize {
    let pairs = one.char_indices().zip(other.chars());
    let differ = pairs.into_iter().find(|((_, a), b)| a != b);
    let end = differ.map_or(one.len().min(other.len()), |((at, _), _)| at);
    let last_space = one[..end].rfind(char::is_whitespace);
    last_space.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_before_a_word() {
        for (one, other, prompt) in [
            ("The sky is blue.", "The sky is green.", "The sky is"),
            ("The sky is grey.", "The sky is green.", "The sky is"),
            ("The sky", "The sky is", "The"),
            ("A: yes", "B: no", ""),
            ("schön ist es", "schön war es", "schön"),
        ] {
            assert_eq!(&one[..common_text(one, other)], prompt, "{one}");
        }
    }
}
