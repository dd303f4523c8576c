//! Which tokens count for the penalties: all of prompt and output, or the last ones.

use super::Sampler;
use super::seen::Seen;

impl Sampler {
    /// Counts the tokens of the prompt.
    pub(super) fn count_prompt(&mut self, prompt: impl DoubleEndedIterator<Item = u32>) {
        match self.params.penalty_window {
            None if self.params.repetition_penalty == 1.0 => {}
            None => self.seen.extend(prompt.map(|id| (id, Seen::default()))),
            Some(window) => {
                self.recent.extend(prompt.rev().take(window));
                self.recent.make_contiguous().reverse();
                for id in &self.recent {
                    self.seen.entry(*id).or_default().num_held += 1;
                }
            }
        }
    }

    /// Counts a token of the output, which [`Sampler::num_output`](Sampler) has counted already.
    pub(super) fn count_output(&mut self, id: u32) {
        let seen = self.seen.entry(id).or_default();
        seen.num_output += 1;
        let Some(window) = self.params.penalty_window else {
            return;
        };
        seen.num_held += 1;
        self.recent.push_back(id);
        while self.recent.len() > window {
            let is_output = self.recent.len() as u64 <= self.num_output;
            self.forget_oldest(is_output);
        }
    }

    fn forget_oldest(&mut self, is_output: bool) {
        let Some(oldest) = self.recent.pop_front() else {
            return;
        };
        let Some(seen) = self.seen.get_mut(&oldest) else {
            return;
        };
        seen.num_held -= 1;
        seen.num_output -= u32::from(is_output);
        if seen.num_held == 0 {
            self.seen.remove(&oldest);
        }
    }
}
