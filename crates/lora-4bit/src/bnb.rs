//! The layout of bitsandbytes 4-bit weights inside safetensors files.
//!
//! A weight `P.weight` is stored as `P.weight` (packed codes, `[n / 2, 1]`), `P.weight.absmax` (scales; F32, or U8 codes
//! with double quantization), `P.weight.quant_map` (F32 `[16]`), with double quantization also `P.weight.nested_absmax`
//! (F32) and `P.weight.nested_quant_map` (F32 `[256]`), and `P.weight.quant_state.bitsandbytes__nf4`: a JSON text as U8.
//!
//! Source: `QuantState.as_dict` and `QuantState.from_dict` in `bitsandbytes/functional.py` of bitsandbytes 0.50.

mod error;
mod file;
mod finite;
mod names;
mod write;

use burn::tensor::DType;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

use crate::nf4::{Absmax, BLOCK_SIZE, NESTED_BLOCK_SIZE, Nf4Data};
use finite::check_finite;
use names::QUANT_STATE;

pub use error::BnbError;
pub use file::{QuantizeFileError, QuantizedFile, TensorFile};
pub use write::{OwnedTensor, decode_floats, nf4_tensors, quantize_tensor};

/// The JSON in `quant_state.bitsandbytes__nf4`.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// Whether `names`, the tensor names of a checkpoint, hold the weight `weight_name` in a bitsandbytes 4-bit format.
pub fn is_quantized<I>(names: I, weight_name: &str) -> bool
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    names.into_iter().any(|name| {
        name.as_ref()
            .strip_prefix(weight_name)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|rest| rest.starts_with(QUANT_STATE))
    })
}

/// Reads the parts of the weight `weight_name` (with its `.weight`) through `get`, which looks a tensor up by name.
///
/// The maps in the file are used, whatever they hold. `None` means that the weight is not quantized.
///
/// # Errors
///
/// If a part is missing, has the wrong type or size, or the weight is quantized with FP4, LLM.int8 or block sizes other
/// than 64 and 256.
pub fn read_nf4<'data>(
    get: &dyn Fn(&str) -> Option<TensorView<'data>>,
    weight_name: &str,
) -> Result<Option<Nf4Data>, BnbError> {
    let parts = Parts { get, weight_name };
    let state_name = parts.state_name();
    let Some((state, shape, dtype)) = parts.quant_state(&state_name)? else {
        return Ok(None);
    };
    let reason = || format!(" for shape [{}, {}]", shape[0], shape[1]);
    let num_values = shape[0]
        .checked_mul(shape[1])
        .filter(|n| *n <= isize::MAX as usize)
        .ok_or_else(|| BnbError::QuantState {
            name: state_name.clone(),
            reason: format!("shape [{}, {}] has too many values", shape[0], shape[1]),
        })?;
    let num_blocks = num_values.div_ceil(BLOCK_SIZE);

    let packed = get(weight_name).ok_or_else(|| BnbError::Missing(weight_name.to_owned()))?;
    check_length(
        weight_name,
        "bytes",
        num_values.div_ceil(2),
        packed.data().len(),
        reason(),
    )?;
    let quant_map = parts.f32s("quant_map", 16, String::new())?;
    let mut code = [0.0; 16];
    code.copy_from_slice(&quant_map);

    let nested = state.nested_offset.is_some() || parts.has("nested_absmax");
    let absmax = if nested {
        let offset = parts.nested_offset(&state_name, &state)?;
        let codes = parts.u8s("absmax", num_blocks, reason())?;
        let mut map = Box::new([0.0; 256]);
        map.copy_from_slice(&parts.f32s("nested_quant_map", 256, String::new())?);
        let num_nested = num_blocks.div_ceil(NESTED_BLOCK_SIZE);
        Absmax::Double {
            codes,
            map,
            nested_absmax: parts.f32s("nested_absmax", num_nested, reason())?,
            offset,
        }
    } else {
        Absmax::Single(parts.f32s("absmax", num_blocks, reason())?)
    };
    Ok(Some(Nf4Data {
        packed: packed.data().to_vec(),
        absmax,
        quant_map: code,
        shape,
        dtype,
    }))
}

/// The shape `[out, in]` and the original type of a weight, without reading its values. Otherwise as [`read_nf4`].
///
/// # Errors
///
/// If the quantization state is missing or broken, or the weight is quantized in another way.
pub fn read_nf4_shape<'data>(
    get: &dyn Fn(&str) -> Option<TensorView<'data>>,
    weight_name: &str,
) -> Result<Option<([usize; 2], DType)>, BnbError> {
    let parts = Parts { get, weight_name };
    let state = parts.quant_state(&parts.state_name())?;
    Ok(state.map(|(_, shape, dtype)| (shape, dtype)))
}

/// The tensors of one weight, looked up by role.
struct Parts<'a, 'data> {
    get: &'a dyn Fn(&str) -> Option<TensorView<'data>>,
    weight_name: &'a str,
}

