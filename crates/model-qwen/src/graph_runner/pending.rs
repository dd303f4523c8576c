//! A step whose tokens are not known yet.

// Without GPUs no step leaves logits or tokens on a device.
#![cfg_attr(not(feature = "gpu"), allow(dead_code))]

use burn::tensor::Tensor;
use kv_paging::DecodeStep;

use crate::choose::{Choice, ChoiceRow, choose, choose_drawn, choose_from_logits, select};
use crate::kernels::choice::{PendingIds, PendingLogits};
use crate::model::QwenModel;

/// A step that was launched and whose tokens are still to be chosen or read.
#[derive(Debug)]
pub struct Pending(State);

/// How far the step has got by itself.
#[derive(Debug)]
enum State {
    /// Hidden states of every token, after the final norm: `[tokens, hidden]`.
    Hidden(Tensor<2>),
    /// Those of some rows, in ascending order: `[rows, hidden]`.
    HiddenRows(Tensor<2>, Vec<usize>),
    /// Logits of every row and of the padding, `[padded rows, vocab]`.
    Logits(Tensor<2>),
    /// The same, from which the device draws the tokens when it knows which ones may come.
    Unmasked(Box<Unmasked>),
    /// The tokens that the device has drawn, on their way to the host.
    Drawn {
        ids: PendingIds,
        /// Of the rows that want them.
        logits: Option<PendingLogits>,
    },
}

/// Logits from which the device draws the tokens when it knows which ones may come.
#[derive(Debug)]
pub(super) struct Unmasked {
    /// `[padded rows, vocab]`.
    pub(super) logits: Tensor<2>,
    /// How the tokens are drawn.
    pub(super) step: DecodeStep,
    /// Whether they are the most likely ones.
    pub(super) is_argmax: bool,
    /// Whether logits change before.
    pub(super) has_changes: bool,
    /// The logits of the rows that want them, as they are without masks and changes.
    pub(super) read: Option<PendingLogits>,
}

impl Pending {
    /// A step that computed hidden states, `[tokens, hidden]`, as [`QwenModel::forward`] gives them.
    pub fn hidden(hidden: Tensor<2>) -> Self {
        Self(State::Hidden(hidden))
    }

    /// A step that computed hidden states of some rows, which ascend, as [`QwenModel::forward_rows`] gives them.
    ///
    /// # Shapes
    /// hidden `[rows, hidden]`.
    pub fn hidden_rows(hidden: Tensor<2>, rows: Vec<usize>) -> Self {
        debug_assert!(
            rows.is_sorted(),
            "expected rows that ascend, found {rows:?}"
        );
        Self(State::HiddenRows(hidden, rows))
    }

    /// A step that computed logits, `[padded rows, vocab]`.
    pub(super) fn logits(logits: Tensor<2>) -> Self {
        Self(State::Logits(logits))
    }

    /// A step that computed logits, and draws its tokens when it is told which ones may come.
    pub(super) fn unmasked(unmasked: Unmasked) -> Self {
        Self(State::Unmasked(Box::new(unmasked)))
    }

    /// A step that drew its tokens; the logits of the rows that want them.
    pub(super) fn drawn(ids: PendingIds, logits: Option<PendingLogits>) -> Self {
        Self(State::Drawn { ids, logits })
    }

    /// The hidden states of a step that computed those of every token, `[tokens, hidden]`.
    pub fn hidden_states(&self) -> Option<&Tensor<2>> {
        match &self.0 {
            State::Hidden(hidden) => Some(hidden),
            State::HiddenRows(..) | State::Logits(_) | State::Unmasked(_) | State::Drawn { .. } => {
                None
            }
        }
    }

    /// Whether the device draws the tokens, and leaves them for the next step.
    pub fn is_drawn(&self) -> bool {
        matches!(self.0, State::Drawn { .. })
    }

    /// Whether the device draws the tokens as soon as [`GraphRunner::draw_masked`](crate::GraphRunner::draw_masked) says which ones
    /// may come.
    pub fn awaits_masks(&self) -> bool {
        matches!(self.0, State::Unmasked(_))
    }

    /// The step after `draw`, if it awaits masks.
    pub(super) fn draw_unmasked(self, draw: impl FnOnce(Unmasked) -> Self) -> Self {
        match self.0 {
            State::Unmasked(unmasked) => draw(*unmasked),
            other => Self(other),
        }
    }

    /// Waits for the step, and answers what is wanted of its rows.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute the step; and when a row is none of those of [`Pending::hidden_rows`].
    ///
    /// # Panics
    /// As Burn does when it reads from a device that couldn't compute the step.
    pub fn tokens(
        self,
        model: &QwenModel,
        rows: &mut [ChoiceRow<'_>],
    ) -> Result<Vec<Choice>, String> {
        match self.0 {
            State::Hidden(hidden) => choose(model, &hidden, rows),
            State::HiddenRows(hidden, computed) => {
                let place = |row: usize| {
                    computed.binary_search(&row).map_err(|_| {
                        format!("expected one of the computed rows {computed:?}, found {row}")
                    })
                };
                let rows = rows.iter_mut().map(|row| {
                    Ok(ChoiceRow {
                        row: place(row.row)?,
                        ..row.reborrowed()
                    })
                });
                let mut rows = rows.collect::<Result<Vec<_>, String>>()?;
                choose(model, &hidden, &mut rows)
            }
            State::Logits(logits) => choose_from_logits(select(&logits, rows), rows),
            State::Unmasked(unmasked) => choose_from_logits(select(&unmasked.logits, rows), rows),
            State::Drawn { ids, logits } => {
                let ids = ids.wait()?;
                let logits = logits.map(PendingLogits::wait).transpose()?;
                Ok(choose_drawn(&ids, logits.unwrap_or_default(), rows))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};

    use super::*;
    use crate::choose::Want;
    use crate::load::LoadOptions;
    use crate::sampling::LogprobsMode;

    #[test]
    fn rows_of_a_step_are_found_among_the_computed_ones() {
        let dir = crate::bundled_model_dir().unwrap();
        let model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let random = Distribution::Normal(0.0, 1.0);
        let shape = [2, model.config.hidden_size];
        let hidden = Tensor::random(shape, random, (&Device::flex(), DType::F32));
        let score = |row| ChoiceRow {
            row,
            want: Want::Score {
                id: 5,
                num_top: 1,
                mode: LogprobsMode::RawLogprobs,
            },
        };
        let expected = choose(&model, &hidden, &mut [score(1), score(0)]).unwrap();
        let mut rows = [score(7), score(3)];
        let pending = || Pending::hidden_rows(hidden.clone(), vec![3, 7]);
        assert_eq!(pending().tokens(&model, &mut rows).unwrap(), expected);
        assert_eq!(rows.map(|row| row.row), [7, 3]);
        let error = pending().tokens(&model, &mut [score(3), score(4)]);
        assert_eq!(
            error.unwrap_err(),
            "expected one of the computed rows [3, 7], found 4"
        );
    }
}
