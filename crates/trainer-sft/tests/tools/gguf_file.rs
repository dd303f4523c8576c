//! A reader of GGUF files, written from the format's description: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// A tensor: its dimensions as in the file (the row length first), its type and its bytes.
pub(crate) struct Stored {
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct GgufFile {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Stored>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.bytes[self.at..self.at + N].try_into().unwrap();
        self.at += N;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        let text = self.bytes[self.at..self.at + len].to_vec();
        self.at += len;
        String::from_utf8(text).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => json!(self.u32()),
            5 => json!(i32::from_le_bytes(self.take())),
            6 => json!(f32::from_le_bytes(self.take())),
            7 => json!(self.take::<1>() == [1]),
            8 => json!(self.text()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                (0..len).map(|_| self.value(kind)).collect()
            }
            other => panic!("value of type {other}"),
        }
    }
}

impl GgufFile {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut reader = Reader {
            bytes: &bytes,
            at: 0,
        };
        assert_eq!(&reader.take::<4>(), b"GGUF");
        assert_eq!(reader.u32(), 3);
        let (num_tensors, num_values) = (reader.u64(), reader.u64());
        let mut metadata = BTreeMap::new();
        for _ in 0..num_values {
            let (key, kind) = (reader.text(), reader.u32());
            let value = reader.value(kind);
            assert!(metadata.insert(key, value).is_none());
        }
        let mut entries = Vec::new();
        for _ in 0..num_tensors {
            let name = reader.text();
            let num_dims = reader.u32();
            let dims: Vec<u64> = (0..num_dims).map(|_| reader.u64()).collect();
            let (kind, offset) = (reader.u32(), reader.u64());
            entries.push((name, dims, kind, offset as usize));
        }
        let start = reader.at.next_multiple_of(32);
        let mut end = start;
        let mut tensors = BTreeMap::new();
        for (name, dims, kind, offset) in entries {
            assert_eq!(start + offset, end, "{name} follows the one before");
            let len = dims.iter().product::<u64>() as usize;
            let num_bytes = match kind {
                0 => 4 * len,
                1 | 30 => 2 * len,
                2 => len / 32 * 18,
                8 => len / 32 * 34,
                other => panic!("{name} has type {other}"),
            };
            let own = bytes[end..end + num_bytes].to_vec();
            end += num_bytes.next_multiple_of(32);
            tensors.insert(
                name,
                Stored {
                    dims,
                    kind,
                    bytes: own,
                },
            );
        }
        assert_eq!(end, bytes.len());
        Self { metadata, tensors }
    }
}
