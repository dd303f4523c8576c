//! Which tokens may come, on a GPU: masks go there once, and are applied to logits in place.

use std::collections::HashMap;
use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};

use super::super::cube::abilities::supports;
use super::super::integers::ints;
use super::gpu::GpuChoiceOps as _;
use crate::constraint::TokenMask;
use crate::sampling::RowMask;

/// Makes the logits of tokens that may not come negative infinity, in place and for all handles; rows without a mask cost nothing.
/// `false`, and nothing has happened, where the device has no kernels for it.
///
/// # Shapes
/// logits `[rows, vocab]`.
pub(crate) fn mask_logits(logits: &Tensor<2>, masks: &[RowMask]) -> bool {
    let [_, vocab] = logits.dims();
    if !supports(logits) {
        return false;
    }
    if masks.is_empty() {
        return true;
    }
    let words = words_of(masks.iter().map(|mask| &*mask.mask), vocab);
    apply_masks(
        logits,
        &ints(words, &logits.device()),
        masks.iter().map(|mask| mask.row).zip(0..),
    );
    true
}

/// The words of masks, each of them for `vocab` tokens.
fn words_of<'a>(masks: impl Iterator<Item = &'a TokenMask>, vocab: usize) -> Vec<i32> {
    let len = vocab.div_ceil(32);
    let mut words: Vec<i32> = Vec::new();
    for (i, mask) in masks.enumerate() {
        let known = mask.words().iter().take(len);
        words.extend(known.map(|&word| word as i32));
        // Tokens that a mask doesn't know may not come.
        words.resize((i + 1) * len, 0);
    }
    words
}

/// Applies masks to rows of logits; each entry is a row, and the place of its mask in `table`.
fn apply_masks(
    logits: &Tensor<2>,
    table: &Tensor<1, Int>,
    entries: impl Iterator<Item = (usize, usize)>,
) {
    let (rows, places): (Vec<i32>, Vec<i32>) = entries
        .map(|(row, place)| (row as i32, place as i32))
        .unzip();
    let num = rows.len();
    let entries = ints([rows, places].concat(), &logits.device());
    let [table, entries] = [table.clone(), entries].map(Tensor::into_dispatch);
    let _ = Dispatch::gpu_mask(logits.clone().into_dispatch(), table, entries, num);
}

/// Masks that stay on a device: most of them are those of steps before, and need not be copied again.
#[derive(Debug)]
pub(crate) struct MaskTable {
    /// `[places * words of a mask]`.
    words: Tensor<1, Int>,
    vocab: usize,
    places: Places,
}

impl MaskTable {
    /// Room for the masks of `num` rows.
    pub(crate) fn new(num: usize, vocab: usize, device: &Device) -> Self {
        Self {
            words: Tensor::zeros([num * vocab.div_ceil(32)], (device, DType::I32)),
            vocab,
            places: Places::new(num),
        }
    }

    /// Makes the logits of tokens that may not come negative infinity, in place and for all handles. `false`, and nothing has
    /// happened, where the device has no kernels for it.
    ///
    /// # Shapes
    /// logits `[rows, vocab]`.
    ///
    /// # Panics
    /// When there are more different masks than there is room for.
    pub(crate) fn apply(&mut self, logits: &Tensor<2>, masks: &[RowMask]) -> bool {
        if !supports(logits) {
            return false;
        }
        if masks.is_empty() {
            return true;
        }
        let (places, new) = self.places.of(masks.iter().map(|mask| &mask.mask));
        if !new.is_empty() {
            let new = new.into_iter().map(|i| (places[i] as i32, &*masks[i].mask));
            let (mut words, new): (Vec<i32>, Vec<&TokenMask>) = new.unzip();
            let num = words.len();
            words.extend(words_of(new.into_iter(), self.vocab));
            let words = ints(words, &logits.device()).into_dispatch();
            let table = self.words.clone().into_dispatch();
            let _ = Dispatch::gpu_store_masks(table, words, num, self.vocab.div_ceil(32));
        }
        let rows = masks.iter().map(|mask| mask.row);
        apply_masks(logits, &self.words, rows.zip(places));
        true
    }
}

/// Which mask is at which place of a [`MaskTable`].
#[derive(Debug)]
struct Places {
    of_mask: HashMap<Arc<TokenMask>, usize>,
    masks: Vec<Option<Arc<TokenMask>>>,
    /// The call that used a place last.
    used: Vec<u64>,
    num_calls: u64,
}

impl Places {
    fn new(num: usize) -> Self {
        Self {
            of_mask: HashMap::new(),
            masks: vec![None; num],
            used: vec![0; num],
            num_calls: 0,
        }
    }

