//! Masks of dropout, drawn value by value.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

/// What a mask is drawn with. A value's random bits depend on its place and two keys; 32 bits are what every GPU computes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) keys: [u32; 2],
    pub(crate) threshold: u32,
    pub(crate) keep: f32,
}

impl Draw {
    /// The mask, drawn on the host: `[rows, columns]`, f32.
    pub(crate) fn mask(self, [rows, columns]: [usize; 2], device: &Device) -> Tensor<2> {
        let mut mask = vec![0f32; rows * columns];
        mask.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(i, chunk)| {
                for (place, value) in (i * CHUNK..).zip(chunk) {
                    *value = match self.bits(place as u32) < self.threshold {
                        true => 0.0,
                        false => self.keep,
                    };
                }
            });
        let mask = TensorData::new(mask, [rows, columns]);
        Tensor::from_data(mask, (device, DType::F32))
    }

    /// The random bits of the value at `place`. A kernel computes the same.
    fn bits(self, place: u32) -> u32 {
        let [first, second] = self.keys;
        scramble(scramble(place ^ first).wrapping_add(second))
    }
}

/// `lowbias32` of Wellons ("Prospecting for hash functions", 2018): each bit of `x` changes each bit of the result with a
/// probability near a half.
fn scramble(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Values per parallel job.
const CHUNK: usize = 1 << 16;
