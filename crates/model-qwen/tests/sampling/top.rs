//! Sampling from the largest logits: the same tokens as from all of them, or no answer.

use model_qwen::{Sampler, SamplingParams, TopLogits};

const VOCAB: usize = 3000;

/// Between -6 and 6, few of them large.
pub(crate) fn random_logits(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len)
        .map(|_| 4.0 * (uniform() + uniform() + uniform() - 1.5))
        .collect()
}

/// What a device would find of `num` logits at least.
pub(crate) fn top(logits: &[f32], num: usize, scale: f32) -> TopLogits {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (largest, bound) = (sorted[0], sorted[num]);
    let weights = logits
        .iter()
        .map(|l| f64::from((l - largest) * scale).exp());
    TopLogits {
        entries: (0..)
            .zip(logits.iter().copied())
            .filter(|(_, logit)| *logit > bound)
            .collect(),
        bound,
        total: weights.sum(),
    }
}

/// Draws 60 tokens both ways; how often the largest logits decide.
fn compare(params: &SamplingParams, banned: &[u32]) -> usize {
    let prompt: Vec<u32> = (0..200).map(|i| i * 13 % VOCAB as u32).collect();
    let mut whole = Sampler::new(params, &prompt, VOCAB);
    let mut by_top = whole.clone();
    let mut decided = 0;
    for step in 0..60 {
        let logits = random_logits(VOCAB, 77 + step);
        let scale = by_top.scale();
        let found = by_top.sample_top(&top(&logits, 64, scale), banned);
        decided += usize::from(found.is_some());
        let expected = whole.sample(&mut logits.clone(), banned);
        let found = match found {
            Some(found) => found,
            None => by_top.sample(&mut logits.clone(), banned),
        };
        assert_eq!(found, expected, "step {step} of {params:?}");
    }
    decided
}

fn params() -> SamplingParams {
    SamplingParams {
        temperature: 0.7,
        seed: Some(3),
        ..SamplingParams::default()
    }
}

#[test]
fn the_largest_logits_give_the_same_tokens() {
    let greedy = SamplingParams {
        temperature: 0.0,
        ..params()
    };
    let penalties = SamplingParams {
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        ..params()
    };
    let windowed = SamplingParams {
        penalty_window: Some(16),
        top_k: 20,
        ..penalties.clone()
    };
    assert!(compare(&windowed, &[]) > 0);
    let always = [
        greedy.clone(),
        SamplingParams {
            temperature: 0.0,
            ..penalties.clone()
        },
        SamplingParams {
            top_k: 20,
            top_p: 0.8,
            ..params()
        },
        SamplingParams {
            top_k: 20,
            top_p: 0.8,
            min_p: 0.05,
            ..penalties.clone()
        },
        SamplingParams {
            min_p: 0.2,
            ..params()
        },
    ];
    for params in always {
        assert_eq!(compare(&params, &[]), 60, "{params:?}");
    }
    // Banned tokens may be the best ones.
    let banned: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 2 == 0).collect();
    assert_eq!(compare(&greedy, &banned), 60);
}

#[test]
fn there_is_no_answer_where_other_logits_count() {
    let unlimited = params();
    assert_eq!(compare(&unlimited, &[]), 0, "temperature alone");
    let wide = SamplingParams {
        top_k: 200,
        ..params()
    };
    assert_eq!(compare(&wide, &[]), 0, "more than there are");
    let logprobs = SamplingParams {
        temperature: 0.0,
        logprobs: Some(2),
        ..params()
    };
    assert_eq!(compare(&logprobs, &[]), 0, "log-probabilities");
    let raised = SamplingParams {
        top_k: 20,
        presence_penalty: -0.5,
        ..params()
    };
    assert_eq!(compare(&raised, &[]), 0, "raised logits");
    let sum = SamplingParams {
        top_p: 0.9,
        repetition_penalty: 1.1,
        ..params()
    };
    assert_eq!(compare(&sum, &[]), 0, "a sum over penalised tokens");
}

#[test]
fn top_p_is_decided_where_enough_weight_is_at_the_top() {
    let cold = SamplingParams {
        temperature: 0.2,
        top_p: 0.9,
        ..params()
    };
    let decided = compare(&cold, &[]);
    assert!(decided > 20, "{decided}");
    let flat = SamplingParams {
        temperature: 3.0,
        ..cold
    };
    assert_eq!(compare(&flat, &[]), 0);
}
