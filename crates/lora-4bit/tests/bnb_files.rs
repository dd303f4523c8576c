//! bitsandbytes weights in safetensors files: what is written is read back, and damage is named.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;

use burn::tensor::DType;
use lora_4bit::bnb::{BnbError, OwnedTensor, is_quantized, nf4_tensors, quantize_tensor, read_nf4};
use lora_4bit::nf4::{Absmax, Nf4Data};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

const NAME: &str = "model.layers.0.mlp.up_proj.weight";
const STATE: &str = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4";

fn data(double_quant: bool) -> Nf4Data {
    let weight: Vec<f32> = (0..30 * 50)
        .map(|i| ((i * 31 % 97) as f32 - 48.0) / 40.0)
        .collect();
    Nf4Data::quantize(&weight, [30, 50], DType::BF16, double_quant)
}

fn tensors(double_quant: bool) -> BTreeMap<String, OwnedTensor> {
    nf4_tensors(NAME, &data(double_quant)).into_iter().collect()
}

fn read(tensors: &BTreeMap<String, OwnedTensor>) -> Result<Option<Nf4Data>, BnbError> {
    let bytes = serialize(tensors.clone(), None).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    read_nf4(&|name| file.tensor(name).ok(), NAME)
}

fn part(name: &str) -> String {
    format!("{NAME}.{name}")
}

/// The JSON text of the state, with one piece replaced.
fn with_state(double_quant: bool, from: &str, to: &str) -> BTreeMap<String, OwnedTensor> {
    let mut tensors = tensors(double_quant);
    let state = String::from_utf8(tensors[STATE].data.clone()).unwrap();
    assert!(state.contains(from), "{state}");
    let state = state.replace(from, to).into_bytes();
    let shape = vec![state.len()];
    tensors.insert(STATE.to_owned(), OwnedTensor::from_bytes(state, shape));
    tensors
}

#[track_caller]
fn assert_error(tensors: &BTreeMap<String, OwnedTensor>, parts: &[&str]) {
    let error = read(tensors).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    }
}

#[test]
fn written_weights_are_read_back() {
    for double_quant in [false, true] {
        assert_eq!(
            read(&tensors(double_quant)).unwrap(),
            Some(data(double_quant))
        );
    }
}

#[test]
fn state_is_the_json_of_bitsandbytes() {
    let tensors = tensors(false);
    let state = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [30, 50]}"#;
    assert_eq!(tensors[STATE].data, state.as_bytes());
    assert_eq!(tensors[NAME].shape, [750, 1]);
    assert_eq!(tensors[NAME].dtype, Dtype::U8);
}

#[test]
fn plain_weights_are_not_quantized() {
    let plain = OwnedTensor::from_f32s(&[1.0, 2.0]);
    assert_eq!(
        read(&BTreeMap::from([(NAME.to_owned(), plain)])).unwrap(),
        None
    );
    assert!(!is_quantized([NAME], NAME));
    assert!(is_quantized(tensors(false).keys(), NAME));
    assert!(!is_quantized(
        tensors(false).keys(),
        "model.layers.0.mlp.up_proj"
    ));
}

#[test]
fn maps_in_the_file_are_used() {
    let mut tensors = tensors(true);
    let mut code = data(true).quant_map;
    code[15] = 1.5;
    tensors.insert(part("quant_map"), OwnedTensor::from_f32s(&code));
    let mut map = vec![0.5; 256];
    map[3] = 0.25;
    tensors.insert(part("nested_quant_map"), OwnedTensor::from_f32s(&map));
    let read = read(&tensors).unwrap().unwrap();
    assert_eq!(read.quant_map[15], 1.5);
    assert_ne!(read.dequantize(), data(true).dequantize());
}

#[test]
fn missing_parts_are_named() {
    for missing in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        let mut tensors = tensors(true);
        tensors.remove(&part(missing));
        assert_eq!(
            read(&tensors).unwrap_err(),
            BnbError::Missing(part(missing))
        );
    }
    for missing in [NAME, STATE] {
        let mut tensors = tensors(true);
        tensors.remove(missing);
        assert_eq!(
            read(&tensors).unwrap_err(),
            BnbError::Missing(missing.to_owned())
        );
    }
}

#[test]
fn wrong_sizes_are_named() {
    for name in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        let mut tensors = tensors(true);
        let tensor = tensors.get_mut(&part(name)).unwrap();
        let value_len = tensor.data.len() / tensor.shape[0];
        tensor.shape = vec![tensor.shape[0] + 1];
        tensor.data.resize(tensor.shape[0] * value_len, 0);
        assert_error(&tensors, &[&part(name), "expected", "values"]);
    }
    let mut tensors = tensors(false);
    tensors.insert(
        NAME.to_owned(),
        OwnedTensor::from_bytes(vec![0; 749], vec![749, 1]),
    );
    assert_error(&tensors, &[NAME, "749 bytes", "expected 750", "[30, 50]"]);
}

