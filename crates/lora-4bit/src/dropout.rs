//! Dropout of what an adapter reads.

use burn::tensor::{DType, Device, Tensor};

use crate::device::is_cpu;
use crate::kernels::draw::Draw;
use crate::kernels::training::drop_values;

/// Dropout of the input of LoRA's A.
///
/// The mask depends only on `seed`, the layer's id and the position in the matrix: a layer that is computed a second
/// time in the backward pass drops the same values. Give each training step its own seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping a value, in `[0, 1)`.
    pub p: f32,
    /// Seed of the step.
    pub seed: u64,
}

impl Dropout {
    /// `x` times the mask for layer `id`, outside of autodiff graphs. A kernel draws the mask where it reads `x`.
    ///
    /// # Shapes
    ///
    /// `x [rows, columns]`; the result has its shape and type
    #[must_use]
    pub fn apply(&self, id: u32, x: Tensor<2>) -> Tensor<2> {
        drop_values(x, self.draw(id))
    }

    /// The mask for layer `id`: 0 with probability `p`, otherwise `1 / (1 - p)`.
    ///
    /// # Shapes
    ///
    /// `[rows, columns]`, f32
    #[must_use]
    pub fn mask(&self, id: u32, [rows, columns]: [usize; 2], device: &Device) -> Tensor<2> {
        match is_cpu(device) {
            true => self.draw(id).mask([rows, columns], device),
            false => self.apply(id, Tensor::ones([rows, columns], (device, DType::F32))),
        }
    }

    fn draw(&self, id: u32) -> Draw {
        let bits = mix(self.seed ^ mix(u64::from(id).wrapping_add(GOLDEN_GAMMA)));
        Draw {
            keys: [bits as u32, (bits >> 32) as u32],
            // A value is dropped when its 32 random bits, read as a number, are below p · 2³².
            threshold: (f64::from(self.p) * f64::from(u32::MAX)) as u32,
            keep: 1.0 / (1.0 - self.p),
        }
    }
}

/// Step between the states of SplitMix64: 2⁶⁴ divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
