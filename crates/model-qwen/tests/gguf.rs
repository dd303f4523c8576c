//! Blocks of GGUF, against gguf-py: `data/golden/gguf`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use model_qwen::gguf::TensorType;
use safetensors::SafeTensors;

#[test]
fn blocks_are_those_of_gguf_py() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/gguf/blocks.safetensors");
    let bytes = fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let values = golden.tensor("values").unwrap();
    let values: Vec<f32> = values
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    for (kind, name) in [(TensorType::Q8_0, "q8_0"), (TensorType::Q4_0, "q4_0")] {
        let mut found = Vec::new();
        kind.encode(&values, &mut found);
        let expected = golden.tensor(name).unwrap();
        let expected = expected.data();
        assert_eq!(found.len(), expected.len(), "{name}");
        let first = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(first, None, "{name}: first byte that differs");
    }
}
