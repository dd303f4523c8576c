//! How good an answer is: built-in measures, and programs that are asked over HTTP.

mod answer;
mod builtin;
mod endpoint;
mod schema;

use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

pub use self::answer::{Answer, Lack, RewardError};
use self::builtin::Builtin;
use self::endpoint::Endpoint;
use crate::config::{ConfigError, GrpoOptions};

/// The rewards of a run with their weights.
#[derive(Debug)]
pub struct Rewards {
    all: Vec<Reward>,
}

#[derive(Debug)]
struct Reward {
    /// As metrics name it.
    name: String,
    weight: f64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Builtin(Builtin),
    Endpoint(Endpoint),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Builtin(builtin) => builtin.name(),
            Self::Endpoint(_) => "url",
        }
    }
}

impl Rewards {
    /// The rewards that `options` name.
    ///
    /// # Errors
    /// A reward that is not known, or whose pattern, file or address is wrong.
    pub fn new(options: &GrpoOptions) -> Result<Self, ConfigError> {
        let mut all: Vec<Reward> = Vec::new();
        let builtin = options.rewards.iter().map(|text| {
            let kind = Builtin::parse(text)?;
            Ok(Kind::Builtin(kind))
        });
        let endpoints = options.reward_urls.iter().map(|url| {
            let endpoint = Endpoint::new(url, options.reward_timeout())?;
            Ok(Kind::Endpoint(endpoint))
        });
        for (index, found) in builtin.chain(endpoints).enumerate() {
            let kind: Kind = found?;
            let name = kind.name();
            let number = all.iter().filter(|reward| reward.kind.name() == name);
            all.push(Reward {
                name: match number.count() {
                    0 => name.to_owned(),
                    before => format!("{name}_{}", before + 1),
                },
                weight: options.reward_weights.get(index).copied().unwrap_or(1.0),
                kind,
            });
        }
        Ok(Self { all })
    }

    /// The names of the rewards, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|reward| reward.name.as_str())
    }

    /// Checks that a record has the fields that rewards are about.
    ///
    /// # Errors
    /// The field that is missing, has another type, or has no value.
    pub fn check(&self, columns: &Map<String, Value>) -> Result<(), Lack> {
        let mut kinds = self.all.iter().map(|reward| &reward.kind);
        kinds.try_for_each(|kind| match kind {
            Kind::Builtin(builtin) => builtin.check(columns),
            Kind::Endpoint(_) => Ok(()),
        })
    }

    /// What each reward says of each answer; NaN where a program has no reward for it. When `stop` becomes true, no program is
    /// waited for.
    ///
    /// # Errors
    /// A program that cannot be reached, is too slow, or answers something else.
    pub fn of(
        &self,
        answers: &[Answer<'_>],
        stop: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<f64>>, RewardError> {
        let each = self.all.iter().map(|reward| match &reward.kind {
            Kind::Builtin(builtin) => Ok(answers.iter().map(|answer| builtin.of(answer)).collect()),
            Kind::Endpoint(endpoint) => endpoint.of(answers, stop),
        });
        each.collect()
    }

    /// The weighted sum of what the rewards say of each answer; NaN where all of them say nothing.
    #[must_use]
    pub fn sum(&self, each: &[Vec<f64>]) -> Vec<f64> {
        let num = each.first().map_or(0, Vec::len);
        let sum = |answer: usize| {
            let known = self.all.iter().zip(each);
            let known = known.map(|(reward, values)| reward.weight * values[answer]);
            let known = known.filter(|value| !value.is_nan());
            known.reduce(|a, b| a + b).unwrap_or(f64::NAN)
        };
        (0..num).map(sum).collect()
    }
}
