//! Records → chats, and what in them is left out.

use serde_json::Value;

use super::super::cells::speaker;
use super::super::error::DataError;
use super::reader::{Reader, is_filled};
use super::turn::Turn;
use super::turns::{after_system, is_pair};
use super::whole::{Unfit, Whole, is_asked};
use super::{Chat, Content, TurnKind, role_of};

impl Reader<'_> {
    /// A list of OpenAI or ShareGPT turns under `key`, with an optional `system` text beside them.
    pub(super) fn messages(&self, key: &str) -> Result<Chat, DataError> {
        let items = self.list(key, "messages")?;
        if items.iter().all(is_pair) {
            return self.pairs(key);
        }
        self.chat(key, self.turns(key, &items, 0)?)
    }

    /// Pairs of question and answer, as in ms-swift's `conversation`.
    pub(super) fn pairs(&self, key: &str) -> Result<Chat, DataError> {
        self.chat(key, self.turns_of_pairs(key)?)
    }

    /// Alpaca, with LLaMA-Factory's optional `system` and `history`.
    pub(super) fn alpaca(&self) -> Result<Chat, DataError> {
        if !self.fields.contains_key("output") && self.columns_flag().is_some() {
            return Err(self.unknown_format());
        }
        let texts = [
            self.optional_text("instruction")?,
            self.optional_text("input")?,
        ];
        let prompt: Vec<String> = texts.into_iter().flatten().collect();
        let prompt = prompt.join("\n");
        let output = self.with_reasoning("output", self.to_learn("output")?)?;
        if prompt.trim().is_empty() {
            let own = self.own_name("instruction");
            return Err(self.teaches_nothing(format!("`{own}` is empty")));
        }
        let mut turns = self.turns_of_history()?;
        turns.push(Turn::plain("user", &prompt));
        turns.push(Turn::plain("assistant", &output));
        self.chat("output", turns)
    }

    /// ms-swift's `query`, `response` and `history`.
    pub(super) fn query_response(&self) -> Result<Chat, DataError> {
        if !self.fields.contains_key("response") && self.columns_flag().is_some() {
            return Err(self.unknown_format());
        }
        let mut turns = self.turns_of_history()?;
        let response = self.with_reasoning("response", self.to_learn("response")?)?;
        turns.push(Turn::plain("user", &self.text_or_nothing("query")?));
        turns.push(Turn::plain("assistant", &response));
        self.chat("response", turns)
    }

    /// Two texts, or two lists of messages of which only the second is learnt.
    pub(super) fn prompt_completion(&self) -> Result<Content, DataError> {
        if !self.fields.contains_key("completion") && self.columns_flag().is_some() {
            return Err(self.unknown_format());
        }
        let turns_of = |key: &str| match self.fields.get(key) {
            Some(Value::Array(_)) => Some(self.list(key, "messages")),
            // LLaMA-Factory's single message.
            Some(message) if speaker(message).is_some() => Some(Ok(vec![message.clone()])),
            _ => None,
        };
        let is_list = |key: &str| turns_of(key).is_some();
        if !is_list("prompt") && !is_list("completion") {
            let completion = self.with_reasoning("completion", self.to_learn("completion")?)?;
            let prompt = self.text_or_nothing("prompt")?;
            let mut turns = self.turns_of_history()?;
            if !turns.is_empty() || self.optional_text("system")?.is_some() {
                turns.push(Turn::plain("user", &prompt));
                turns.push(Turn::plain("assistant", &completion));
                return Ok(Content::Chat(self.chat("completion", turns)?));
            }
            return Ok(Content::Completion {
                prompt,
                completion,
                with: self.extras()?,
            });
        }
        if is_list("completion") {
            self.refuse_reasoning()?;
        }
        if let Some(items) = turns_of("completion")
            && let Some((items, start)) = self.whole_completion(&items?)?
        {
            let turns = self.turns("completion", &items, start)?;
            let turns = after_system(turns, self.turns_of_history()?, |turn| &turn.message);
            return Ok(Content::Chat(self.chat("completion", turns)?));
        }
        let mut turns = Vec::new();
        for (key, role) in [("prompt", "user"), ("completion", "assistant")] {
            let Some(items) = turns_of(key) else {
                let mut text = self.text_or_nothing(key)?;
                if key == "completion" {
                    text = self.with_reasoning(key, text)?;
                }
                turns.push(Turn::plain(role, &text));
                continue;
            };
            let items = items?;
            let start = if key == "prompt" { items.len() } else { 0 };
            turns.extend(self.turns(key, &items, start)?);
        }
        let turns = after_system(turns, self.turns_of_history()?, |turn| &turn.message);
        Ok(Content::Chat(self.chat("completion", turns)?))
    }

    /// The turns of a completion that is a whole conversation with the prompt in it, and where those to learn begin.
    fn whole_completion(&self, items: &[Value]) -> Result<Option<(Vec<Value>, usize)>, DataError> {
        let prompt = match self.value("prompt") {
            // LLaMA-Factory's single message.
            Some(message) if speaker(message).is_some() => Value::Array(vec![message.clone()]),
            // The completion has the question.
            None | Some(Value::String(_) | Value::Array(_)) if self.has_no_prompt() => {
                let is_whole = items.first().is_some_and(is_asked);
                return Ok(is_whole.then(|| (items.to_vec(), 0)));
            }
            Some(other) => other.clone(),
            None => return Ok(None),
        };
        match Whole::find(&prompt, items) {
            Ok(whole) => Ok(whole.map(|whole| whole.joined(items))),
            Err(Unfit::NoAnswer) => {
                let own = self.own_name("completion");
                Err(self.teaches_nothing(format!("`{own}` has no answer of the assistant")))
            }
            Err(Unfit::OtherQuestion) => {
                let expected = format!(
                    "the text of a turn in `{}`, which has a question of its own: leave one of them out",
                    self.own_name("completion")
                );
                Err(self.error("prompt", &expected, self.value("prompt")))
            }
        }
    }

    /// Whether nothing is asked under `prompt`.
    fn has_no_prompt(&self) -> bool {
        match self.value("prompt") {
            Some(Value::String(text)) => text.trim().is_empty(),
            prompt => !is_filled(prompt),
        }
    }

    /// axolotl's texts, each with a label that says whether it is learnt.
    pub(super) fn segments(&self) -> Result<Vec<(String, bool)>, DataError> {
        let mut segments = Vec::new();
        for (index, item) in self
            .list("segments", "objects with `label` and `text`")?
            .iter()
            .enumerate()
        {
            let field = |name: &str| format!("segments[{index}].{name}");
            let Some(Value::Bool(label)) = item.get("label") else {
                return Err(self.error(field("label"), "true or false", item.get("label")));
            };
            let Some(Value::String(text)) = item.get("text") else {
                return Err(self.error(field("text"), "text", item.get("text")));
            };
            segments.push((text.clone(), *label));
        }
        match segments
            .iter()
            .any(|(text, label)| *label && !text.is_empty())
        {
            true => Ok(segments),
            false => Err(self.teaches_nothing("no segment has the label true")),
        }
    }

    /// Adds `system`, and leaves out what cannot be learnt or be context of it.
    pub(super) fn chat(&self, key: &str, turns: Vec<Turn>) -> Result<Chat, DataError> {
        self.chat_of(key, self.with_system(key, turns)?)
    }

    /// Turns after the text under `system`.
    pub(super) fn with_system(&self, key: &str, turns: Vec<Turn>) -> Result<Vec<Turn>, DataError> {
        let mut turns = turns;
        if let Some(system) = self.optional_text("system")? {
            match turns.first() {
                Some(Turn { message, .. }) if role_of(message) == "system" => {
                    if message.get("content").and_then(Value::as_str) != Some(&system) {
                        let expected = format!("no second system text beside {key}[0]");
                        return Err(self.error("system", &expected, Some(&system.into())));
                    }
                }
                _ => turns.insert(0, Turn::plain("system", &system)),
            }
        }
        Ok(turns)
    }

    fn chat_of(&self, key: &str, turns: Vec<Turn>) -> Result<Chat, DataError> {
        let num_turns = turns.len();
        let is_answer = |turn: &Turn| role_of(&turn.message) == "assistant";
        // What comes after the last answer leads nowhere, and what the assistant says unasked follows no prompt.
        let end = turns.iter().rposition(is_answer).map_or(0, |last| last + 1);
        let start = turns.iter().take_while(|turn| is_answer(turn)).count();
        let own_key = self.own_name(key);
        if end == 0 {
            return Err(self.teaches_nothing(format!("`{own_key}` has no answer of the assistant")));
        }
        if start >= end {
            let reason = format!("`{own_key}` has no question before the answer of the assistant");
            return Err(self.teaches_nothing(reason));
        }
        let kept: Vec<Turn> = turns.into_iter().take(end).skip(start).collect();
        if !kept.iter().any(|turn| turn.kind == TurnKind::Answer) {
            let reason =
                format!("every answer in `{own_key}` is empty or is marked as not to be learnt");
            return Err(self.teaches_nothing(reason));
        }
        let is_cut = kept.len() < num_turns;
        let kept = kept
            .into_iter()
            .map(|Turn { message, kind }| (message, kind));
        let (messages, kinds) = kept.unzip();
        Ok(Chat {
            messages,
            kinds,
            with: self.extras()?,
            is_cut,
        })
    }
}
