//! Answers that are compared → one example each, cut at its end as TRL does.

use super::{Rendered, Renderer};
use crate::config::TrainOn;
use crate::data::format::{Answer, Answers};
use crate::data::{Content, DataError, Example};

impl Renderer {
    /// A renderer of whole answers, for [`Self::answers`].
    pub(crate) fn whole(&self) -> Self {
        let mut whole = self.clone();
        whole.settings.max_length = usize::MAX;
        whole.settings.train_on = TrainOn::Assistant;
        whole
    }

    /// Tokenizes the answers of one record, each with its prompt, and cuts what is longer than `max_length` off their ends. To be
    /// called on [`Self::whole`].
    ///
    /// # Errors
    /// As [`Renderer::render`]; a prompt that leaves no room for an answer, answers of which the template makes several texts, and
    /// answers that are the same.
    pub(crate) fn answers(
        &self,
        answers: &Answers,
        max_length: usize,
    ) -> Result<Rendered, DataError> {
        let mut all = Rendered::default();
        for answer in &answers.answers {
            let rendered = self.one(answer)?;
            let count = rendered.examples.len();
            let Ok([example]) = <[Example; 1]>::try_from(rendered.examples) else {
                let source_place = answers.source.clone();
                return Err(match count {
                    0 => DataError::TeachesNothing {
                        source_place,
                        reason: "an answer has no token to learn".into(),
                    },
                    count => DataError::ManyTurns {
                        source_place,
                        count,
                    },
                });
            };
            all.longest = all.longest.max(example.tokens.len());
            all.is_cut |= rendered.is_cut;
            all.was_rendered |= rendered.was_rendered;
            all.has_own_tokens |= rendered.has_own_tokens;
            all.had_end |= rendered.had_end;
            all.examples
                .push(cut(example, max_length, &mut all.num_cut_answers)?);
            if let Some(example) = all.examples.last_mut() {
                example.is_wanted = answer.is_wanted;
            }
        }
        if let [one, other] = &all.examples[..]
            && one.tokens == other.tokens
        {
            return Err(DataError::TeachesNothing {
                source_place: answers.source.clone(),
                reason: match all.num_cut_answers {
                    0 => "its two answers have the same tokens".into(),
                    _ => format!("its two answers are the same within --max-length {max_length}"),
                },
            });
        }
        Ok(all)
    }

    fn one(&self, answer: &Answer) -> Result<Rendered, DataError> {
        match &answer.record.content {
            Content::Completion {
                prompt, completion, ..
            } if answer.is_plain => {
                self.completion(&answer.record.source, prompt, completion, None)
            }
            _ => self.render(&answer.record),
        }
    }
}

/// The first `max_length` tokens of an example.
fn cut(mut example: Example, max_length: usize, num_cut: &mut usize) -> Result<Example, DataError> {
    if example.tokens.len() <= max_length {
        return Ok(example);
    }
    example.tokens.truncate(max_length);
    example.mask.truncate(max_length);
    if !example.mask.contains(&true) {
        return Err(DataError::TeachesNothing {
            source_place: example.source,
            reason: format!("its prompt alone fills --max-length {max_length}"),
        });
    }
    *num_cut += 1;
    Ok(example)
}
