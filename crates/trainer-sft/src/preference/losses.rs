//! The losses of answers that are compared, and how fast they grow: plain functions of log-probabilities.

use crate::config::LossType;

/// How much likelier an answer is than under the reference, and its length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Compared {
    /// Sum over its tokens of log p - log p of the reference.
    pub(super) ratio: f64,
    /// Its tokens.
    pub(super) num_tokens: usize,
}

/// A loss, and its derivatives by the log-probabilities of the chosen answer and of the rejected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PairLoss {
    pub(super) loss: f64,
    pub(super) by_chosen: f64,
    pub(super) by_rejected: f64,
}

/// The loss of DPO for one pair; `smoothing` is the part of pairs that are the wrong way round.
pub(super) fn dpo(
    kind: LossType,
    beta: f64,
    smoothing: f64,
    (chosen, rejected): (Compared, Compared),
) -> PairLoss {
    let x = beta * (chosen.ratio - rejected.ratio);
    // For the losses of the difference alone: the loss, and its derivative by x.
    let of_difference = |loss: f64, slope: f64| PairLoss {
        loss,
        by_chosen: beta * slope,
        by_rejected: -beta * slope,
    };
    match kind {
        // A configuration with one of the other methods' losses is refused.
        LossType::Sigmoid | LossType::Grpo | LossType::DrGrpo | LossType::Dapo => of_difference(
            -(1.0 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x),
            -(1.0 - smoothing) * sigmoid(-x) + smoothing * sigmoid(x),
        ),
        LossType::Robust => {
            let scale = 1.0 - 2.0 * smoothing;
            of_difference(
                (-(1.0 - smoothing) * log_sigmoid(x) + smoothing * log_sigmoid(-x)) / scale,
                (-(1.0 - smoothing) * sigmoid(-x) - smoothing * sigmoid(x)) / scale,
            )
        }
        LossType::Hinge => of_difference((1.0 - x).max(0.0), if x < 1.0 { -1.0 } else { 0.0 }),
        LossType::Ipo => {
            let mean = |answer: Compared| answer.ratio / answer.num_tokens.max(1) as f64;
            let distance = mean(chosen) - mean(rejected) - 1.0 / (2.0 * beta);
            let by = |answer: Compared| 2.0 * distance / answer.num_tokens.max(1) as f64;
            PairLoss {
                loss: distance * distance,
                by_chosen: by(chosen),
                by_rejected: -by(rejected),
            }
        }
    }
}

/// What ORPO makes of the mean log-probabilities of a pair's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Odds {
    /// log of the odds of the chosen answer over those of the rejected one.
    pub(super) log_odds: f64,
    /// log σ of that.
    pub(super) ratio: f64,
    /// Derivatives of `ratio`.
    pub(super) by_chosen: f64,
    pub(super) by_rejected: f64,
}

/// The comparison of ORPO.
pub(super) fn odds(chosen: f64, rejected: f64) -> Odds {
    // An answer that is certain has infinite odds.
    let [chosen, rejected] = [chosen, rejected].map(|mean| mean.min(-1e-9));
    let log_odds = (chosen - rejected) - (log_1m_exp(chosen) - log_1m_exp(rejected));
    let slope = sigmoid(-log_odds);
    Odds {
        log_odds,
        ratio: log_sigmoid(log_odds),
        by_chosen: slope / -chosen.exp_m1(),
        by_rejected: slope / rejected.exp_m1(),
    }
}

/// The loss of KTO for one answer, and its derivative by the answer's log-probability. `baseline` is how much likelier any
/// answer is than under the reference.
pub(super) fn kto(beta: f64, ratio: f64, baseline: f64, is_wanted: bool) -> (f64, f64) {
    let sign = if is_wanted { 1.0 } else { -1.0 };
    let value = sigmoid(sign * beta * (ratio - baseline));
    (1.0 - value, -sign * beta * value * (1.0 - value))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// log(1 - exp(x)) of an x below 0.
fn log_1m_exp(x: f64) -> f64 {
    match x < -std::f64::consts::LN_2 {
        true => (-x.exp()).ln_1p(),
        false => (-x.exp_m1()).ln(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: f64 = 1e-5;

    fn close(name: &str, found: f64, expected: f64) {
        let tolerance = 1e-6 * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() < tolerance,
            "{name}: {found}, {expected}"
        );
    }

    #[test]
    fn derivatives_of_pairs_are_those_of_the_losses() {
        use LossType::{Hinge, Ipo, Robust, Sigmoid};
        let answer = |ratio, num_tokens| Compared { ratio, num_tokens };
        for (kind, smoothing) in [
            (Sigmoid, 0.0),
            (Sigmoid, 0.2),
            (Robust, 0.1),
            (Hinge, 0.0),
            (Ipo, 0.0),
        ] {
            for (chosen, rejected) in [(1.5, -0.5), (-3.0, 4.0), (40.0, -40.0), (0.0, 0.0)] {
                let loss = |chosen, rejected| {
                    dpo(
                        kind,
                        0.3,
                        smoothing,
                        (answer(chosen, 7), answer(rejected, 4)),
                    )
                };
                let at = loss(chosen, rejected);
                let slope = |up: PairLoss, down: PairLoss| (up.loss - down.loss) / (2.0 * STEP);
                let name = format!("{kind:?} {smoothing} {chosen} {rejected}");
                let by_chosen = slope(loss(chosen + STEP, rejected), loss(chosen - STEP, rejected));
                close(&name, at.by_chosen, by_chosen);
                let by_rejected =
                    slope(loss(chosen, rejected + STEP), loss(chosen, rejected - STEP));
                close(&name, at.by_rejected, by_rejected);
            }
        }
    }

    #[test]
    fn conservative_dpo_wants_a_difference_that_is_not_infinite() {
        let answer = |ratio| Compared {
            ratio,
            num_tokens: 1,
        };
        let slope = |x: f64| dpo(LossType::Sigmoid, 1.0, 0.1, (answer(x), answer(0.0))).by_chosen;
        // The lowest loss is where σ(x) = 0.9.
        let best = (0.9f64 / 0.1).ln();
        close("at the best", slope(best), 0.0);
        assert!(slope(best - 1.0) < 0.0 && slope(best + 1.0) > 0.0);
    }

    #[test]
    fn derivatives_of_odds_and_verdicts_are_those_of_the_losses() {
        for (chosen, rejected) in [(-0.3, -2.0), (-5.0, -1e-3), (-12.0, -12.0)] {
            let at = odds(chosen, rejected);
            let slope = |up: Odds, down: Odds| (up.ratio - down.ratio) / (2.0 * STEP);
            let by_chosen = slope(odds(chosen + STEP, rejected), odds(chosen - STEP, rejected));
            close("chosen", at.by_chosen, by_chosen);
            let by_rejected = slope(odds(chosen, rejected + STEP), odds(chosen, rejected - STEP));
            // A step is a hundredth of the smallest of these numbers.
            assert!((at.by_rejected - by_rejected).abs() < 1e-3 * by_rejected.abs().max(1.0));
        }
        for is_wanted in [true, false] {
            for ratio in [-4.0, 0.3, 9.0] {
                let loss = |ratio| kto(0.4, ratio, 0.5, is_wanted).0;
                let slope = (loss(ratio + STEP) - loss(ratio - STEP)) / (2.0 * STEP);
                close("kto", kto(0.4, ratio, 0.5, is_wanted).1, slope);
            }
        }
        let certain = odds(0.0, -1.0);
        assert!(certain.ratio.is_finite() && certain.by_chosen.is_finite());
    }
}
