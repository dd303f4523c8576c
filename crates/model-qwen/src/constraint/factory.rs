//! From a grammar to a constraint, for the vocabulary of one tokenizer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{
    INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{Logger, Matcher, ParserFactory};

use super::Constraint;
use super::blame::blamed;
use super::grammar::Grammar;
use super::grammar_error::{GrammarError, reason};
use super::places::{Place, Places};
use crate::tokenizer::Tokenizer;

/// Longest time that a grammar may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// llguidance follows references as deep as they go, through 50,000 schemas at most. Only what is used takes memory.
const STACK_BYTES: usize = 512 << 20;
/// Bytes of a token, at most: the trie has no room for longer ones, which no model needs in a grammar.
const MAX_TOKEN_BYTES: usize = 1000;
/// Ids of tokens are below this.
const MAX_TOKENS: usize = 1 << 22;

/// Compiles grammars for the vocabulary of one tokenizer. Clones share it.
///
/// To make one takes about half a second for the 152,000 tokens of Qwen, and some 50 MB of memory: make one for a model.
#[derive(Clone)]
pub struct ConstraintFactory {
    parsers: Arc<ParserFactory>,
    ends: Arc<[u32]>,
    places: Arc<Places>,
}

impl std::fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("ConstraintFactory");
        f.field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl ConstraintFactory {
    /// A factory for a model whose logits are `vocab_size` numbers and whose texts end with one of `ends`. Ids without a token,
    /// which pad the logits, never come.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`] if the vocabulary can't be used.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        ends: &[u32],
    ) -> Result<Self, GrammarError> {
        if !(1..=MAX_TOKENS).contains(&vocab_size) {
            return Err(GrammarError::Tokenizer(format!(
                "expected 1 to {MAX_TOKENS} tokens, found {vocab_size}"
            )));
        }
        let known = ends.iter().filter(|id| (**id as usize) < vocab_size);
        let ends: Arc<[u32]> = known.copied().collect();
        let built = catch_unwind(AssertUnwindSafe(|| {
            let vocabulary = Vocabulary::new(tokenizer, vocab_size, &ends);
            let vocabulary: TokEnv = Arc::new(vocabulary);
            ParserFactory::new_simple(&vocabulary)
        }));
        let mut parsers = match built {
            Ok(Ok(parsers)) => parsers,
            Ok(Err(error)) => return Err(GrammarError::Tokenizer(reason(&error))),
            Err(_) => {
                let reason = "its tokens make no trie".to_owned();
                return Err(GrammarError::Tokenizer(reason));
            }
        };
        parsers.quiet();
        *parsers.limits_mut() = ParserLimits {
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            parsers: Arc::new(parsers),
            ends,
            places: Arc::default(),
        })
    }

    /// Compiles a grammar. With `after`, nothing is constrained until that token has come.
    ///
    /// # Errors
    /// [`GrammarError`] with the reason, also for a grammar that takes too long or too much memory.
    pub fn compile(
        &self,
        grammar: &Grammar,
        after: Option<u32>,
    ) -> Result<Constraint, GrammarError> {
        let (sender, receiver) = sync_channel(1);
        let (parsers, ends) = (Arc::clone(&self.parsers), Arc::clone(&self.ends));
        let place = Place::new(&self.places)?;
        // On a thread of its own: for its stack, and because nothing can stop it.
        let compiling = thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES);
        let (its_place, grammar) = (place.clone(), grammar.clone());
        let compiling = compiling.spawn(move || {
            let compiled = grammar.to_llguidance().and_then(|prepared| {
                let compiled = compile(&parsers, prepared, ends, after);
                compiled.map_err(|error| blamed(&grammar, error))
            });
            its_place.leave();
            // After the timeout nobody listens.
            let _ = sender.send(compiled);
        });
        if let Err(error) = compiling {
            place.leave();
            return Err(GrammarError::TooLarge(format!("no thread for it: {error}")));
        }
        match receiver.recv_timeout(TIMEOUT) {
            Ok(compiled) => compiled,
            Err(RecvTimeoutError::Timeout) => {
                place.give_up();
                Err(GrammarError::TooLarge(format!(
                    "it takes longer than {} s to compile",
                    TIMEOUT.as_secs()
                )))
            }
            Err(RecvTimeoutError::Disconnected) => {
                place.leave();
                Err(GrammarError::Invalid("it could not be compiled".to_owned()))
            }
        }
    }
}

fn compile(
    parsers: &ParserFactory,
    grammar: TopLevelGrammar,
    ends: Arc<[u32]>,
    after: Option<u32>,
) -> Result<Constraint, GrammarError> {
    let num_tokens = parsers.tok_env().tok_trie().vocab_size();
    let parser = parsers.create_parser_from_init_ext(
        GrammarInit::Serialized(grammar),
        Logger::new(0, 0),
        InferenceCapabilities::default(),
        parsers.limits().clone(),
    );
    let mut parser = parser.map_err(|error| GrammarError::Invalid(reason(&error)))?;
    for warning in parser.grammar_warnings() {
        tracing::debug!(warning, "a grammar");
    }
    Constraint::new(Matcher::new(Ok(parser)), num_tokens, ends, after)
}

/// The vocabulary as llguidance takes it.
struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: &Tokenizer, vocab_size: usize, ends: &[u32]) -> Self {
        let marker = TokTrie::SPECIAL_TOKEN_MARKER;
        let words: Vec<Vec<u8>> = (0..vocab_size as u32)
            .map(|id| {
                let mut bytes = tokenizer.token_bytes(id);
                // What is in no text, and so in no grammar: the marker makes it another token than the text of its name.
                let is_special = tokenizer.is_special(id) || ends.contains(&id);
                match is_special && !bytes.is_empty() {
                    true => bytes.insert(0, marker),
                    // Of a text in UTF-8 no part begins with this byte.
                    false if bytes.first() == Some(&marker) => bytes.clear(),
                    false => {}
                }
                match bytes.len() {
                    ..=MAX_TOKEN_BYTES => bytes,
                    _ => Vec::new(),
                }
            })
            .collect();
        let first_end = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first_end), &words);
        let trie = match ends.len() {
            0 | 1 => trie,
            _ => trie.with_eos_tokens(ends),
        };
        Self {
            tokenizer: tokenizer.clone(),
            trie,
        }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The tokens that the model has learnt to write a text with.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let ids = self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer.encode(text, false).unwrap_or_default()
        });
        // The tokenizer composes characters, and takes the name of a special token for the token.
        match self.trie.decode_raw(&ids) == bytes {
            true => ids,
            false => self.trie.greedy_tokenize(bytes),
        }
    }
}