    /// The place of each mask, and which masks have to be written there first. The places that were not used for the longest time
    /// are given away.
    fn of<'a>(
        &mut self,
        masks: impl Iterator<Item = &'a Arc<TokenMask>>,
    ) -> (Vec<usize>, Vec<usize>) {
        self.num_calls += 1;
        let masks: Vec<&Arc<TokenMask>> = masks.collect();
        // Known ones first, so that none of them gives its place away.
        let known: Vec<Option<usize>> = masks.iter().map(|mask| self.find(mask)).collect();
        let mut new = Vec::new();
        let places = masks.iter().zip(known).enumerate();
        let places = places.map(|(i, (mask, known))| {
            known.or_else(|| self.find(mask)).unwrap_or_else(|| {
                new.push(i);
                self.replace(mask)
            })
        });
        (places.collect(), new)
    }

    /// The place of a mask that is there, which is used now.
    fn find(&mut self, mask: &Arc<TokenMask>) -> Option<usize> {
        let place = *self.of_mask.get(mask)?;
        self.used[place] = self.num_calls;
        Some(place)
    }

    /// The place that was not used for the longest time, for a mask that has none.
    fn replace(&mut self, mask: &Arc<TokenMask>) -> usize {
        let oldest = (0..self.used.len()).min_by_key(|&place| self.used[place]);
        let free = oldest.filter(|&place| self.used[place] < self.num_calls);
        let Some(place) = free else {
            panic!("more masks than there is room for: {}", self.used.len());
        };
        if let Some(old) = self.masks[place].replace(Arc::clone(mask)) {
            self.of_mask.remove(&old);
        }
        self.of_mask.insert(Arc::clone(mask), place);
        self.used[place] = self.num_calls;
        place
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::TensorData;

    use super::super::super::{first_gpu, naive};
    use super::super::gpu::tests::random_logits;
    use super::*;

    /// Sets of few tokens, of one, of all, of every third, of all but the first ones, and of none, which each know `num` tokens.
    fn sets(num: usize) -> Vec<TokenMask> {
        let allows: [fn(usize) -> bool; 6] = [
            |id| id % 97 == 5,
            |id| id == 69,
            |_| true,
            |id| id % 3 == 1,
            |id| id > 40,
            |_| false,
        ];
        let set = |allows: fn(usize) -> bool| {
            let mut words = vec![0; num.div_ceil(32)];
            (0..num)
                .filter(|id| allows(*id))
                .for_each(|id| words[id / 32] |= 1 << (id % 32));
            TokenMask::new(words, num)
        };
        allows.into_iter().map(set).collect()
    }

    /// Masks of some rows, in any order, and what stays of the logits.
    #[test]
    fn masks_on_a_gpu_are_those_of_the_twin() {
        let gpu = first_gpu();
        for vocab in [70, 1000, 9001, 151_936] {
            let rows: Vec<f32> = (0..9).flat_map(|seed| random_logits(vocab, seed)).collect();
            let data = TensorData::new(rows, [9, vocab]);
            // A model may have more logits than its tokenizer has tokens.
            let known = [vocab, vocab - 3, vocab - 40];
            let places = [8, 0, 3, 4, 7, 2];
            for num in known {
                let masks = places.into_iter().zip(sets(num));
                let masks: Vec<RowMask> = masks
                    .map(|(row, mask)| RowMask {
                        row,
                        mask: Arc::new(mask),
                    })
                    .collect();
                for masks in [&masks[..], &masks[1..2], &[]] {
                    let logits = Tensor::<2>::from_data(data.clone(), (&gpu, DType::F32));
                    assert!(mask_logits(&logits, masks));
                    let on_cpu = Tensor::from_data(data.clone(), &Device::flex());
                    let expected = naive::mask_logits(on_cpu, masks);
                    assert_eq!(logits.into_data(), expected.into_data(), "{vocab}, {num}");
                }
            }
        }
        let on_cpu = Tensor::<2>::zeros([1, 70], &Device::flex());
        assert!(!mask_logits(&on_cpu, &[]));
    }

    /// Tables that are too small for all masks give back what they are asked for.
    #[test]
    fn masks_of_a_table_are_those_of_the_twin() {
        let gpu = first_gpu();
        let vocab = 1000;
        let rows: Vec<f32> = (0..4).flat_map(|seed| random_logits(vocab, seed)).collect();
        let data = TensorData::new(rows, [4, vocab]);
        let sets: Vec<Arc<TokenMask>> = sets(vocab).into_iter().map(Arc::new).collect();
        let mut table = MaskTable::new(4, vocab, &gpu);
        let calls: [&[usize]; 6] = [&[0, 1, 0, 2], &[0, 1], &[3, 4, 5], &[], &[0, 2, 1, 3], &[5]];
        for call in calls {
            let masks = (call.iter().enumerate()).map(|(row, set)| RowMask {
                row: 3 - row,
                mask: Arc::clone(&sets[*set]),
            });
            let masks: Vec<RowMask> = masks.collect();
            let logits = Tensor::<2>::from_data(data.clone(), (&gpu, DType::F32));
            assert!(table.apply(&logits, &masks));
            let on_cpu = Tensor::from_data(data.clone(), &Device::flex());
            let expected = naive::mask_logits(on_cpu, &masks);
            assert_eq!(logits.into_data(), expected.into_data(), "{call:?}");
        }
    }

    #[test]
    fn only_new_masks_are_written_and_old_places_are_given_away() {
        let sets: Vec<Arc<TokenMask>> = sets(100).into_iter().map(Arc::new).collect();
        let mut places = Places::new(3);
        // What it is asked for, the places, and which are new.
        for (call, at, new) in [
            (vec![0, 1, 0], vec![0, 1, 0], vec![0, 1]),
            (vec![1, 0], vec![1, 0], vec![]),
            (vec![2], vec![2], vec![0]),
            (vec![0], vec![0], vec![]),
            // The places of 1 and 2 were used first.
            (vec![3, 0], vec![1, 0], vec![0]),
            (vec![1, 2, 0], vec![1, 2, 0], vec![0]),
            (vec![4, 4, 2], vec![0, 0, 2], vec![0]),
        ] {
            // Equal masks are one, whoever made them.
            let masks: Vec<Arc<TokenMask>> = call
                .iter()
                .map(|&set| Arc::new(TokenMask::clone(&sets[set])))
                .collect();
            assert_eq!(places.of(masks.iter()), (at, new), "{call:?}");
        }
    }
}
