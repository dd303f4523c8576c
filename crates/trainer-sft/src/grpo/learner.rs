//! A step of GRPO: answers, rewards, advantages, update.

use std::sync::atomic::{AtomicBool, Ordering};

use model_qwen::SamplingParams;
use tracing::warn;

use super::advantages::{Advantages, advantages, mean_of, std_of};
use super::policy::{PolicyLoss, PolicyStep, Rollout};
use super::questions::{Question, Questions};
use super::stillness::Stillness;
use crate::batch::StepBatch;
use crate::chat_format::ChatFormat;
use crate::config::Config;
use crate::error::TrainError;
use crate::generation::{Completion, Request};
use crate::preference::Numbers;
use crate::rewards::{Answer, Rewards};
use crate::samples::answers;
use crate::trainer::{StepOutput, Trainer};

/// Makes the seeds of answers to held-out prompts other ones than those of the steps.
const HELD_OUT: u64 = 0x5851_f42d_4c95_7f2d;

/// Answers that were drawn and judged.
struct Judged {
    requests: Vec<Request>,
    completions: Vec<Completion>,
    /// What each reward says of each answer.
    each: Vec<Vec<f64>>,
    /// The weighted sums.
    rewards: Vec<f64>,
}

/// What a run of GRPO has besides its trainer.
#[derive(Debug)]
pub(crate) struct Grpo {
    config: Config,
    format: ChatFormat,
    questions: Questions,
    rewards: Rewards,
    loss: PolicyLoss,
    /// The last answers, with the batch of their prompts, and how many steps on them are left.
    rollouts: Vec<Rollout>,
    prompts: StepBatch,
    left: usize,
    /// Of the last answers, with the names of TRL.
    numbers: Numbers,
    stillness: Stillness,
}

impl Grpo {
    /// The start of a run on `questions`.
    pub(crate) fn new(
        config: &Config,
        format: &ChatFormat,
        questions: Questions,
        rewards: Rewards,
    ) -> Self {
        Self {
            config: config.clone(),
            format: format.clone(),
            questions,
            rewards,
            loss: PolicyLoss::of(config),
            rollouts: Vec::new(),
            prompts: StepBatch {
                micro_batches: Vec::new(),
                num_targets: 0,
                epoch: 0.0,
                sources: Vec::new(),
            },
            left: 0,
            numbers: Numbers::new(),
            stillness: Stillness::default(),
        }
    }

    /// The prompts of the coming step, where it learns from the answers of the last one once more.
    pub(crate) fn prompts_again(&self) -> Option<StepBatch> {
        (self.left > 0).then(|| self.prompts.clone())
    }

    /// Whether the next step starts with new answers, so that a run can go on from here.
    pub(crate) fn is_at_start(&self) -> bool {
        self.left == 0
    }

    /// One optimizer step on the prompts of `batch`, which gets what was computed instead.
    ///
    /// # Errors
    /// A device that fails, rewards that do not come, and a run that is told to `stop` while it waits for them.
    pub(crate) fn step(
        &mut self,
        trainer: &mut Trainer,
        batch: &mut StepBatch,
        stop: Option<&AtomicBool>,
    ) -> Result<StepOutput, TrainError> {
        if self.left == 0 {
            self.roll_out(trainer, batch, stop)?;
            self.prompts = batch.clone();
            self.left = self.config.grpo.num_iterations();
        }
        self.left -= 1;
        let rows = self.config.run.batch_size;
        let PolicyStep {
            mut output,
            batches,
        } = self.loss.step(trainer, &mut self.rollouts, rows);
        output.method_metrics.extend(self.numbers.clone());
        output.method_metrics.retain(|_, value| value.is_finite());
        batch.num_targets = self.rollouts.iter().map(Rollout::answer_len).sum();
        batch.micro_batches = batches;
        Ok(output)
    }

