//! NF4 against data/golden/nf4, made by bitsandbytes on the CPU (`xtask/golden/nf4.py`). All comparisons are exact.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;

use burn::tensor::DType;
use half::{bf16, f16};
use lora_4bit::dynamic_map::{dequantize_blockwise, dynamic_map, quantize_blockwise};
use lora_4bit::nf4::{Absmax, NF4_CODE, Nf4Data, quantize_absmax, quantize_absmax_with_offset};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

const CASES: [&str; 12] = [
    "random_f32",
    "random_bf16",
    "random_f16",
    "blocks_cross_rows",
    "partial_last_block",
    "odd_length",
    "shorter_than_a_block",
    "ties",
    "zero_block",
    "all_zero",
    "zero_partial_block",
    "nested_blocks",
];

fn golden() -> Vec<u8> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/nf4/cases.safetensors");
    std::fs::read(path).unwrap()
}

fn f32s(tensor: &TensorView<'_>) -> Vec<f32> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => data
            .as_chunks()
            .0
            .iter()
            .map(|x| f32::from_le_bytes(*x))
            .collect(),
        Dtype::BF16 => data
            .as_chunks()
            .0
            .iter()
            .map(|x| bf16::from_le_bytes(*x).to_f32())
            .collect(),
        Dtype::F16 => data
            .as_chunks()
            .0
            .iter()
            .map(|x| f16::from_le_bytes(*x).to_f32())
            .collect(),
        other => panic!("unexpected dtype {other}"),
    }
}

/// Equal bits, so that -0.0 and 0.0 differ.
#[track_caller]
fn assert_same(name: &str, ours: &[f32], reference: &[f32]) {
    assert_eq!(ours.len(), reference.len(), "{name}");
    for (i, (x, y)) in ours.iter().zip(reference).enumerate() {
        assert_eq!(x.to_bits(), y.to_bits(), "{name}[{i}]: {x} instead of {y}");
    }
}

fn quantize(weight: &TensorView<'_>) -> Nf4Data {
    let dtype = match weight.dtype() {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    };
    let shape = [weight.shape()[0], weight.shape()[1]];
    Nf4Data::quantize(&f32s(weight), shape, dtype, false)
}

#[test]
fn codes_scales_and_values_are_those_of_bitsandbytes() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    for case in CASES {
        let get = |part: &str| file.tensor(&format!("{case}.{part}")).unwrap();
        let data = quantize(&get("weight"));
        assert_eq!(data.packed, get("packed").data(), "{case}");
        assert_same(case, &data.absmax.dequantize(), &f32s(&get("absmax")));
        assert_same(case, &data.dequantize(), &f32s(&get("dequantized")));
    }
}

#[test]
fn double_quantization_is_that_of_bitsandbytes() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    for case in CASES {
        let get = |part: &str| file.tensor(&format!("{case}.{part}")).unwrap();
        let mut data = quantize(&get("weight"));
        let absmax = data.absmax.dequantize();
        let reference_offset = f32s(&get("nested_offset"))[0];

        let Absmax::Double { offset, .. } = quantize_absmax(&absmax) else {
            panic!("not double-quantized");
        };
        let difference = (offset - reference_offset).abs();
        assert!(
            difference <= 1e-6 * reference_offset.abs(),
            "{case}: mean {offset}, {reference_offset}"
        );

        data.absmax = quantize_absmax_with_offset(&absmax, reference_offset);
        let Absmax::Double {
            codes,
            nested_absmax,
            ..
        } = &data.absmax
        else {
            panic!("not double-quantized");
        };
        assert_eq!(codes, get("nested_codes").data(), "{case}");
        assert_same(case, nested_absmax, &f32s(&get("nested_absmax")));
        assert_same(case, &data.dequantize(), &f32s(&get("nested_dequantized")));
    }
}

#[test]
fn quantizing_twice_the_same_way_changes_nothing() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    let weight = f32s(&file.tensor("nested_blocks.weight").unwrap());
    let once = Nf4Data::quantize(&weight, [64, 320], DType::F32, false);
    let twice = Nf4Data::quantize(&once.dequantize(), [64, 320], DType::F32, false);
    assert_eq!(once, twice);
}

#[test]
fn maps_are_those_of_bitsandbytes() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    assert_same(
        "dynamic_map",
        dynamic_map(),
        &f32s(&file.tensor("dynamic_map").unwrap()),
    );
    assert_same(
        "ties",
        &NF4_CODE,
        &f32s(&file.tensor("ties.weight").unwrap())[64 + 16..64 + 32],
    );
}

#[test]
fn blockwise_codes_are_those_of_bitsandbytes() {
    let file = golden();
    let file = SafeTensors::deserialize(&file).unwrap();
    let values = f32s(&file.tensor("blockwise.values").unwrap());
    let (codes, absmax) = quantize_blockwise(&values, dynamic_map(), 256);
    assert_eq!(codes, file.tensor("blockwise.codes").unwrap().data());
    assert_same(
        "absmax",
        &absmax,
        &f32s(&file.tensor("blockwise.absmax").unwrap()),
    );
    assert_eq!(
        dequantize_blockwise(&codes, dynamic_map(), &absmax, 256).len(),
        values.len()
    );
}
