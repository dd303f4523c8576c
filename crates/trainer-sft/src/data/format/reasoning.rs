//! Reasoning in a field beside an answer that is a text.

use super::super::error::DataError;
use super::field_names::{REASONING, REASONING_PART};
use super::reader::{Reader, is_filled};
use super::values::{are_alike, is_reasoning, only_text};

impl Reader<'_> {
    /// The reasoning beside an answer, and the field that has it.
    fn reasoning(&self) -> Result<Option<(&'static str, &str)>, DataError> {
        if self.columns.has(REASONING_PART) {
            let given = self.fields.get(REASONING_PART);
            if is_filled(given) && given.is_some_and(|value| only_text(value).is_none()) {
                return Err(self.error(REASONING_PART, "text", given));
            }
        }
        let mut found = None;
        for key in REASONING {
            let Some(value) = self
                .fields
                .get(key)
                .filter(|value| is_reasoning(key, value))
            else {
                continue;
            };
            let text = only_text(value).unwrap_or_default();
            match found {
                None => found = Some((key, text)),
                Some((_, first)) if are_alike(first, text) => {}
                Some((first, _)) => {
                    let expected = format!("no second reasoning beside `{first}`");
                    return Err(self.error(key, &expected, Some(value)));
                }
            }
        }
        Ok(found)
    }

    /// The answer under `key` with the reasoning of a field of its own before it, as models write it.
    ///
    /// # Errors
    /// Reasoning that is no text, and reasoning in the answer that says something else.
    pub(super) fn with_reasoning(&self, key: &str, answer: String) -> Result<String, DataError> {
        let Some((field, reasoning)) = self.reasoning()? else {
            return Ok(answer);
        };
        let inside = reasoning.trim();
        let inside = inside.strip_prefix("<think>").unwrap_or(inside);
        let inside = inside.strip_suffix("</think>").unwrap_or(inside);
        let inside = inside.trim_matches('\n');
        if inside.contains("</think>") {
            let expected = "reasoning without `</think>` in it";
            return Err(self.error(field, expected, self.fields.get(field)));
        }
        let answer = self.without_second_reasoning(key, inside, answer)?;
        let answer = answer.trim_start_matches('\n');
        Ok(format!("<think>\n{inside}\n</think>\n\n{answer}"))
    }

    /// Refuses reasoning beside an answer that is a list of messages.
    pub(super) fn refuse_reasoning(&self) -> Result<(), DataError> {
        match self.reasoning()? {
            None => Ok(()),
            Some((field, _)) => {
                let expected = "none beside messages: write it as `reasoning_content` of the assistant's message";
                Err(self.error(field, expected, self.fields.get(field)))
            }
        }
    }
}