    /// Answers the prompts, and finds what is to be learnt from the answers.
    fn roll_out(
        &mut self,
        trainer: &mut Trainer,
        batch: &StepBatch,
        stop: Option<&AtomicBool>,
    ) -> Result<(), TrainError> {
        let questions = &self.questions;
        let asked = batch.sources.iter().filter_map(|at| questions.get(at));
        let asked: Vec<&Question> = asked.collect();
        let requests = self.requests(&asked, (self.config.run.seed, trainer.num_steps()));
        let judged = self.judged(trainer, (&asked, requests), stop)?;
        let found = self.advantages(&judged.rewards);
        let learns = found.values.iter().any(|advantage| *advantage != 0.0);
        let by_name = self.rewards.names().zip(&judged.each);
        if let Some(warning) = self.stillness.note(by_name, learns) {
            warn!("step {}: {warning}", trainer.num_steps() + 1);
        }
        self.numbers = self.numbers_of(&judged, &found);
        let drawn = judged.requests.iter().zip(&judged.completions);
        let rollouts = drawn
            .zip(&found.values)
            .map(|((request, completion), advantage)| {
                Rollout::new(&request.prompt, &completion.tokens, *advantage)
            });
        self.rollouts = rollouts.collect();
        Ok(())
    }

    /// Answers the held-out prompts, with the same seeds each time. Gives the numbers of [`Self::step`] with `eval_` before their
    /// names; `None` where there are no such prompts.
    ///
    /// # Errors
    /// A device that fails, and rewards that do not come.
    pub(crate) fn measure(&self, trainer: &mut Trainer) -> Result<Option<Numbers>, TrainError> {
        let held_out: Vec<&Question> = self.questions.held_out().iter().collect();
        if held_out.is_empty() {
            return Ok(None);
        }
        let requests = self.requests(&held_out, (self.config.run.seed ^ HELD_OUT, 0));
        let size = self.config.grpo.num_generations();
        // As many at a time as a step draws, so that they take no more memory.
        let (prompts, _) = self.config.rows_per_step();
        let mut all = Judged {
            requests: Vec::new(),
            completions: Vec::new(),
            each: vec![Vec::new(); self.rewards.names().count()],
            rewards: Vec::new(),
        };
        for (asked, requests) in held_out
            .chunks(prompts)
            .zip(requests.chunks(prompts * size))
        {
            // A run that is told to stop comes to the end of an evaluation first: it may decide.
            let part = self.judged(trainer, (asked, requests.to_vec()), None)?;
            all.completions.extend(part.completions);
            all.rewards.extend(part.rewards);
            for (all, part) in all.each.iter_mut().zip(part.each) {
                all.extend(part);
            }
        }
        let numbers = self.numbers_of(&all, &self.advantages(&all.rewards));
        let numbers = numbers.into_iter().filter(|(_, value)| value.is_finite());
        let numbers = numbers.map(|(name, value)| (format!("eval_{name}"), value));
        Ok(Some(numbers.collect()))
    }

    fn advantages(&self, rewards: &[f64]) -> Advantages {
        let grpo = &self.config.grpo;
        let scale = grpo.scale_rewards.unwrap_or_default();
        advantages(rewards, grpo.num_generations(), scale)
    }