#[test]
fn values_that_are_no_numbers_are_named() {
    for (double_quant, name) in [
        (false, "absmax"),
        (true, "quant_map"),
        (true, "nested_absmax"),
        (true, "nested_quant_map"),
    ] {
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let mut tensors = tensors(double_quant);
            let tensor = tensors.get_mut(&part(name)).unwrap();
            let last = tensor.shape[0] - 1;
            tensor.data[last * 4..].copy_from_slice(&value.to_le_bytes());
            assert_error(
                &tensors,
                &[&part(name), &format!("{value} at index {last}"), "finite"],
            );
        }
    }
    let Absmax::Double { offset, .. } = data(true).absmax else {
        panic!("scales are not double-quantized");
    };
    let found = format!("\"nested_offset\": {:?}", f64::from(offset));
    let tensors = with_state(true, &found, "\"nested_offset\": 1e300");
    assert_error(&tensors, &[NAME, "nested_offset", "range of f32"]);
}

#[test]
fn wrong_types_are_named() {
    let mut tensors = tensors(false);
    tensors.insert(
        part("absmax"),
        OwnedTensor::from_bytes(vec![0; 24], vec![24]),
    );
    assert_error(&tensors, &[&part("absmax"), "U8", "F32"]);
}

#[test]
fn other_formats_are_refused() {
    assert_error(
        &with_state(false, "\"nf4\"", "\"fp4\""),
        &[NAME, "quant_type", "fp4", "nf4"],
    );
    assert_error(
        &with_state(false, "64", "128"),
        &[NAME, "blocksize", "128", "64"],
    );
    assert_error(
        &with_state(false, "bfloat16", "int8"),
        &[NAME, "dtype", "int8"],
    );
    assert_error(
        &with_state(true, "256", "512"),
        &[NAME, "nested_blocksize", "512", "256"],
    );
    assert_error(
        &with_state(true, "float32", "float16"),
        &[NAME, "nested_dtype", "float16"],
    );

    let mut fp4 = tensors(false);
    let state = fp4.remove(STATE).unwrap();
    fp4.insert(part("quant_state.bitsandbytes__fp4"), state);
    assert_error(&fp4, &[NAME, "fp4"]);

    let int8 = BTreeMap::from([
        (
            NAME.to_owned(),
            OwnedTensor::from_bytes(vec![0; 4], vec![2, 2]),
        ),
        (
            "model.layers.0.mlp.up_proj.SCB".to_owned(),
            OwnedTensor::from_f32s(&[1.0; 2]),
        ),
    ]);
    assert_error(&int8, &[NAME, "LLM.int8"]);
}

#[test]
fn damaged_states_are_named() {
    assert_error(&with_state(false, "}", ""), &[STATE, "EOF"]);
    assert_error(
        &with_state(false, "[30, 50]", "[1500]"),
        &[STATE, "[1500]", "two numbers"],
    );
    assert_error(&with_state(false, "[30, 50]", "[30, -50]"), &[STATE]);
    assert_error(
        &with_state(false, "[30, 50]", "[4294967296, 4294967296]"),
        &[STATE, "too many values"],
    );
    assert_error(
        &with_state(true, "nested_offset", "offset"),
        &[STATE, "nested_offset is missing"],
    );
}

#[test]
fn float_tensors_are_quantized() {
    let values: Vec<f32> = (0..1500)
        .map(|i| ((i * 31 % 97) as f32 - 48.0) / 64.0)
        .collect();
    let expected = Nf4Data::quantize(&values, [30, 50], DType::F32, true);
    let f32s = OwnedTensor::from_f32s(&values).data;
    let view = TensorView::new(Dtype::F32, vec![30, 50], &f32s).unwrap();
    assert_eq!(quantize_tensor(NAME, &view, true).unwrap(), expected);
    let to_bf16 = |x: &f32| half::bf16::from_f32(*x).to_le_bytes();
    let bf16s: Vec<u8> = values.iter().flat_map(to_bf16).collect();
    let view = TensorView::new(Dtype::BF16, vec![30, 50], &bf16s).unwrap();
    let read = quantize_tensor(NAME, &view, true).unwrap();
    assert_eq!(
        read,
        Nf4Data {
            dtype: DType::BF16,
            ..expected
        }
    );
}

#[test]
fn weights_that_cannot_be_quantized_are_named() {
    let mut values = vec![0.5; 64];
    values[7] = f32::INFINITY;
    let bytes = OwnedTensor::from_f32s(&values).data;
    let view = TensorView::new(Dtype::F32, vec![4, 16], &bytes).unwrap();
    let error = quantize_tensor(NAME, &view, false).unwrap_err();
    let expected = format!("tensor `{NAME}` has the value inf at index 7, expected finite numbers");
    assert_eq!(error.to_string(), expected);
    let view = TensorView::new(Dtype::F32, vec![64], &bytes).unwrap();
    let error = quantize_tensor(NAME, &view, false).unwrap_err();
    assert!(matches!(error, BnbError::NotAMatrix { .. }), "{error}");
    let view = TensorView::new(Dtype::I32, vec![4, 16], &bytes).unwrap();
    let error = quantize_tensor(NAME, &view, false).unwrap_err();
    assert!(matches!(error, BnbError::Dtype { .. }), "{error}");
}
