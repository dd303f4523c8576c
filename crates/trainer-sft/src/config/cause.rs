//! Which setting a run has most likely diverged from.

use super::{Config, Method};

/// A setting that makes steps larger, or numbers too large to compute with.
struct Suspect {
    /// As the command line has it.
    flag: &'static str,
    value: f64,
    usual: f64,
    /// How many times the usual value is still usual, up and down.
    up: f64,
    down: f64,
}

impl Suspect {
    /// How far beyond the usual the value is, in powers of ten; 0 or less where it is usual.
    fn excess(&self) -> f64 {
        let times = (self.value / self.usual).abs().log10();
        (times - self.up.log10()).max(-times - self.down.log10())
    }
}

impl Config {
    /// The likely cause of a loss that is none, and what to try, as a part of a sentence.
    pub(crate) fn likely_cause(&self) -> String {
        let worst = self.suspects().into_iter().max_by(|a, b| {
            let (a, b) = (a.excess(), b.excess());
            a.total_cmp(&b)
        });
        if let Some(worst) = worst.filter(|worst| worst.excess() > 0.0) {
            let Suspect {
                flag, value, usual, ..
            } = worst;
            if let ("lora-alpha", Some(folder)) = (flag, &self.run.adapter) {
                return format!(
                    "the likely cause is `lora_alpha` {} of the adapter in {}, where {} is usual: try a smaller --learning-rate, \
                     or start from another adapter",
                    short(value),
                    folder.display(),
                    short(usual)
                );
            }
            return format!(
                "the likely cause is --{flag} {}, where {} is usual: try a value nearer to that",
                short(value),
                short(usual)
            );
        }
        match self.optimizer.max_grad_norm {
            0.0 => {
                "the likely cause is --max-grad-norm 0, which does not limit a step: leave it out, or try a smaller \
                 --learning-rate"
                    .to_owned()
            }
            _ => "try a smaller --learning-rate".to_owned(),
        }
    }

    fn suspects(&self) -> Vec<Suspect> {
        let (optimizer, lora, method) = (&self.optimizer, &self.lora, &self.method);
        let suspect = |flag, value, usual, up, down| Suspect {
            flag,
            value,
            usual,
            up,
            down,
        };
        const NEVER: f64 = f64::INFINITY;
        let mut usual = self.clone();
        usual.optimizer.learning_rate = None;
        let mut all = vec![
            suspect(
                "learning-rate",
                self.learning_rate(),
                usual.learning_rate(),
                9.0,
                NEVER,
            ),
            suspect(
                "weight-decay",
                optimizer.weight_decay.max(f64::MIN_POSITIVE),
                0.1,
                9.0,
                NEVER,
            ),
        ];
        if optimizer.max_grad_norm > 0.0 {
            all.push(suspect(
                "max-grad-norm",
                optimizer.max_grad_norm,
                1.0,
                100.0,
                NEVER,
            ));
        }
        let alpha = suspect("neftune-noise-alpha", 0.0, 5.0, 10.0, NEVER);
        all.extend(
            optimizer
                .neftune_noise_alpha
                .map(|value| Suspect { value, ..alpha }),
        );
        if !self.run.full {
            // As the scale of the adapter: alpha over r, or over its root.
            let rank = match lora.use_rslora {
                true => (lora.r as f64).sqrt(),
                false => lora.r as f64,
            };
            all.push(suspect("lora-alpha", lora.alpha, 2.0 * rank, 16.0, NEVER));
            let ratio = optimizer.loraplus_lr_ratio.unwrap_or(1.0);
            all.push(suspect("loraplus-lr-ratio", ratio, 16.0, 9.0, NEVER));
        }
        if method.method.is_preference() {
            all.push(suspect("beta", method.beta(), 0.1, 30.0, 300.0));
        }
        if method.method == Method::Grpo {
            if method.beta() > 0.0 {
                all.push(suspect("beta", method.beta(), 0.04, 100.0, NEVER));
            }
            let weights = self.grpo.reward_weights.iter();
            let largest = weights.fold(1.0, |a: f64, b| a.max(b.abs()));
            all.push(suspect("reward-weights", largest, 1.0, 1e3, NEVER));
            all.push(suspect(
                "temperature",
                self.grpo.temperature(),
                1.0,
                5.0,
                5.0,
            ));
        }
        for (flag, weight) in [
            ("desirable-weight", method.desirable_weight),
            ("undesirable-weight", method.undesirable_weight),
        ] {
            all.extend(
                weight
                    .map(|weight| suspect(flag, weight.max(f64::MIN_POSITIVE), 1.0, 100.0, NEVER)),
            );
        }
        all
    }
}

/// A number as people write it.
fn short(value: f64) -> String {
    match value.abs() {
        0.01..10_000.0 => value.to_string(),
        _ => format!("{value:e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_is_far_from_the_usual_is_named() {
        let cause = |change: fn(&mut Config)| {
            let mut config = Config::new("x");
            config.model.model = Some("m".to_owned());
            change(&mut config);
            config.likely_cause()
        };
        assert_eq!(cause(|_| ()), "try a smaller --learning-rate");
        assert_eq!(
            cause(|config| config.optimizer.learning_rate = Some(1.0)),
            "the likely cause is --learning-rate 1, where 2e-4 is usual: try a value nearer to that"
        );
        assert_eq!(
            cause(|config| config.optimizer.learning_rate = Some(1e-3)),
            "try a smaller --learning-rate"
        );
        for (change, expected) in [
            (
                (|config| config.lora.alpha = 1e30) as fn(&mut Config),
                "--lora-alpha 1e30, where 32 ",
            ),
            (
                |config| {
                    config.lora.alpha = 1e30;
                    config.run.adapter = Some("a/b".into());
                },
                "`lora_alpha` 1e30 of the adapter in a/b, where 32 ",
            ),
            (
                |config| config.optimizer.loraplus_lr_ratio = Some(1e300),
                "--loraplus-lr-ratio 1e300, where 16 ",
            ),
            (
                |config| {
                    config.method.method = Method::Dpo;
                    config.method.beta = Some(1e-30);
                },
                "--beta 1e-30, where 0.1 ",
            ),
            (
                |config| {
                    config.method.method = Method::Kto;
                    config.method.undesirable_weight = Some(1e5);
                },
                "--undesirable-weight 1e5, where 1 ",
            ),
            (
                |config| config.optimizer.neftune_noise_alpha = Some(1e8),
                "--neftune-noise-alpha 1e8, where 5 ",
            ),
            (
                |config| config.optimizer.max_grad_norm = 0.0,
                "--max-grad-norm 0, which does not limit",
            ),
            (
                |config| {
                    config.optimizer.learning_rate = Some(5e-3);
                    config.method.method = Method::Dpo;
                    config.method.beta = Some(1e9);
                },
                "--beta 1e9",
            ),
        ] {
            let found = cause(change);
            assert!(found.contains(expected), "{found}, expected {expected}");
        }
    }
}
