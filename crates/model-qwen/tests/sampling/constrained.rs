//! Sampling under a grammar: the same tokens whichever logits are at hand, all of them the grammar's.

use std::path::Path;

use model_qwen::{ConstraintFactory, Grammar, Tokenizer};

use super::*;
use crate::top::{random_logits, top};

fn tokenizer() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/model");
    Tokenizer::from_dir(&dir).unwrap()
}

fn words() -> Grammar {
    Grammar::Regex("begin: [a-z]{2,6}( [a-z]{2,6}|: [0-9]{2}){3,60}".to_owned())
}

/// Draws under a grammar from all logits, and from as few as are needed; how often which were enough. The largest ones are those
/// of the model, or those that are left of them, as a device finds them.
fn compare(params: &SamplingParams, banned: &[u32], is_masked: bool) -> [usize; 4] {
    let tokenizer = tokenizer();
    let vocab = tokenizer.vocab_size();
    let factory = ConstraintFactory::new(&tokenizer, vocab, &[0, 2]).unwrap();
    let constraint = factory.compile(&words(), None).unwrap();
    let sampler = Sampler::new(params, &[300, 301, 400], vocab);
    let mut whole = sampler.constrained(Some(constraint));
    let mut by_few = whole.clone();
    let mut used = [0; 4];
    for step in 0..120 {
        if whole.constraint().unwrap().is_finished() {
            break;
        }
        let logits = random_logits(vocab, 11 + step);
        let expected = whole.sample(&mut logits.clone(), banned);
        let scale = by_few.scale();
        let mut left = logits.clone();
        if let Some(mask) = by_few.mask().filter(|_| is_masked) {
            mask.apply(&mut left);
        }
        let (way, found) = if let Some(only) = by_few.sample_only() {
            (0, only)
        } else if let Some(ids) = by_few.few_allowed(200).filter(|_| !is_masked) {
            let mut few: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
            (1, by_few.sample_few(&ids, &mut few, banned))
        } else if let Some(token) = by_few.sample_top(&top(&left, 600, scale), banned) {
            (2, token)
        } else {
            (3, by_few.sample(&mut logits.clone(), banned))
        };
        used[way] += 1;
        assert_eq!(found, expected, "step {step} of {params:?}");
        assert_eq!(whole.constraint().unwrap().error(), None);
    }
    used
}

#[test]
fn few_logits_give_the_tokens_of_all() {
    let params = |temperature: f32, top_k: usize, top_p: f32| SamplingParams {
        temperature,
        top_k,
        top_p,
        seed: Some(9),
        ..SamplingParams::default()
    };
    let mut all = [0; 4];
    for params in [
        params(0.0, 0, 1.0),
        params(1.0, 0, 1.0),
        params(1.0, 5, 1.0),
        params(0.8, 20, 0.7),
        params(1.0, 0, 0.6),
        SamplingParams {
            min_p: 0.2,
            ..params(1.3, 0, 1.0)
        },
        SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.4,
            ..params(0.0, 0, 1.0)
        },
        SamplingParams {
            logit_bias: vec![(300, 5.0), (70, -100.0)],
            bad_words: vec![vec![74]],
            ..params(1.0, 4, 1.0)
        },
        SamplingParams {
            logprobs: Some(2),
            ..params(1.0, 0, 0.9)
        },
    ] {
        for banned in [&[][..], &[0, 2, 66]] {
            let used = compare(&params, banned, false);
            all.iter_mut()
                .zip(used)
                .for_each(|(all, used)| *all += used);
            let masked = compare(&params, banned, true);
            // Whatever is left decides, if the largest logits may.
            let is_greedy = params.temperature == 0.0;
            if banned.is_empty() && (is_greedy || params.top_k > 0) && params.logit_bias.is_empty()
            {
                assert_eq!(masked[3], 0, "{params:?}");
            }
        }
    }
    assert!(all.iter().all(|used| *used > 0), "{all:?}");
}

