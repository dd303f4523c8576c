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

/// A window over prompt and output, against the same tokens counted one by one.
#[test]
fn penalties_look_at_the_last_tokens() {
    let prompt: Vec<u32> = (0..9).map(|i| i * i % 7).collect();
    let output: Vec<u32> = (0..12).map(|i| (i * i + 3) % 8).collect();
    let logits = logits(10);
    for window in [0, 1, 2, 5, 11, 12, 13, 20, 21, 22, 100] {
        let params = SamplingParams {
            repetition_penalty: 1.5,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            penalty_window: Some(window),
            ..SamplingParams::greedy()
        };
        let mut spare = None;
        for len in 0..=output.len() {
            let output = &output[..len];
            let text = [&prompt, output].concat();
            let held = &text[text.len().saturating_sub(window)..];
            let held_output = &output[len.saturating_sub(window)..];
            let expected: Vec<f32> = (0..10u32)
                .map(|id| {
                    let logit = logits[id as usize];
                    let count = held_output.iter().filter(|held| **held == id).count();
                    let repeated = match (held.contains(&id), logit > 0.0) {
                        (false, _) => logit,
                        (true, true) => logit / 1.5,
                        (true, false) => logit * 1.5,
                    };
                    repeated - 0.25 * count as f32 - if count > 0 { 0.5 } else { 0.0 }
                })
                .collect();
            let found = changed_logits(&params, &prompt, output, &logits);
            assert_eq!(found, expected, "window {window}, {len} tokens of output");
            if let Some((last, before)) = output.split_last() {
                let mut sampler = Sampler::new(&params, &prompt, 10);
                before.iter().for_each(|id| sampler.observe(*id));
                for reuse in [None, spare.take()] {
                    let after = sampler.after(*last, reuse);
                    let mut found = logits.clone();
                    after.clone().sample(&mut found, &[]);
                    assert_eq!(found, expected, "a copy, window {window}");
                    spare = Some(after);
                }
            }
        }
    }
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

/// Each mode against numbers worked out from the logits, greedy and drawn, with and without top-k.
#[test]
fn log_probabilities_are_of_what_the_mode_says() {
    const LEN: usize = 40;
    let raw = logits(LEN);
    let ranked = by_rank(&raw);
    let log_softmax = |logits: &[f32]| -> Vec<f32> {
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        logits.iter().map(|l| l - sum.ln() as f32).collect()
    };
    for (temperature, top_k) in [(0.0, 0), (0.5, 0), (0.5, 4)] {
        // The best one is made worse, the worst one is impossible.
        let (best, worst) = (ranked[0] as u32, ranked[LEN - 1] as u32);
        let params = SamplingParams {
            temperature,
            top_k,
            logit_bias: vec![(best, -1.0)],
            bad_words: vec![vec![worst]],
            logprobs: Some(3),
            seed: Some(1),
            ..SamplingParams::default()
        };
        let mut processed = raw.clone();
        processed[best as usize] -= 1.0;
        processed[worst as usize] = f32::NEG_INFINITY;
        if temperature > 0.0 {
            processed.iter_mut().for_each(|logit| *logit /= temperature);
        }
        if top_k > 0 {
            let kept = by_rank(&processed);
            for &id in &kept[top_k..] {
                processed[id] = f32::NEG_INFINITY;
            }
        }
        for (name, mode) in LogprobsMode::ALL {
            assert_eq!(name.parse(), Ok(mode));
            assert_eq!(mode.to_string(), name);
            let expected = match name {
                "raw_logprobs" => log_softmax(&raw),
                "raw_logits" => raw.clone(),
                "processed_logprobs" => log_softmax(&processed),
                _ => processed.clone(),
            };
            let params = SamplingParams {
                logprobs_mode: mode,
                ..params.clone()
            };
            let token = Sampler::new(&params, &[], LEN).sample(&mut raw.clone(), &[]);
            let found = token.logprobs.unwrap();
            let near = |found: f32, id: usize| (found - expected[id]).abs() < 1e-4;
            assert!(near(found.logprob, token.id as usize), "{name}: {found:?}");
            let top: Vec<usize> = found.top.iter().map(|(id, _)| *id as usize).collect();
            assert_eq!(top, by_rank(&expected)[..3], "{name}");
            assert!(
                found
                    .top
                    .iter()
                    .all(|&(id, logprob)| near(logprob, id as usize))
            );
            let of_prompt = logprobs_of(&mut raw.clone(), worst, 1, mode);
            let expected = match name.ends_with("logits") {
                true => raw.clone(),
                false => log_softmax(&raw),
            };
            assert!((of_prompt.logprob - expected[worst as usize]).abs() < 1e-4);
        }
    }
    assert!(
        "raw"
            .parse::<LogprobsMode>()
            .unwrap_err()
            .contains("raw_logits")
    );
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
