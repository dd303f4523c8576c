//! Records → tokens with a loss mask, segment by segment.
//!
//! A conversation is cut into segments of text before anything is tokenized: what the assistant says is what the chat
//! template appends to its own generation prompt for that turn. Every segment is encoded by itself, so the tokens of a
//! prompt are the ones the server computes for it, and the mask is exact. (Comparing the tokens of two renders is not:
//! tokens merge across the boundary.)
//!
//! Templates that rewrite earlier turns, as DeepSeek-R1's and Qwen3's do with reasoning, give one example per assistant
//! turn, each after exactly the prompt that the server would send. Reasoning that a template strips is put back into the
//! target: `reasoning\n</think>\n\nanswer`.
//!
//! Text that has the template's own tokens already gets no second template, BOS or end token.

mod added;
mod bare;
mod chat;
mod compared;
mod turns;
mod written;

use model_qwen::{ChatTemplate, Tokenizer};

pub(crate) use self::added::AddedTokens;
pub(crate) use self::bare::Bare;
pub(crate) use self::written::{check_no_template, check_written};
use crate::chat_format::ChatFormat;
use crate::config::{Thinking, TrainOn};
use crate::data::format::TurnKind;
use crate::data::{Chat, Content, DataError, Example, Record, Source};
pub use crate::template_facts::TemplateFacts;
use crate::template_facts::{THINK, opens_think};

/// What determines tokens and mask, besides tokenizer and template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenderSettings {
    /// Which tokens are learnt.
    pub train_on: TrainOn,
    /// Answers without reasoning.
    pub thinking: Thinking,
    /// Longest example in tokens.
    pub max_length: usize,
    /// The token that ends texts and completions.
    pub eos_token_id: Option<u32>,
}

/// Turns records into examples. Cloning copies pointers and small texts.
#[derive(Clone, Debug)]
pub struct Renderer {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    facts: TemplateFacts,
    /// Tokens that the tokenizer puts around every text.
    added: AddedTokens,
    settings: RenderSettings,
}

/// What became of one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// None when nothing to learn fits; several for long texts and for templates that rewrite history.
    pub examples: Vec<Example>,
    /// Tokens of the longest document before anything was cut off it; 0 for a text, which is cut into windows.
    pub longest: usize,
    /// Whether something was cut off the left.
    pub truncated: bool,
    /// Tokens of answers that do not fit.
    pub num_lost_targets: usize,
    /// Whether turns before the first question or after the last answer were left out.
    pub is_cut: bool,
    /// Whether the prompt had been rendered already, and got no second template.
    pub was_rendered: bool,
    /// Whether texts have the template's own tokens.
    pub has_own_tokens: bool,
    /// Whether an answer ended with a token in whose place the template's own end is learnt.
    pub had_end: bool,
    /// Answers that are compared and lost their end.
    pub num_cut_answers: usize,
}

impl Renderer {
    /// A renderer for a model's tokenizer and, where it has one, chat template.
    pub fn new(
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        settings: RenderSettings,
    ) -> Self {
        let facts = template.map(|template| TemplateFacts::of(template, tokenizer));
        Self::with_facts(tokenizer, template, facts.unwrap_or_default(), settings)
    }

    /// A renderer for a model whose template has been looked at.
    pub(crate) fn of(format: &ChatFormat, settings: RenderSettings) -> Self {
        let (template, facts) = (format.template.as_ref(), format.facts.clone());
        Self::with_facts(&format.tokenizer, template, facts, settings)
    }

