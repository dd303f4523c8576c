//! The answers of a run to `--sample-prompts`.

use tracing::warn;

use super::progress::ProgressReport;
use super::{Run, is_due};
use crate::error::TrainError;

/// Characters of a prompt or an answer in the log.
const SHOWN: usize = 400;

impl Run<'_> {
    /// Whether answers are due after `step`, besides those before the first step and at the end.
    pub(super) fn samples_are_due(&self, step: usize) -> bool {
        match self.config.samples.steps {
            Some(every) => step.is_multiple_of(every),
            None => is_due(self.config.run.eval_steps, step),
        }
    }

    /// Answers the prompts, where there are any. A file that cannot be written does not end the run.
    pub(super) fn sample(&mut self, progress: &ProgressReport) -> Result<(), TrainError> {
        if self.samples.is_none() {
            return Ok(());
        }
        // The model has the weights of the best step once these are the result.
        let step = (self.summary.best_step).unwrap_or_else(|| self.trainer.num_steps());
        self.on_device(step, |run| {
            run.read_checks()?;
            let Some(samples) = &mut run.samples else {
                return Ok(());
            };
            let prompts = samples.shown();
            let answers = match samples.answer(&mut run.trainer, step) {
                Ok(answers) => answers,
                Err(error @ TrainError::Output { .. }) => {
                    warn!("step {step}: {error}; the run goes on");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if let Some(on_sample) = &mut run.watch.on_sample {
                on_sample(answers);
            }
            for (answer, prompt) in answers.iter().zip(prompts) {
                progress.line(&format!(
                    "step {step}, sample {} of {}: {} → {}",
                    answer.index + 1,
                    answers.len(),
                    shortened(&prompt),
                    shortened(&answer.completion),
                ));
            }
            Ok(())
        })
    }
}

/// A text as one line of the log.
fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::{SHOWN, shortened};

    #[test]
    fn a_line_of_the_log_has_the_start_of_a_text() {
        assert_eq!(shortened("a\nb"), "\"a\\nb\"");
        let long = "é".repeat(SHOWN + 1);
        assert_eq!(shortened(&long).chars().count(), SHOWN + 3);
    }
}
