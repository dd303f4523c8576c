//! AdamW on flat parameters, its moments in f32 or in 8 bits, and sums of squares for the norm of gradients.
//!
//! On a GPU each is one launch for a parameter, and nothing is read back.

#[cfg(feature = "gpu")]
use burn::backend::tensor::{FloatTensor, IntTensor};
#[cfg(feature = "gpu")]
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Tensor};

use super::elementwise::inner_product;

pub mod eight_bit;
#[cfg(all(test, feature = "gpu"))]
mod tests;

/// The operations on a GPU.
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait OptimizerOps: Backend {
    /// Writes the sum of the squares of `x`, in [`square_parts`], to `to [n]` from `at` on; the result is `to`.
    fn sum_of_squares(to: FloatTensor<Self>, x: FloatTensor<Self>, at: usize) -> FloatTensor<Self>;
    /// See [`adamw`]; the results are `value`, `mean` and `variance`, overwritten. With `is_shared` it does not matter who holds them,
    /// too.
    fn adamw(
        value: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        factors: AdamWFactors,
        is_shared: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// See [`add_in_place`]; the result is `to`.
    fn add_in_place(to: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`clear`]; the result is `to`.
    fn clear(to: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`eight_bit::adamw`]; the results are `value`, `codes` and `absmax`, overwritten.
    fn adamw_8bit(
        value: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        levels: FloatTensor<Self>,
        factors: AdamWFactors,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>);
}

/// The factors of one step of AdamW (arXiv 1711.05101) for one parameter.
#[derive(Clone, Copy, Debug)]
pub struct AdamWFactors {
    /// Decay rates of the moments.
    pub beta: [f32; 2],
    /// `1 - beta`, from more exact numbers.
    pub rest: [f32; 2],
    /// Root of the second moment's bias correction.
    pub correction: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Learning rate over the first moment's bias correction.
    pub rate: f32,
    /// What the value is multiplied with: one without weight decay.
    pub decay: f32,
}

impl AdamWFactors {
    /// One step of one value, with its gradient as clipping leaves it: the new value, mean and variance.
    #[must_use]
    #[inline]
    pub fn step(&self, [value, mean, variance]: [f32; 3], gradient: f32) -> [f32; 3] {
        let mean = mean * self.beta[0] + gradient * self.rest[0];
        let variance = variance * self.beta[1] + gradient * gradient * self.rest[1];
        let denominator = variance.sqrt() / self.correction + self.eps;
        let value = value * self.decay - mean / denominator * self.rate;
        [value, mean, variance]
    }
}

/// Units of a cube that adds up squares, and values of a unit, about.
#[cfg(feature = "gpu")]
const SQUARES: usize = 256 * 4;
/// Parts of a tensor's sum of squares, at most.
#[cfg(feature = "gpu")]
const MAX_SQUARE_PARTS: usize = 256;

/// Parts in which the squares of `len` values are added up.
#[cfg(feature = "gpu")]
pub(crate) fn square_parts(len: usize) -> usize {
    len.div_ceil(SQUARES).clamp(1, MAX_SQUARE_PARTS)
}

/// The squares of all values of `tensors`, f32, added up in parts: `[parts]`, at least one.
pub fn sums_of_squares(tensors: &[&Tensor<1>], device: &Device) -> Tensor<1> {
    #[cfg(feature = "gpu")]
    if super::cube::features::has_plane_operations(device)
        && tensors.iter().all(|x| x.dtype() == DType::F32)
        && !tensors.is_empty()
    {
        let num: usize = tensors.iter().map(|x| square_parts(x.dims()[0])).sum();
        let mut sums = Tensor::<1>::empty([num], (device, DType::F32)).into_dispatch();
        let mut at = 0;
        for x in tensors {
            let (parts, x) = (square_parts(x.dims()[0]), (*x).clone().into_dispatch());
            sums = <Dispatch as OptimizerOps>::sum_of_squares(sums, x, at);
            at += parts;
        }
        return Tensor::from_dispatch(sums);
    }
    let zero = Tensor::zeros([1], (device, DType::F32));
    let squares = |x: &&Tensor<1>| inner_product((*x).clone(), (*x).clone());
    let sums = std::iter::once(zero).chain(tensors.iter().map(squares));
    Tensor::cat(sums.collect(), 0)
}

/// One step of AdamW: the new value, mean and variance. A kernel writes them in place, where nobody else holds the tensors.
///
/// # Shapes
///
/// `[value, mean, variance]` and `gradient` `[n]` f32; `clip [1]`, with which the gradient is multiplied first
///
/// # Panics
///
/// If the lengths differ.
pub fn adamw(
    [value, mean, variance]: [Tensor<1>; 3],
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    factors: AdamWFactors,
) -> [Tensor<1>; 3] {
    let n = value.dims();
    let lengths = [mean.dims(), variance.dims(), gradient.dims()];
    assert_eq!(lengths, [n; 3], "adamw: lengths");
    #[cfg(feature = "gpu")]
    if value.dtype() == DType::F32 && super::cube::features::has_plane_operations(&value.device()) {
        let [value, mean, variance] = [value, mean, variance].map(Tensor::into_dispatch);
        let gradient = gradient.clone().into_dispatch();
        let clip = clip.clone().into_dispatch();
        let (value, mean, variance) = <Dispatch as OptimizerOps>::adamw(
            value, mean, variance, gradient, clip, factors, false,
        );
        return [value, mean, variance].map(Tensor::from_dispatch);
    }
    naive_adamw([value, mean, variance], gradient, clip, factors)
}

/// Bytes at whose multiples a part of a buffer begins and ends that is written in place: of other parts a device may make a copy.
pub const VIEW_ALIGNMENT: usize = 512;

/// Whether `device` has the operations that write to a tensor whoever holds it, too: [`adamw_in_place`], [`add_in_place`], [`clear`],
/// and sums of gradients in a [`Group`](crate::training::Group). It then sees what is written to parts, see [`VIEW_ALIGNMENT`].
pub fn writes_in_place(device: &Device) -> bool {
    #[cfg(feature = "gpu")]
    return super::cube::features::has_plane_operations(device)
        && super::cube::features::has_views_at(device, VIEW_ALIGNMENT as u64);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = device;
        false
    }
}

