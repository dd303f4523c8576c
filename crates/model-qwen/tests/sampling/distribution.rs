//! Temperatures and supports.

use super::*;

#[test]
fn temperatures() {
    for n in [2, 100, 2000] {
        let logits = logits(n);
        for temperature in [0.3, 1.0, 2.5] {
            let params = SamplingParams {
                temperature,
                ..SamplingParams::default()
            };
            check_distribution(&params, &logits, &softmax(&logits, f64::from(temperature)));
        }
    }
}

#[test]
fn top_k_keeps_k() {
    let logits = logits(1000);
    let kept: BTreeSet<usize> = by_rank(&logits)[..20].iter().copied().collect();
    let params = SamplingParams {
        top_k: 20,
        temperature: 1.5,
        ..SamplingParams::default()
    };
    check_distribution(&params, &logits, &restricted(&logits, 1.5, &kept));
}

#[test]
fn top_k_keeps_ties() {
    // transformers and vLLM drop what is below the k-th value; two tokens tie with it.
    let logits = [1.0, 3.0, 2.0, 2.0, 0.0, 2.0];
    let params = SamplingParams {
        top_k: 2,
        ..SamplingParams::default()
    };
    let kept = BTreeSet::from([1, 2, 3, 5]);
    check_distribution(&params, &logits, &restricted(&logits, 1.0, &kept));
}

#[test]
fn top_p_keeps_the_nucleus() {
    let logits = logits(1000);
    let ranked = by_rank(&logits);
    for p in [0.1f32, 0.5, 0.9] {
        let params = SamplingParams {
            top_p: p,
            temperature: 0.8,
            ..SamplingParams::default()
        };
        let kept = nucleus(&logits, f64::from(0.8f32), f64::from(p), &ranked);
        assert!(kept.len() > 1 && kept.len() < 1000);
        let exact = restricted(&logits, f64::from(0.8f32), &kept);
        check_distribution(&params, &logits, &exact);
    }
}

#[test]
fn top_p_keeps_at_least_one_and_ends_at_p() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
    for (p, size) in [
        (1e-6, 1),
        (0.49, 1),
        (0.51, 2),
        (0.74, 2),
        (0.76, 3),
        (0.99, 4),
        (1.0, 4),
    ] {
        let params = SamplingParams {
            top_p: p,
            ..SamplingParams::default()
        };
        let drawn = counts(&params, &logits, 2000);
        let expected: Vec<bool> = (0..4).map(|id| id < size).collect();
        let support: Vec<bool> = drawn.iter().map(|&count| count > 0).collect();
        assert_eq!(support, expected, "top_p {p}");
    }
}

#[test]
fn top_p_takes_its_share_of_what_top_k_left() {
    let logits = logits(500);
    let ranked = by_rank(&logits);
    let params = SamplingParams {
        top_k: 50,
        top_p: 0.7,
        ..SamplingParams::default()
    };
    let kept = nucleus(&logits, 1.0, f64::from(0.7f32), &ranked[..50]);
    assert!(kept.len() < 50);
    check_distribution(&params, &logits, &restricted(&logits, 1.0, &kept));
}

#[test]
fn min_p_keeps_what_is_likely_enough() {
    let logits = logits(500);
    let exact = softmax(&logits, 1.0);
    let best = exact.iter().copied().fold(0.0, f64::max);
    let kept: BTreeSet<usize> = (0..500).filter(|&i| exact[i] >= 0.1 * best).collect();
    let params = SamplingParams {
        min_p: 0.1,
        ..SamplingParams::default()
    };
    check_distribution(&params, &logits, &restricted(&logits, 1.0, &kept));
}

#[test]
fn one_candidate_leaves_no_choice() {
    let logits = logits(300);
    let best = by_rank(&logits)[0];
    for params in [
        SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        SamplingParams {
            temperature: 9e-6,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_k: 1,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: 1e-4,
            ..SamplingParams::default()
        },
        SamplingParams {
            min_p: 1.0,
            ..SamplingParams::default()
        },
    ] {
        assert_eq!(counts(&params, &logits, 100)[best], 100, "{params:?}");
    }
}
