//! Penalties, bans, log-probabilities, ties and bad values.

use super::*;

/// The logits after all changes, seen through greedy choices: returns the changed logits.
fn changed_logits(
    params: &SamplingParams,
    prompt: &[u32],
    output: &[u32],
    logits: &[f32],
) -> Vec<f32> {
    let mut sampler = Sampler::new(params, prompt, logits.len());
    for &id in output {
        sampler.observe(id);
    }
    let mut changed = logits.to_vec();
    sampler.sample(&mut changed, &[]);
    changed
}

#[test]
fn penalties_by_hand() {
    let logits = [2.0, -1.0, 0.5, 3.0, 0.0];
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let prompt = [0, 1];
    let output = [3, 3, 1];

    // Prompt and output: positive logits are divided, negative ones multiplied.
    let repetition = SamplingParams {
        repetition_penalty: 2.0,
        ..greedy.clone()
    };
    let expected = [1.0, -2.0, 0.5, 1.5, 0.0];
    assert_eq!(
        changed_logits(&repetition, &prompt, &output, &logits),
        expected
    );

    // Output only, once.
    let presence = SamplingParams {
        presence_penalty: 0.5,
        ..greedy.clone()
    };
    let expected = [2.0, -1.5, 0.5, 2.5, 0.0];
    assert_eq!(
        changed_logits(&presence, &prompt, &output, &logits),
        expected
    );

    // Output only, per occurrence.
    let frequency = SamplingParams {
        frequency_penalty: 0.25,
        ..greedy.clone()
    };
    let expected = [2.0, -1.25, 0.5, 2.5, 0.0];
    assert_eq!(
        changed_logits(&frequency, &prompt, &output, &logits),
        expected
    );

    // Bias first, then repetition, then the two others.
    let all = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(1, 5.0), (2, -1.0), (3, 1.0), (99, 1.0)],
        ..greedy
    };
    let expected = [
        1.0,
        4.0 / 2.0 - 0.25 - 0.5,
        -0.5,
        4.0 / 2.0 - 0.5 - 0.5,
        0.0,
    ];
    assert_eq!(changed_logits(&all, &prompt, &output, &logits), expected);
}

