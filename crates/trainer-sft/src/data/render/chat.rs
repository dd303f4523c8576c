//! A conversation as examples.

use super::bare::Bare;
use super::turns::Turns;
use super::written::check_written;
use super::{Rendered, Renderer, only_an_end};
use crate::data::format::TurnKind;
use crate::data::{Chat, DataError, Record};

impl Renderer {
    /// The tokens of a conversation.
    pub(super) fn chat(&self, record: &Record, chat: &Chat) -> Result<Rendered, DataError> {
        let source = &record.source;
        let Some(template) = &self.template else {
            return Err(DataError::NoTemplate {
                source_place: source.clone(),
                format: record.format.name(),
            });
        };
        check_written(&self.facts, source, &chat.messages, &chat.with)?;
        let bare = Bare::of(&self.facts, &chat.messages);
        let clean = bare.messages.map(|messages| {
            let mut clean = chat.clone();
            clean.messages = messages;
            for &index in &bare.emptied {
                clean.kinds[index] = clean.kinds[index].before();
            }
            clean
        });
        if let Some(clean) = &clean
            && !clean.kinds.contains(&TurnKind::Answer)
        {
            return Err(only_an_end(source));
        }
        let turns = Turns {
            renderer: self,
            template,
            source,
            chat: clean.as_ref().unwrap_or(chat),
        };
        let mut rendered = Rendered {
            is_cut: chat.is_cut,
            has_own_tokens: bare.has_own_tokens,
            had_end: bare.had_end,
            ..Rendered::default()
        };
        for document in turns.documents()? {
            let mut tokens = Vec::new();
            let mut kinds = Vec::new();
            for segment in document {
                tokens.extend(segment.tokens);
                kinds.resize(tokens.len(), segment.kind);
            }
            self.push(&mut rendered, source, tokens, &kinds);
        }
        Ok(rendered)
    }
}
