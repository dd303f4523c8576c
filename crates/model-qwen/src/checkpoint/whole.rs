//! What a file is that is no whole safetensors file.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Bytes of the number that says how long the header is.
const LEN: usize = 8;

#[derive(Deserialize)]
struct Place {
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<IgnoredAny>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Place>,
}

/// What is wrong with a file that the library refuses with `error`: it is cut, is too long, or is another kind of file.
pub(super) fn what_is_wrong(bytes: &[u8], error: &str) -> String {
    if let Some(kind) = other_kind(bytes) {
        return format!("expected safetensors, found {kind}");
    }
    let found = bytes.len() as u64;
    let cut = |expected: &str| {
        format!("the file is cut: expected {expected}, found {found}: download it again ({error})")
    };
    let Some(len) = bytes.first_chunk::<LEN>() else {
        return cut("at least 8 bytes");
    };
    let start = u64::from_le_bytes(*len).saturating_add(LEN as u64);
    // The header of a model has less; what says more is no safetensors file.
    let is_plausible = start <= 100 << 20 && bytes.get(LEN).is_none_or(|first| *first == b'{');
    let header = usize::try_from(start)
        .ok()
        .and_then(|end| bytes.get(LEN..end));
    let Some(header) = header else {
        return match is_plausible {
            true => cut(&format!("more than {start} bytes")),
            false => format!("not a safetensors file: {error}"),
        };
    };
    let Ok(header) = serde_json::from_slice::<Header>(header) else {
        return format!("not a whole safetensors file: {error}");
    };
    let end = header.tensors.values().map(|place| place.data_offsets.1);
    let expected = start.saturating_add(end.max().unwrap_or(0));
    if found < expected {
        return cut(&format!("{expected} bytes"));
    }
    match found > expected {
        true => format!(
            "the file is too long: expected {expected} bytes, found {found}: download it again ({error})"
        ),
        false => format!("not a whole safetensors file: {error}"),
    }
}

/// The kind of a file that begins with the mark of another format.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [b'P', b'K', 3, 4, ..] => {
            Some("a zip file, as PyTorch writes it: convert it to safetensors")
        }
        [
            0x80,
            2..=5,
            b'}' | b'c' | b']' | b'(' | b'\x8a' | b'\x95',
            ..,
        ] => Some("a pickle of Python, as old PyTorch writes it: convert it to safetensors"),
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file, which is not read"),
        [0x1f, 0x8b, ..] => Some("a gzip file: unpack it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use crate::checkpoint::Checkpoint;

    #[test]
    fn what_is_no_whole_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let view = TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap();
        let whole = safetensors::serialize([("w", view)], None).unwrap();
        let len = whole.len();
        let header = len - 8;
        let torch = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
        for (bytes, expected) in [
            (
                whole[..len - 1].to_vec(),
                format!(
                    "the file is cut: expected {len} bytes, found {}: download it again",
                    len - 1
                ),
            ),
            (
                whole[..20].to_vec(),
                format!("the file is cut: expected more than {header} bytes, found 20: download"),
            ),
            (
                whole[..5].to_vec(),
                "expected at least 8 bytes, found 5".to_owned(),
            ),
            (
                [whole.as_slice(), b"more"].concat(),
                format!(
                    "the file is too long: expected {len} bytes, found {}",
                    len + 4
                ),
            ),
            (
                b"PK\x03\x04\0\0\0\0\0\0\0\0".to_vec(),
                "found a zip file, as PyTorch".to_owned(),
            ),
            (torch, "found a pickle of Python".to_owned()),
            (
                b"\x80\x04\x95\0\0\0\0\0\0\0\0".to_vec(),
                "found a pickle of Python".to_owned(),
            ),
            (
                b"GGUF\x03\0\0\0\0\0\0\0".to_vec(),
                "found a GGUF file".to_owned(),
            ),
            (
                b"what is this file?".to_vec(),
                "not a safetensors file".to_owned(),
            ),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
            let named = format!("{}: ", path.display());
            assert!(
                error.starts_with(&named) && error.contains(&expected),
                "{error}\n{expected}"
            );
        }
        std::fs::write(&path, whole).unwrap();
        assert!(Checkpoint::open(dir.path()).is_ok());
    }
}
