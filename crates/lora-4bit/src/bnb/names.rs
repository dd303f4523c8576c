//! Names of the tensors of a weight.

/// What the name of the tensor with the quantization state begins with, after the weight's own name.
pub(super) const QUANT_STATE: &str = "quant_state.bitsandbytes__";
