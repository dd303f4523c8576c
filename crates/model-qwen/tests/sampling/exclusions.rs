//! Tokens that may not be drawn.

use super::*;

/// Greedy tokens for the same logits at every position.
fn greedy(params: SamplingParams, logits: &[f32], num: usize) -> Vec<u32> {
    let params = SamplingParams {
        temperature: 0.0,
        ..params
    };
    let mut sampler = Sampler::new(&params, &[], logits.len());
    let has_allowed = params.allowed_token_ids.is_some();
    assert_eq!(sampler.draws_on_device(), !has_allowed);
    assert!(!sampler.takes_top());
    let mut next = || sampler.sample(&mut logits.to_vec(), &[]).id;
    (0..num).map(|_| next()).collect()
}

#[test]
fn only_allowed_tokens_are_drawn() {
    let logits = [5.0, 1.0, 4.0, 3.0, 2.0];
    let allowed = |ids: &[u32]| SamplingParams {
        allowed_token_ids: Some(ids.to_vec()),
        ..SamplingParams::default()
    };
    assert_eq!(greedy(allowed(&[4, 3]), &logits, 2), [3, 3]);
    assert_eq!(greedy(allowed(&[1, 77]), &logits, 1), [1]);
    let drawn = counts(&allowed(&[1, 4]), &logits, 400);
    assert_eq!((drawn[0], drawn[2], drawn[3]), (0, 0, 0));
    assert!(drawn[1] > 50 && drawn[4] > drawn[1], "{drawn:?}");
    // Log-probabilities are of the raw logits.
    let params = SamplingParams {
        temperature: 0.0,
        logprobs: Some(1),
        ..allowed(&[3])
    };
    let mut sampler = Sampler::new(&params, &[], logits.len());
    let token = sampler.sample(&mut logits.to_vec(), &[]);
    let logprobs = token.logprobs.unwrap();
    let expected = softmax(&logits, 1.0)[3].ln() as f32;
    assert!((logprobs.logprob - expected).abs() < 1e-5);
    assert_eq!((token.id, logprobs.top[0].0), (3, 0));
}

#[test]
fn the_last_token_of_a_bad_word_does_not_follow_the_others() {
    let logits = [5.0, 1.0, 4.0, 3.0];
    let bad = |words: &[&[u32]]| SamplingParams {
        bad_words: words.iter().map(|word| word.to_vec()).collect(),
        ..SamplingParams::default()
    };
    assert_eq!(greedy(bad(&[&[0]]), &logits, 2), [2, 2]);
    // After one 0 no second one; after 0 2 no 0 either.
    assert_eq!(
        greedy(bad(&[&[0, 0], &[0, 2, 0]]), &logits, 5),
        [0, 2, 2, 0, 2]
    );
}

#[test]
fn empty_and_unknown_exclusions_are_refused() {
    let params = |allowed: Option<Vec<u32>>, bad_words| SamplingParams {
        allowed_token_ids: allowed,
        bad_words,
        ..SamplingParams::default()
    };
    for (params, param) in [
        (params(Some(vec![]), vec![]), "allowed_token_ids"),
        (params(Some(vec![9]), vec![]), "allowed_token_ids"),
        (params(None, vec![vec![]]), "bad_words"),
        (params(None, vec![vec![1, 9]]), "bad_words"),
    ] {
        assert_eq!(params.validate_for_vocab(9).unwrap_err().param, param);
    }
}
