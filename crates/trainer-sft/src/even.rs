//! Ragged documents → batches of equally long ones, for devices without an attention kernel of their own.
//!
//! There, attention over many documents is one batched product, so that ragged documents would have to be gathered into
//! rows of equal length in every layer, and the gradient of a gather runs one row after the other on GPUs. Padding at the
//! end of a document changes nothing: no real token sees it, it is no target, and its gradient is zero. Documents of
//! similar length share a batch, so that little of the work is padding.

use std::borrow::Cow;

use burn::backend::DispatchDevice;
use burn::tensor::Device;

use crate::batch::Batch;

/// Padded lengths are multiples of this: fewer shapes, fewer buffers of other sizes.
const MULTIPLE: usize = 32;
/// A document shares a batch with one at most this many times as long.
const MAX_STRETCH: f64 = 1.6;
/// Below so many padded tokens a batch takes any length: small batches cost as much to launch as large ones.
const MIN_TOKENS: usize = 8192;

/// What to compute for `batch` on `device`: the batch itself on the CPU, or batches of equally long documents.
#[must_use]
pub fn even_batches<'a>(batch: &'a Batch, device: &Device) -> Cow<'a, [Batch]> {
    let is_cpu = matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    let is_even = batch.lengths.windows(2).all(|pair| pair[0] == pair[1]);
    if is_cpu || is_even {
        Cow::Borrowed(std::slice::from_ref(batch))
    } else {
        Cow::Owned(pad(batch, MIN_TOKENS))
    }
}

/// The documents of `batch` in their order, all as long as the longest one.
pub(crate) fn widened(batch: &Batch) -> Batch {
    let longest = batch.lengths.iter().copied().max().unwrap_or(0);
    let width = longest.next_multiple_of(MULTIPLE);
    let mut all = Batch {
        are_wanted: batch.are_wanted.clone(),
        ..Batch::default()
    };
    let mut start = 0;
    for &length in &batch.lengths {
        let end = all.tokens.len() + width;
        all.tokens.extend(&batch.tokens[start..start + length]);
        all.tokens.resize(end, 0);
        all.targets.extend(&batch.targets[start..start + length]);
        all.targets.resize(end, None);
        all.positions.extend(0..width as u32);
        all.lengths.push(width);
        all.padding.push(width - length);
        start += length;
    }
    all
}

/// The documents of `batch` in batches of equal length, longest first; documents without a target are left out.
#[must_use]
pub fn pad(batch: &Batch, min_tokens: usize) -> Vec<Batch> {
    let mut start = 0;
    let mut documents: Vec<(usize, usize)> = Vec::new();
    for &length in &batch.lengths {
        if batch.targets[start..start + length]
            .iter()
            .any(Option::is_some)
        {
            documents.push((length, start));
        }
        start += length;
    }
    documents.sort_by_key(|&(length, start)| (std::cmp::Reverse(length), start));

    let mut padded: Vec<Batch> = Vec::new();
    for (length, start) in documents {
        let fits = padded.last().is_some_and(|last| {
            let stretch = last.lengths[0] as f64 / length as f64;
            stretch <= MAX_STRETCH || last.num_tokens() < min_tokens
        });
        if !fits {
            padded.push(Batch::default());
        }
        if let Some(last) = padded.last_mut() {
            let width = last
                .lengths
                .first()
                .copied()
                .unwrap_or(length.next_multiple_of(MULTIPLE));
            let end = last.tokens.len() + width;
            last.tokens.extend(&batch.tokens[start..start + length]);
            last.tokens.resize(end, 0);
            last.targets.extend(&batch.targets[start..start + length]);
            last.targets.resize(end, None);
            last.positions.extend(0..width as u32);
            last.lengths.push(width);
            last.padding.push(width - length);
        }
    }
    padded
}
