//! The operands of a product, and its result.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

/// The sizes of a product: `left [m, inner]`, `right [inner, columns]` → `[m, columns]`.
#[derive(Clone, Copy)]
pub(super) struct ProductShape {
    pub(super) m: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
}

/// Runs `kernel` on the values of `left` and room for the result, which it fills, unless one of the sizes is zero.
pub(super) fn product(
    left: &FlexTensor,
    columns: usize,
    kernel: impl FnOnce(&[f32], ProductShape, *mut f32),
) -> FlexTensor {
    let [m, inner] = left.layout().shape().dims();
    let len = m * columns;
    let mut y = Vec::with_capacity(len);
    if m * inner * columns > 0 {
        let shape = ProductShape { m, inner, columns };
        kernel(left.storage::<f32>(), shape, y.as_mut_ptr());
        // SAFETY: the kernel has written every value.
        unsafe { y.set_len(len) };
    } else {
        y.resize(len, 0f32);
    }
    let layout = Layout::contiguous(Shape::new([m, columns]));
    FlexTensor::new(Bytes::from_elems(y), layout, DType::F32)
}

/// Both operands contiguous, if the kernels know their types.
pub(super) fn operands(x: &FlexTensor, w: &FlexTensor) -> Option<(FlexTensor, FlexTensor)> {
    let known = matches!(w.dtype(), DType::F32 | DType::BF16 | DType::F16);
    let x = activations(x)?;
    known.then(|| (x, w.to_contiguous()))
}

/// The tensor contiguous, if it is f32.
pub(super) fn activations(x: &FlexTensor) -> Option<FlexTensor> {
    (x.dtype() == DType::F32).then(|| x.to_contiguous())
}

/// A tensor whose storage is exactly its elements, in order, so that it can be written to.
pub(super) fn exact(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    let len = layout.num_elements() * size_of::<f32>();
    if tensor.is_contiguous() && layout.start_offset() == 0 && tensor.bytes().len() == len {
        return tensor;
    }
    FlexTensor::from_data(tensor.to_contiguous().into_data())
}

/// What the plan asks for exists: its features say so.
pub(super) fn there<T>(kernels: Option<T>) -> T {
    match kernels {
        Some(kernels) => kernels,
        None => unreachable!("a plan names loops that this CPU has"),
    }
}