/// What the request's other fields exclude comes all the same where the grammar has nothing else.
#[test]
fn the_grammar_wins() {
    let tokenizer = tokenizer();
    let vocab = tokenizer.vocab_size();
    let factory = ConstraintFactory::new(&tokenizer, vocab, &[0, 2]).unwrap();
    let choice = Grammar::Choice(vec!["yes".to_owned()]);
    let constraint = factory.compile(&choice, None).unwrap();
    for params in [
        SamplingParams {
            allowed_token_ids: Some(vec![5]),
            ..SamplingParams::default()
        },
        SamplingParams {
            logprobs: Some(0),
            logit_bias: (0..vocab as u32).map(|id| (id, -100.0)).collect(),
            ..SamplingParams::default()
        },
    ] {
        let sampler = Sampler::new(&params, &[], vocab);
        let mut sampler = sampler.constrained(Some(constraint.clone()));
        let mut ids = Vec::new();
        let banned: Vec<u32> = (0..vocab as u32).collect();
        while !sampler.constraint().unwrap().is_finished() {
            let mut logits = vec![f32::NAN; vocab];
            ids.push(sampler.sample(&mut logits, &banned).id);
        }
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "yes");
    }
}

/// Who draws ahead of a token knows whether there may be a mask then.
#[test]
fn what_may_be_constrained_is_known_ahead() {
    let tokenizer = tokenizer();
    let vocab = tokenizer.vocab_size();
    let factory = ConstraintFactory::new(&tokenizer, vocab, &[0, 2]).unwrap();
    let sampler = Sampler::new(&SamplingParams::default(), &[], vocab);
    let active = factory.compile(&words(), None).unwrap();
    let free = |sampler: &Sampler| [0, 1].map(|ahead| !sampler.may_be_constrained(ahead));
    assert_eq!(free(&sampler), [true, true]);
    let active = sampler.clone().constrained(Some(active));
    assert_eq!(free(&active), [false, false]);
    let later = factory.compile(&words(), Some(77)).unwrap();
    let mut later = sampler.constrained(Some(later));
    // Before the grammar everything may come.
    assert_eq!(free(&later), [true, false]);
    assert!(later.mask().is_none());
    later.observe(77);
    assert_eq!(free(&later), [false, false]);
    assert!(later.mask().is_some_and(|mask| mask.num_allowed() > 0));
}

/// A model that would end its answer within reasoning ends the reasoning, whichever logits are at hand.
#[test]
fn an_end_before_the_grammar_is_the_token_that_the_grammar_comes_after() {
    let tokenizer = tokenizer();
    let vocab = tokenizer.vocab_size();
    let factory = ConstraintFactory::new(&tokenizer, vocab, &[0, 2]).unwrap();
    let mut logits = vec![0.0; vocab];
    logits[2] = 9.0;
    for num_top in [None, Some(1)] {
        let params = SamplingParams {
            logprobs: num_top,
            ..SamplingParams::greedy()
        };
        let constraint = factory.compile(&words(), Some(77)).unwrap();
        let sampler = Sampler::new(&params, &[], vocab).constrained(Some(constraint));
        let mut by_all = sampler.clone();
        let token = by_all.sample(&mut logits.clone(), &[]);
        assert_eq!(token.id, 77);
        // The log-probability is that of the token that comes.
        assert!(
            token
                .logprobs
                .is_none_or(|logprobs| logprobs.logprob < -9.0)
        );
        assert!(by_all.is_constrained());
        // Where an end is banned, the answer goes on.
        assert_ne!(sampler.clone().sample(&mut logits.clone(), &[0, 2]).id, 77);
        if num_top.is_none() {
            let mut by_top = sampler.clone();
            let token = by_top.sample_top(&top(&logits, 5, 1.0), &[]).unwrap();
            assert_eq!(token.id, 77);
            assert!(by_top.is_constrained());
        }
    }
}
