//! The likeliest answers of a model, and how much of one says again what was said.

use std::collections::HashSet;
use std::ops::ControlFlow;

use anyhow::Result;
use model_qwen::{
    ChatModel, Detokenizer, GenerateRequest, RenderOptions, SamplingParams, generate,
};
use serde_json::Value;

/// Words of a run.
const RUN: usize = 4;

/// An answer that was made of the likeliest tokens, without a penalty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Whether the model ended it.
    pub has_ended: bool,
}

impl Answer {
    /// The answer to `messages`, of at most `max_tokens`.
    ///
    /// # Errors
    /// When the template refuses the messages or a step cannot be computed.
    pub fn likeliest(chat: &ChatModel, messages: &[Value], max_tokens: usize) -> Result<Self> {
        let render = RenderOptions {
            add_generation_prompt: true,
            ..RenderOptions::default()
        };
        let text = chat.template.render(messages, &render)?;
        let request = GenerateRequest {
            prompt: chat.tokenizer.encode(&text, false)?,
            sampling: SamplingParams::greedy(),
            max_tokens,
            stop_token_ids: chat.generation_config.eos_token_ids.clone(),
            adapter: None,
        };
        let tokens = generate(&chat.model, &request, |_| ControlFlow::Continue(()))?;
        let mut words = Detokenizer::new(chat.tokenizer.clone(), true);
        let mut text: String = tokens.iter().map(|token| words.push(*token)).collect();
        text += &words.finish();
        Ok(Self {
            text,
            has_ended: tokens.len() < max_tokens,
        })
    }

    /// The part of repetitions above which data/README.md counts an answer as a loop.
    pub const LOOP: f64 = 0.15;

    /// Whether the answer does not end, or more than `most` of its runs of words are repetitions.
    pub fn is_broken(&self, most: f64) -> bool {
        !self.has_ended || repetition(&self.text) > most
    }
}

/// The part of the runs of four words that were in the text before. Case and punctuation make no difference.
pub fn repetition(text: &str) -> f64 {
    let lower = text.to_lowercase();
    let is_between = |c: char| !(c.is_alphanumeric() || c == '_' || c == '\'');
    let words: Vec<&str> = lower
        .split(is_between)
        .filter(|word| !word.is_empty())
        .collect();
    let different: HashSet<&[&str]> = words.windows(RUN).collect();
    match words.windows(RUN).len() {
        0 => 0.0,
        all => (all - different.len()) as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, repetition};

    #[test]
    fn repetition_is_the_part_of_runs_that_were_there_before() {
        assert_eq!(repetition(""), 0.0);
        assert_eq!(repetition("One, two, three."), 0.0);
        assert_eq!(repetition("The cat sat down. The dog didn't."), 0.0);
        // Runs: a b c d, b c d A, c d A B, d A B C, A B C D: the last one was there.
        assert_eq!(repetition("a b c d. A b c d!"), 0.2);
    }

    #[test]
    fn an_answer_is_broken_that_loops_or_does_not_end() {
        let answer = |text: &str, has_ended| Answer {
            text: text.to_owned(),
            has_ended,
        };
        assert!(!answer("A cat sat on a mat.", true).is_broken(Answer::LOOP));
        assert!(answer("A cat sat on a mat.", false).is_broken(Answer::LOOP));
        assert!(answer(&"He swam and swam. ".repeat(9), true).is_broken(Answer::LOOP));
    }
}
