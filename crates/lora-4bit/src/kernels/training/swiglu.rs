//! SwiGLU and its gradient.

#[cfg(feature = "gpu")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use tracing::trace_span;

use super::naive;
#[cfg(feature = "gpu")]
use crate::kernels::cube::features::has_kernels;
#[cfg(feature = "gpu")]
use crate::kernels::device_ops::TrainingOps;

/// `silu(gate) * up` of rows that hold a gate and then what it multiplies.
///
/// # Shapes
///
/// `gate_up [tokens, 2 * width]` → `[tokens, width]`, of the same type
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let _span = trace_span!("swiglu").entered();
    #[cfg(feature = "gpu")]
    if has_kernels(&gate_up) {
        let y = <Dispatch as TrainingOps>::training_swiglu(gate_up.into_dispatch());
        return Tensor::from_dispatch(y);
    }
    naive::swiglu(gate_up)
}

/// The gradient of [`swiglu`], and its result once more. They take the memory of `gate_up` and of `dy`, which nobody else may
/// hold.
///
/// # Shapes
///
/// `gate_up [tokens, 2 * width]`, `dy [tokens, width]` → `[tokens, 2 * width]` and `[tokens, width]`, all of one type
pub fn swiglu_backward(gate_up: Tensor<2>, dy: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let _span = trace_span!("swiglu_backward").entered();
    #[cfg(feature = "gpu")]
    if has_kernels(&gate_up) {
        let (gate_up, dy) = (gate_up.into_dispatch(), dy.into_dispatch());
        let (d, y) = <Dispatch as TrainingOps>::training_swiglu_backward(gate_up, dy);
        return (Tensor::from_dispatch(d), Tensor::from_dispatch(y));
    }
    (
        naive::swiglu_backward(gate_up.clone(), dy),
        naive::swiglu(gate_up),
    )
}
