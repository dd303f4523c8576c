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

mod turns;

use model_qwen::{ChatTemplate, Tokenizer};

use self::turns::Turns;
use crate::config::{Thinking, TrainOn};
use crate::data::{Chat, Content, DataError, Example, Record, Source};

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

/// Turns records into examples.
#[derive(Clone, Debug)]
pub struct Renderer<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    settings: RenderSettings,
}

/// What became of one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// None when nothing to learn fits; several for long texts and for templates that rewrite history.
    pub examples: Vec<Example>,
    /// Whether something was cut off the left.
    pub truncated: bool,
    /// Tokens of answers that do not fit.
    pub num_lost_targets: usize,
}

impl<'a> Renderer<'a> {
    /// A renderer for a model's tokenizer and, where it has one, chat template.
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        settings: RenderSettings,
    ) -> Self {
        Self {
            tokenizer,
            template,
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
    /// lacks the reasoning that the template asks for.
    pub fn render(&self, record: &Record) -> Result<Rendered, DataError> {
        let source = &record.source;
        match &record.content {
            Content::Text(text) => {
                Ok(self.windows(source, self.with_eos(self.encode(source, text, true)?)))
            }
            Content::Completion { prompt, completion } if self.template.is_none() => {
                let mut tokens = self.encode(source, prompt, true)?;
                let mut answer = vec![false; tokens.len()];
                tokens.extend(self.with_eos(self.encode(source, completion, false)?));
                answer.resize(tokens.len(), true);
                let mut rendered = Rendered::default();
                self.push(&mut rendered, source, tokens, &answer);
                Ok(rendered)
            }
            Content::Completion { prompt, completion } => {
                self.chat(record, &Chat::single_turn(prompt, completion))
            }
            Content::Chat(chat) => self.chat(record, chat),
        }
    }

    fn chat(&self, record: &Record, chat: &Chat) -> Result<Rendered, DataError> {
        let source = &record.source;
        let Some(template) = self.template else {
            return Err(DataError::NoTemplate {
                source_place: source.clone(),
                format: record.format.name(),
            });
        };
        let turns = Turns {
            renderer: self,
            template,
            source,
            chat,
        };
        let mut rendered = Rendered::default();
        for document in turns.documents()? {
            let mut tokens = Vec::new();
            let mut answer = Vec::new();
            for segment in document {
                tokens.extend(self.encode(source, &segment.text, false)?);
                answer.resize(tokens.len(), segment.learnt);
            }
            self.push(&mut rendered, source, tokens, &answer);
        }
        Ok(rendered)
    }

    /// Shortens one document from the left and adds it, unless nothing to learn is left.
    ///
    /// A leading BOS token stays. Where the prompt alone is not long enough to be cut, whole earlier turns go: an answer is
    /// learnt from its first token to its end, or not at all.
    fn push(&self, rendered: &mut Rendered, source: &Source, tokens: Vec<u32>, answer: &[bool]) {
        let max_length = self.settings.max_length;
        let mut kept: Vec<usize> = (0..tokens.len()).collect();
        if tokens.len() > max_length {
            let head = usize::from(self.starts_with_bos(&tokens));
            let mut start = tokens.len() - max_length + head;
            while start < tokens.len() && answer[start] {
                start += 1;
            }
            kept = (0..head).chain(start..tokens.len()).collect();
            rendered.num_lost_targets +=
                answer[head..start].iter().filter(|&&learnt| learnt).count();
        }
        let has_answer = kept.iter().skip(1).any(|&index| answer[index]);
        let mask: Vec<bool> = kept
            .iter()
            .enumerate()
            .map(|(position, &index)| {
                position > 0
                    && match self.settings.train_on {
                        TrainOn::Assistant => answer[index],
                        TrainOn::Prompt => !answer[index],
                        TrainOn::All => true,
                    }
            })
            .collect();
        if has_answer && mask.contains(&true) {
            rendered.truncated |= kept.len() < tokens.len();
            let tokens = kept.into_iter().map(|index| tokens[index]).collect();
            rendered.examples.push(Example {
                tokens,
                mask,
                source: source.clone(),
            });
        }
    }

    /// Whether the first token is one that the tokenizer puts before every text.
    fn starts_with_bos(&self, tokens: &[u32]) -> bool {
        self.tokenizer
            .encode("", true)
            .is_ok_and(|prefix| !prefix.is_empty() && tokens.starts_with(&prefix[..1]))
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
                source: source.clone(),
            });
            start += stride;
        }
        rendered
    }

    fn with_eos(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        if let Some(eos) = self.settings.eos_token_id
            && tokens.last() != Some(&eos)
        {
            tokens.push(eos);
        }
        tokens
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