#[test]
fn sampled_tokens_count_for_penalties() {
    let params = SamplingParams {
        temperature: 0.0,
        frequency_penalty: 0.6,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(&params, &[0], 3);
    let ids: Vec<u32> = (0..6)
        .map(|_| sampler.sample(&mut [2.0, 1.5, 0.0], &[]).id)
        .collect();
    // 2.0, 1.4, 0.8, 0.2 against 1.5, 0.9, 0.3.
    assert_eq!(ids, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn banned_tokens_are_never_drawn() {
    let logits = logits(50);
    let banned = &by_rank(&logits)[..3];
    let banned: Vec<u32> = banned.iter().map(|&id| id as u32).chain([1000]).collect();
    for temperature in [0.0, 1.0] {
        let params = SamplingParams {
            temperature,
            seed: Some(1),
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(&params, &[], 50);
        for _ in 0..1000 {
            let id = sampler.sample(&mut logits.clone(), &banned).id;
            assert!(!banned.contains(&id));
        }
    }
}

#[test]
fn log_probabilities_are_of_the_raw_logits() {
    let raw = logits(400);
    let exact = softmax(&raw, 1.0);
    let ranked = by_rank(&raw);
    let params = SamplingParams {
        temperature: 0.5,
        top_k: 10,
        repetition_penalty: 1.7,
        presence_penalty: 1.0,
        logit_bias: vec![(ranked[5] as u32, 50.0)],
        logprobs: Some(7),
        seed: Some(3),
        ..SamplingParams::default()
    };
    let prompt: Vec<u32> = (0..400).collect();
    let token = Sampler::new(&params, &prompt, 400).sample(&mut raw.clone(), &[]);
    assert_eq!(token.id, ranked[5] as u32);
    let logprobs = token.logprobs.unwrap();
    assert!((f64::from(logprobs.logprob) - exact[ranked[5]].ln()).abs() < 1e-5);
    let top: Vec<usize> = logprobs.top.iter().map(|(id, _)| *id as usize).collect();
    assert_eq!(top, ranked[..7]);
    for (id, logprob) in logprobs.top {
        assert!((f64::from(logprob) - exact[id as usize].ln()).abs() < 1e-5);
    }
    let sample = |logprobs| {
        let params = SamplingParams {
            logprobs,
            ..params.clone()
        };
        let token = Sampler::new(&params, &prompt, 400).sample(&mut raw.clone(), &[]);
        assert_eq!(token.id, ranked[5] as u32);
        token.logprobs
    };
    assert_eq!(sample(None), None);
    let chosen = sample(Some(0)).unwrap();
    assert!(chosen.top.is_empty());
    assert!((f64::from(chosen.logprob) - exact[ranked[5]].ln()).abs() < 1e-5);
}

#[test]
fn seeds_reproduce() {
    let logits = logits(1000);
    let draw = |seed| {
        let params = SamplingParams {
            seed,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(&params, &[], 1000);
        (0..50)
            .map(|_| sampler.sample(&mut logits.clone(), &[]).id)
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(Some(1)), draw(Some(1)));
    assert_ne!(draw(Some(1)), draw(Some(2)));
    assert_ne!(draw(None), draw(None));
}

#[test]
fn greedy_takes_the_lowest_id_of_a_tie() {
    let params = SamplingParams::greedy();
    let greedy = |logits: &[f32], banned: &[u32]| {
        let mut sampler = Sampler::new(&params, &[], logits.len());
        sampler.sample(&mut logits.to_vec(), banned).id
    };
    assert_eq!(greedy(&[1.0, 5.0, 5.0, 5.0], &[]), 1);
    assert_eq!(greedy(&[-0.0, 0.0], &[]), 0);
    let mut long = vec![0.0; 1000];
    long[333] = 1.0;
    long[777] = 1.0;
    assert_eq!(greedy(&long, &[]), 333);
    assert_eq!(greedy(&long, &[333]), 777);
}

#[test]
fn hostile_logits_are_handled() {
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    let modes = [
        SamplingParams::greedy(),
        SamplingParams::default(),
        SamplingParams {
            top_k: 2,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: 0.5,
            ..SamplingParams::default()
        },
        SamplingParams {
            min_p: 0.5,
            logprobs: Some(3),
            ..SamplingParams::default()
        },
        SamplingParams {
            temperature: 1e-5,
            repetition_penalty: 0.5,
            frequency_penalty: -2.0,
            ..SamplingParams::default()
        },
        SamplingParams {
            temperature: f32::MAX,
            ..SamplingParams::default()
        },
    ];
    for params in modes {
        let sample = |logits: &[f32], banned: &[u32]| {
            let mut sampler = Sampler::new(&params, &[0, 1, 2], logits.len());
            sampler.observe(1);
            sampler.sample(&mut logits.to_vec(), banned)
        };
        // NaN counts as impossible, +inf beats everything.
        assert_eq!(sample(&[NAN, 1.0, -INF], &[]).id, 1, "{params:?}");
        assert_eq!(sample(&[NAN, NAN, -INF], &[0]).id, 1, "{params:?}");
        assert_eq!(sample(&[-INF, -INF], &[]).id, 0, "{params:?}");
        assert_eq!(sample(&[1.0, 2.0], &[0, 1]).id, 0, "{params:?}");
        assert_eq!(sample(&[], &[]).id, 0, "{params:?}");
        if params.temperature < 1e30 && params.repetition_penalty == 1.0 {
            assert_eq!(sample(&[1.0, 2.0, INF, 3.0], &[]).id, 2, "{params:?}");
            assert_eq!(sample(&[f32::MAX, -f32::MAX], &[]).id, 0, "{params:?}");
        }
    }
}

proptest! {
    #[test]
    fn support_is_never_left(
        logits in proptest::collection::vec(-20.0f32..20.0, 1..300),
        temperature in 0.05f32..5.0,
        top_k in 0usize..40,
        top_p in 0.05f32..1.0,
        min_p in 0.0f32..1.0,
        seed: u64,
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed: Some(seed), ..SamplingParams::default() };
        let ranked = by_rank(&logits);
        let k = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
        let among: Vec<usize> = ranked.iter().copied().filter(|&id| logits[id] >= logits[ranked[k - 1]]).collect();
        // A little more, for rounding at the edge.
        let kept = nucleus(&logits, f64::from(temperature), f64::from(top_p) + 1e-5, &among);
        let id = Sampler::new(&params, &[], logits.len()).sample(&mut logits.clone(), &[]).id as usize;
        prop_assert!(kept.contains(&id));
        let ratio = (f64::from(logits[id] - logits[ranked[0]]) / f64::from(temperature)).exp();
        prop_assert!(ratio >= f64::from(min_p) - 1e-5);
    }
}

#[test]
fn ranges_are_checked() {
    type Change = fn(&mut SamplingParams, f32);
    let params: [(&str, Change, &[f32], &[f32]); 7] = [
        (
            "temperature",
            |p, x| p.temperature = x,
            &[0.0, 2.0, 100.0],
            &[-0.1],
        ),
        (
            "top_p",
            |p, x| p.top_p = x,
            &[1e-6, 1.0],
            &[0.0, -0.5, 1.01],
        ),
        ("min_p", |p, x| p.min_p = x, &[0.0, 1.0], &[-0.1, 1.1]),
        (
            "repetition_penalty",
            |p, x| p.repetition_penalty = x,
            &[0.1, 5.0],
            &[0.0, -1.0],
        ),
        (
            "presence_penalty",
            |p, x| p.presence_penalty = x,
            &[-2.0, 2.0],
            &[-2.1, 2.1],
        ),
        (
            "frequency_penalty",
            |p, x| p.frequency_penalty = x,
            &[-2.0, 2.0],
            &[-2.1, 2.1],
        ),
        (
            "logit_bias",
            |p, x| p.logit_bias = vec![(3, x)],
            &[-100.0, 100.0],
            &[-101.0, 101.0],
        ),
    ];
    for (name, change, good, bad) in params {
        let check = |x: f32| {
            let mut params = SamplingParams::default();
            change(&mut params, x);
            params.validate()
        };
        for &x in good {
            assert_eq!(check(x), Ok(()), "{name} = {x}");
        }
        for &x in bad.iter().chain(&[f32::NAN, f32::INFINITY]) {
            assert_eq!(check(x).unwrap_err().param, name, "{name} = {x}");
        }
    }
    let biased = SamplingParams {
        logit_bias: vec![(3, 1.0)],
        ..SamplingParams::default()
    };
    assert!(biased.validate_for_vocab(4).is_ok());
    let message = biased.validate_for_vocab(3).unwrap_err().to_string();
    assert!(
        message.contains("logit_bias") && message.contains('3'),
        "{message}"
    );
}