    fn with_facts(
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        facts: TemplateFacts,
        settings: RenderSettings,
    ) -> Self {
        Self {
            facts,
            added: AddedTokens::of(tokenizer),
            tokenizer: tokenizer.clone(),
            template: template.cloned(),
            settings,
        }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &RenderSettings {
        &self.settings
    }

    /// Tokenizes one record.
    ///
    /// # Errors
    /// When the template refuses the messages, there is none, or it contradicts its own generation prompt; when an answer
    /// lacks the reasoning that the template asks for; when the template leaves out what is to be learnt.
    pub fn render(&self, record: &Record) -> Result<Rendered, DataError> {
        let source = &record.source;
        match &record.content {
            Content::Text(text) => {
                let tokens = self.text_tokens(source, text)?;
                Ok(self.windows(source, self.with_end(text, tokens, None)))
            }
            Content::Segments(segments) => {
                let mut tokens = Vec::new();
                let mut kinds = Vec::new();
                for (text, label) in segments {
                    tokens.extend(self.encode(source, text, false)?);
                    let kind = if *label {
                        TurnKind::Answer
                    } else {
                        TurnKind::Prompt
                    };
                    kinds.resize(tokens.len(), kind);
                }
                Ok(self.document(source, tokens, &kinds))
            }
            Content::Completion {
                prompt,
                completion,
                with,
            } if self.template.is_none() => {
                check_no_template(source, with, "the model has no chat template")?;
                self.completion(source, prompt, completion, None)
            }
            Content::Completion {
                prompt,
                completion,
                with,
            } if self.facts.is_rendered(prompt) => {
                check_no_template(source, with, "the prompt has been rendered already")?;
                let end = self.facts.end.as_ref().map(|(token, _)| *token);
                let rendered = self.completion(source, prompt, completion, end)?;
                Ok(Rendered {
                    was_rendered: true,
                    ..rendered
                })
            }
            Content::Completion {
                prompt,
                completion,
                with,
            } => self.chat(record, &Chat::single_turn(prompt, completion, with.clone())),
            Content::Chat(chat) => self.chat(record, chat),
        }
    }

    /// Two texts one after the other, and `end` or the token that ends texts.
    fn completion(
        &self,
        source: &Source,
        prompt: &str,
        completion: &str,
        end: Option<u32>,
    ) -> Result<Rendered, DataError> {
        let mut tokens = self.text_tokens(source, prompt)?;
        let mut kinds = vec![TurnKind::Prompt; tokens.len()];
        // The prompt has opened the block already.
        let opened = completion
            .strip_prefix(THINK)
            .filter(|_| opens_think(prompt));
        let opened = opened.map(|inside| match prompt.ends_with('\n') {
            true => inside.strip_prefix('\n').unwrap_or(inside),
            false => inside,
        });
        let completion = opened.unwrap_or(completion);
        let ends = self.ends_itself(completion);
        let bare = self.facts.without_end(completion);
        let bare = bare.or_else(|| {
            ends.then(|| completion.rsplit_once('<'))
                .flatten()
                .map(|(bare, _)| bare)
        });
        if bare.is_some_and(|bare| bare.trim().is_empty()) {
            return Err(only_an_end(source));
        }
        // White space after the end is none of the answer.
        let answer = if ends {
            completion.trim_end()
        } else {
            completion
        };
        let answer = self.encode(source, answer, false)?;
        tokens.extend(self.with_end(completion, answer, end));
        kinds.resize(tokens.len(), TurnKind::Answer);
        Ok(self.document(source, tokens, &kinds))
    }

    fn document(&self, source: &Source, tokens: Vec<u32>, kinds: &[TurnKind]) -> Rendered {
        let mut rendered = Rendered::default();
        self.push(&mut rendered, source, tokens, kinds);
        rendered
    }

    /// Shortens one document from the left and adds it, unless nothing to learn is left.
    ///
    /// A leading BOS token stays. Where the prompt alone is not long enough to be cut, whole earlier turns go: an answer is
    /// learnt from its first token to its end, or not at all.
    fn push(&self, rendered: &mut Rendered, source: &Source, tokens: Vec<u32>, kinds: &[TurnKind]) {
        let max_length = self.settings.max_length;
        let is_answer = |index: usize| kinds[index] == TurnKind::Answer;
        rendered.longest = rendered.longest.max(tokens.len());
        let mut kept: Vec<usize> = (0..tokens.len()).collect();
        if tokens.len() > max_length {
            let head = usize::from(self.starts_with_bos(&tokens));
            let mut start = tokens.len() - max_length + head;
            while start < tokens.len() && is_answer(start) {
                start += 1;
            }
            kept = (0..head).chain(start..tokens.len()).collect();
            rendered.num_lost_targets += (head..start).filter(|&index| is_answer(index)).count();
        }
        let has_answer = kept.iter().skip(1).any(|&index| is_answer(index));
        let mask: Vec<bool> = kept
            .iter()
            .enumerate()
            .map(|(position, &index)| {
                position > 0
                    && match self.settings.train_on {
                        TrainOn::Assistant => is_answer(index),
                        TrainOn::Prompt => kinds[index] == TurnKind::Prompt,
                        TrainOn::All => kinds[index] != TurnKind::Unlearnt,
                    }
            })
            .collect();
        if has_answer && mask.contains(&true) {
            rendered.truncated |= kept.len() < tokens.len();
            let tokens = kept.into_iter().map(|index| tokens[index]).collect();
            rendered.examples.push(Example {
                tokens,
                mask,
                is_wanted: true,
                source: source.clone(),
            });
        }
    }

    /// Whether the first token is one that the tokenizer puts before every text.
    fn starts_with_bos(&self, tokens: &[u32]) -> bool {
        let first = self.added.prefix.first();
        first.is_some() && tokens.first() == first
    }

    /// Tokens of a text that stands for itself, with what the tokenizer puts before it once, also where the text has it.
    fn text_tokens(&self, source: &Source, text: &str) -> Result<Vec<u32>, DataError> {
        Ok(self.added.before(self.encode(source, text, true)?))
    }

    /// A text in windows of the length limit. Each begins with the last token of the one before, so all are learnt once.
    fn windows(&self, source: &Source, tokens: Vec<u32>) -> Rendered {
        let mut rendered = Rendered::default();
        let stride = self.settings.max_length.max(2) - 1;
        let mut start = 0;
        while start + 1 < tokens.len() {
            let window = &tokens[start..tokens.len().min(start + stride + 1)];
            let mut mask = vec![true; window.len()];
            mask[0] = false;
            rendered.examples.push(Example {
                tokens: window.to_vec(),
                mask,
                is_wanted: true,
                source: source.clone(),
            });
            start += stride;
        }
        rendered
    }

    /// `tokens` of `text` with `end`, or the token that ends texts, unless the text ends itself.
    fn with_end(&self, text: &str, mut tokens: Vec<u32>, end: Option<u32>) -> Vec<u32> {
        let end = end.or(self.settings.eos_token_id);
        let end = end.or(self.added.end());
        if let Some(end) = end.filter(|_| !self.ends_itself(text)) {
            tokens.push(end);
        }
        tokens
    }

    /// Whether a text ends with a token that ends a text or a turn, and white space at most.
    fn ends_itself(&self, text: &str) -> bool {
        let text = text.trim_end();
        // Such tokens look like `<|im_end|>`.
        if !text.ends_with('>') {
            return false;
        }
        let start = text.rfind('<').unwrap_or_default();
        let tokens = self
            .tokenizer
            .encode(&text[start..], false)
            .unwrap_or_default();
        matches!(tokens[..], [only] if self.is_end(only))
    }

    /// Whether a token can end a turn or a text.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.tokenizer.is_special(token) || self.settings.eos_token_id == Some(token)
    }

    fn encode(
        &self,
        source: &Source,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, DataError> {
        self.tokenizer
            .encode(text, add_special_tokens)
            .map_err(|error| DataError::Render {
                source_place: source.clone(),
                reason: error.to_string(),
            })
    }
}

/// An answer that says nothing, but for the token that ends it.
fn only_an_end(source: &Source) -> DataError {
    DataError::TeachesNothing {
        source_place: source.clone(),
        reason: "its answer is nothing but a token that ends it".into(),
    }
}
