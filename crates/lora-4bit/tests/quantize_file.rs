//! Quantizing a safetensors file: chosen weights become NF4, others stay, and broken files are named.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lora_4bit::bnb::{OwnedTensor, TensorFile, quantize_tensor, read_nf4};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{serialize, serialize_to_file};

fn tensors() -> Vec<(&'static str, OwnedTensor)> {
    let values: Vec<f32> = (0..16 * 128)
        .map(|i| (i * 37 % 101) as f32 - 50.0)
        .collect();
    let mut weight = OwnedTensor::from_f32s(&values);
    weight.shape = vec![16, 128];
    vec![
        ("a.weight", weight.clone()),
        ("b.weight", weight),
        ("b.bias", OwnedTensor::from_f32s(&[1.0, 2.0])),
    ]
}

fn input(dir: &Path) -> PathBuf {
    let path = dir.join("in.safetensors");
    serialize_to_file(tensors(), None, &path).unwrap();
    path
}

#[test]
fn chosen_weights_are_quantized_and_others_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (input(dir.path()), dir.path().join("out.safetensors"));
    for double_quant in [false, true] {
        let mut told = Vec::new();
        let mut file = TensorFile::open(&input).unwrap();
        let written = file.quantize_to(
            &output,
            double_quant,
            |name| name == "a.weight",
            |name, num_bytes| {
                told.push((name.to_owned(), num_bytes));
                ControlFlow::Continue(())
            },
        );
        let written = written.unwrap();
        assert_eq!(written.num_weights, 1);
        let total: u64 = told.iter().map(|(_, num_bytes)| num_bytes).sum();
        assert_eq!((told.len(), total), (3, file.data_len()));

        let bytes = std::fs::read(&output).unwrap();
        let found = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(found.len(), written.tensors.len());
        for (name, len) in &written.tensors {
            assert_eq!(found.tensor(name).unwrap().data().len(), *len, "{name}");
        }
        let original = serialize(tensors(), None).unwrap();
        let original = SafeTensors::deserialize(&original).unwrap();
        for name in ["b.weight", "b.bias"] {
            assert_eq!(found.tensor(name).unwrap(), original.tensor(name).unwrap());
        }
        let weight = original.tensor("a.weight").unwrap();
        let expected = quantize_tensor("a.weight", &weight, double_quant).unwrap();
        let read = read_nf4(&|name| found.tensor(name).ok(), "a.weight");
        assert_eq!(read.unwrap(), Some(expected));
    }
}

#[test]
fn a_tensor_that_cannot_be_quantized_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = TensorFile::open(&input(dir.path())).unwrap();
    let output = dir.path().join("out.safetensors");
    let error = file.quantize_to(
        &output,
        true,
        |name| name == "b.bias",
        |_, _| ControlFlow::Continue(()),
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("in.safetensors") && error.contains("`b.bias`"),
        "{error}"
    );
}

#[test]
fn a_value_that_is_no_number_is_named_in_a_tensor_that_stays() {
    let dir = tempfile::tempdir().unwrap();
    for (name, index, index_shown) in [("a.weight", 5, "index 5"), ("b.bias", 1, "index 1")] {
        let mut tensors = tensors();
        let (_, tensor) = tensors.iter_mut().find(|(own, _)| *own == name).unwrap();
        let size = tensor.dtype.bitsize() / 8;
        // All bits of the exponent.
        tensor.data[index * size..][..size].fill(0x7f);
        tensor.data[index * size + size - 2] = 0xff;
        let path = dir.path().join("nan.safetensors");
        std::fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
        let mut file = TensorFile::open(&path).unwrap();
        let going_on = |_: &str, _| ControlFlow::Continue(());
        let error = file.quantize_to(&dir.path().join("out"), true, |_| false, going_on);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains(index_shown),
            "{error}"
        );
    }
}

proptest! {
    /// Files that are cut off, longer than they say, or nothing of the kind.
    #[test]
    fn broken_files_are_refused(cut in 0usize..9000, byte in any::<u8>(), place in 0usize..400) {
        let dir = tempfile::tempdir().unwrap();
        let path = input(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let len = bytes.len();
        bytes.truncate(cut.min(len - 1));
        std::fs::write(&path, &bytes).unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        prop_assert!(error.contains("in.safetensors"), "{}", error);

        let mut bytes = serialize(tensors(), None).unwrap();
        bytes.push(0);
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(TensorFile::open(&path).is_err(), "a byte too many");

        // One wrong byte in the header: refused, or read as another valid file. It never panics.
        let mut bytes = serialize(tensors(), None).unwrap();
        let place = place % bytes.len();
        bytes[place] = byte;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(mut file) = TensorFile::open(&path) {
            let _ = file.quantize_to(&dir.path().join("out"), false, |_| true, |_, _| ControlFlow::Continue(()));
        }
    }
}