    /// Draws answers and asks for their rewards.
    fn judged(
        &self,
        trainer: &mut Trainer,
        (asked, requests): (&[&Question], Vec<Request>),
        stop: Option<&AtomicBool>,
    ) -> Result<Judged, TrainError> {
        let (completions, texts) = answers(trainer, &self.format, &requests)?;
        let size = self.config.grpo.num_generations();
        let of_answer = asked
            .iter()
            .flat_map(|question| std::iter::repeat_n(question, size));
        let rewarded = of_answer.zip(&texts).zip(&completions);
        let rewarded = rewarded.map(|((question, text), completion)| Answer {
            prompt: &question.prompt.content,
            completion: text,
            num_tokens: completion.content().len(),
            columns: &question.columns,
        });
        let rewarded: Vec<Answer<'_>> = rewarded.collect();
        let each = match self.rewards.of(&rewarded, stop) {
            Err(_) if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) => {
                return Err(TrainError::Stopped);
            }
            each => each?,
        };
        Ok(Judged {
            rewards: self.rewards.sum(&each),
            requests,
            completions,
            each,
        })
    }

    /// What TRL logs of answers and their rewards.
    fn numbers_of(&self, judged: &Judged, found: &Advantages) -> Numbers {
        let mut numbers = lengths(&judged.completions);
        for (name, values) in self.rewards.names().zip(&judged.each) {
            numbers.insert(format!("rewards/{name}/mean"), mean_of(values));
            numbers.insert(format!("rewards/{name}/std"), std_of(values));
        }
        numbers.insert("reward".into(), found.reward);
        numbers.insert("reward_std".into(), found.reward_std);
        numbers.insert("frac_reward_zero_std".into(), found.frac_reward_zero_std);
        numbers
    }

    /// The answers to draw: each has a seed of its own, which the seed of the run and the step determine.
    fn requests(&self, asked: &[&Question], (run, step): (u64, usize)) -> Vec<Request> {
        let grpo = &self.config.grpo;
        let context = self.format.limits.context_length;
        let all = asked.iter();
        let all = all.flat_map(|question| std::iter::repeat_n(question, grpo.num_generations()));
        let requests = all.enumerate().map(|(index, question)| Request {
            prompt: question.prompt.tokens.clone(),
            sampling: SamplingParams {
                temperature: grpo.temperature() as f32,
                seed: Some(seed(run, step, index)),
                ..SamplingParams::default()
            },
            max_tokens: grpo
                .max_completion_length()
                .min(context - question.prompt.tokens.len()),
        });
        requests.collect()
    }

    /// What to say at the end of a run that has learnt nothing.
    pub(crate) fn last_warning(&self) -> Option<String> {
        self.stillness.at_the_end()
    }
}

/// Lengths of answers in tokens.
fn lengths(completions: &[Completion]) -> Numbers {
    let all: Vec<f64> = completions.iter().map(|c| c.tokens.len() as f64).collect();
    let ended = completions.iter().filter(|completion| completion.has_ended);
    let mut ended: Vec<f64> = ended.map(|c| c.tokens.len() as f64).collect();
    let clipped = 1.0 - ended.len() as f64 / all.len().max(1) as f64;
    if ended.is_empty() {
        ended.push(0.0);
    }
    let mut metrics = Numbers::from([("completions/clipped_ratio".to_owned(), clipped)]);
    for (name, values) in [("length", &all), ("terminated_length", &ended)] {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        for (kind, value) in [("mean", mean_of(values)), ("min", least), ("max", most)] {
            metrics.insert(format!("completions/{kind}_{name}"), value);
        }
    }
    metrics
}

/// A seed for each answer (the finalizer of SplitMix64).
fn seed(run: u64, step: usize, index: usize) -> u64 {
    let place = ((step as u64) << 24) ^ index as u64;
    let mut z = run ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn answers_have_seeds_of_their_own() {
        let all = (0..50).flat_map(|step| (0..20).map(move |index| seed(42, step, index)));
        assert_eq!(all.collect::<BTreeSet<_>>().len(), 1000);
        assert_ne!(seed(1, 0, 0), seed(2, 0, 0));
    }

    #[test]
    fn lengths_have_the_names_of_trl() {
        let completion = |len: usize, has_ended| Completion {
            tokens: vec![1; len],
            has_ended,
        };
        let found = lengths(&[
            completion(4, true),
            completion(8, false),
            completion(2, true),
        ]);
        for (name, expected) in [
            ("completions/mean_length", 14.0 / 3.0),
            ("completions/max_length", 8.0),
            ("completions/mean_terminated_length", 3.0),
            ("completions/max_terminated_length", 4.0),
            ("completions/clipped_ratio", 1.0 / 3.0),
        ] {
            assert!((found[name] - expected).abs() < 1e-12, "{name}: {found:?}");
        }
        assert_eq!(
            lengths(&[completion(8, false)])["completions/min_terminated_length"],
            0.0
        );
    }
}