impl<'data> Parts<'_, 'data> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.weight_name)
    }

    fn state_name(&self) -> String {
        self.name(&format!("{QUANT_STATE}nf4"))
    }

    fn has(&self, part: &str) -> bool {
        (self.get)(&self.name(part)).is_some()
    }

    fn unsupported(
        &self,
        field: &'static str,
        found: impl Into<String>,
        supported: &'static str,
    ) -> BnbError {
        BnbError::Unsupported {
            name: self.weight_name.to_owned(),
            field,
            found: found.into(),
            supported,
        }
    }

    /// Refuses the bitsandbytes formats that would otherwise look like a plain weight.
    fn refuse_other_formats(&self) -> Result<(), BnbError> {
        if self.has(&format!("{QUANT_STATE}fp4")) {
            return Err(self.unsupported("quant_type", "fp4", "nf4"));
        }
        let module = self
            .weight_name
            .strip_suffix(".weight")
            .unwrap_or(self.weight_name);
        if (self.get)(&format!("{module}.SCB")).is_some() {
            return Err(self.unsupported("quant_type", "LLM.int8 (8 bits)", "nf4"));
        }
        if self.has("absmax") {
            return Err(BnbError::Missing(self.name(&format!("{QUANT_STATE}nf4"))));
        }
        Ok(())
    }

    /// Parses and checks the JSON in the tensor `name`: the state, the shape `[out, in]` and the type of the original weight.
    /// `None` means that the weight is not quantized.
    fn quant_state(&self, name: &str) -> Result<Option<(QuantState, [usize; 2], DType)>, BnbError> {
        let Some(tensor) = (self.get)(name) else {
            return self.refuse_other_formats().map(|()| None);
        };
        check_dtype(name, "U8", &[Dtype::U8], &tensor)?;
        let invalid = |reason: String| BnbError::QuantState {
            name: name.to_owned(),
            reason,
        };
        let state: QuantState =
            serde_json::from_slice(tensor.data()).map_err(|error| invalid(error.to_string()))?;
        if state.quant_type != "nf4" {
            return Err(self.unsupported("quant_type", &*state.quant_type, "nf4"));
        }
        if state.blocksize != BLOCK_SIZE {
            return Err(self.unsupported("blocksize", state.blocksize.to_string(), "64"));
        }
        let shape = <[usize; 2]>::try_from(state.shape.as_slice())
            .map_err(|_| invalid(format!("shape is {:?}, expected two numbers", state.shape)))?;
        let dtype = match state.dtype.as_str() {
            "bfloat16" => DType::BF16,
            "float16" => DType::F16,
            "float32" => DType::F32,
            other => return Err(self.unsupported("dtype", other, "bfloat16, float16, float32")),
        };
        Ok(Some((state, shape, dtype)))
    }

    /// Checks the part of the JSON that double quantization adds.
    fn nested_offset(&self, name: &str, state: &QuantState) -> Result<f32, BnbError> {
        if state.nested_blocksize != Some(NESTED_BLOCK_SIZE) {
            let found = state
                .nested_blocksize
                .map_or_else(|| "missing".to_owned(), |size| size.to_string());
            return Err(self.unsupported("nested_blocksize", found, "256"));
        }
        match state.nested_dtype.as_deref() {
            None | Some("float32") => {}
            Some(other) => return Err(self.unsupported("nested_dtype", other, "float32")),
        }
        let offset = state.nested_offset.ok_or_else(|| BnbError::QuantState {
            name: name.to_owned(),
            reason: "nested_offset is missing, although the scales are double-quantized".to_owned(),
        })?;
        match offset as f32 {
            finite if finite.is_finite() => Ok(finite),
            _ => Err(self.unsupported(
                "nested_offset",
                offset.to_string(),
                "a number in the range of f32",
            )),
        }
    }

    fn part(&self, part: &str) -> Result<(String, TensorView<'data>), BnbError> {
        let name = self.name(part);
        match (self.get)(&name) {
            Some(tensor) => Ok((name, tensor)),
            None => Err(BnbError::Missing(name)),
        }
    }

    fn f32s(&self, part: &str, expected: usize, reason: String) -> Result<Vec<f32>, BnbError> {
        let (name, tensor) = self.part(part)?;
        check_dtype(&name, "F32", &[Dtype::F32], &tensor)?;
        let data = tensor.data();
        check_length(&name, "values", expected, data.len() / 4, reason)?;
        let bytes = data.as_chunks().0.iter();
        let values: Vec<f32> = bytes.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        check_finite(&name, &values)?;
        Ok(values)
    }

    fn u8s(&self, part: &str, expected: usize, reason: String) -> Result<Vec<u8>, BnbError> {
        let (name, tensor) = self.part(part)?;
        check_dtype(
            &name,
            "U8 (the scales are double-quantized)",
            &[Dtype::U8],
            &tensor,
        )?;
        check_length(&name, "values", expected, tensor.data().len(), reason)?;
        Ok(tensor.data().to_vec())
    }
}

fn check_dtype(
    name: &str,
    expected: &'static str,
    allowed: &[Dtype],
    tensor: &TensorView<'_>,
) -> Result<(), BnbError> {
    if allowed.contains(&tensor.dtype()) {
        return Ok(());
    }
    Err(BnbError::Dtype {
        name: name.to_owned(),
        expected,
        found: tensor.dtype(),
    })
}

fn check_length(
    name: &str,
    unit: &'static str,
    expected: usize,
    found: usize,
    reason: String,
) -> Result<(), BnbError> {
    if expected == found {
        return Ok(());
    }
    Err(BnbError::Length {
        name: name.to_owned(),
        unit,
        expected,
        found,
        reason,
    })
}