/// [`adamw`] of tensors that others hold, too, as parts of them: all see the new values.
///
/// # Shapes
///
/// `[value, mean, variance]` and `gradient` `[n]`, `clip [1]`, all f32
///
/// # Panics
///
/// If lengths or types differ, if a tensor has gaps, and on a device without [`writes_in_place`].
pub fn adamw_in_place(
    tensors: [&Tensor<1>; 3],
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    factors: AdamWFactors,
) {
    let lengths = tensors.map(Tensor::dims);
    assert_eq!(lengths, [gradient.dims(); 3], "adamw: lengths");
    assert!(
        tensors.iter().all(|tensor| is_f32(tensor)) && is_f32(gradient) && is_f32(clip),
        "adamw: f32"
    );
    assert!(writes_in_place(&gradient.device()), "adamw: device");
    #[cfg(feature = "gpu")]
    {
        let [value, mean, variance] = tensors.map(|tensor| tensor.clone().into_dispatch());
        let gradient = gradient.clone().into_dispatch();
        let clip = clip.clone().into_dispatch();
        // The handles that come back are others of the same memory.
        let _ =
            <Dispatch as OptimizerOps>::adamw(value, mean, variance, gradient, clip, factors, true);
    }
    #[cfg(not(feature = "gpu"))]
    let _ = (clip, factors);
}

/// Whether a kernel may read it as f32.
fn is_f32(tensor: &Tensor<1>) -> bool {
    tensor.dtype() == DType::F32
}

/// Adds `x` to `to`, both f32 `[n]`, also for everybody else who holds `to` or what it is a part of.
///
/// # Panics
///
/// If lengths or types differ, if `to` has gaps, and on a device without [`writes_in_place`].
pub fn add_in_place(to: &Tensor<1>, x: Tensor<1>) {
    assert_eq!(to.dims(), x.dims(), "add: lengths");
    assert!(is_f32(to) && is_f32(&x), "add: f32");
    assert!(writes_in_place(&to.device()), "add: device");
    #[cfg(feature = "gpu")]
    let _ = <Dispatch as OptimizerOps>::add_in_place(to.clone().into_dispatch(), x.into_dispatch());
}

/// Sets all values of `to`, f32 `[n]`, to zero, also for everybody else who holds it.
///
/// # Panics
///
/// Of another type, if `to` has gaps, and on a device without [`writes_in_place`].
pub fn clear(to: &Tensor<1>) {
    assert!(is_f32(to), "clear: f32");
    assert!(writes_in_place(&to.device()), "clear: device");
    #[cfg(feature = "gpu")]
    let _ = <Dispatch as OptimizerOps>::clear(to.clone().into_dispatch());
}

/// [`adamw`] made of tensor operations.
fn naive_adamw(
    [value, mean, variance]: [Tensor<1>; 3],
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    factors: AdamWFactors,
) -> [Tensor<1>; 3] {
    let f = factors;
    let gradient = gradient.clone() * clip.clone(); // [n]
    let square = gradient.clone() * gradient.clone(); // [n]
    let mean = mean.mul_scalar(f.beta[0]) + gradient.mul_scalar(f.rest[0]); // [n]
    let variance = variance.mul_scalar(f.beta[1]) + square.mul_scalar(f.rest[1]); // [n]
    let root = variance.clone().sqrt(); // [n]
    let denominator = root.div_scalar(f.correction).add_scalar(f.eps); // [n]
    let update = (mean.clone() / denominator).mul_scalar(f.rate); // [n]
    [value.mul_scalar(f.decay) - update, mean, variance]
}
