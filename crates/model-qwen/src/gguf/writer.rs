//! The frame of a GGUF file: header, metadata, the list of tensors, and their aligned data.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::GgufError;
use super::error::io_error;
use super::metadata::{Entry, write_text};
use super::quants::TensorType;
use crate::merge::sync;

/// Tensors begin at multiples of this.
const ALIGNMENT: usize = 32;

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its name.
    pub(super) name: String,
    /// Its shape, rows first; in the file the order is the other way round.
    pub(super) shape: Vec<usize>,
    /// How its values are stored.
    pub(super) kind: TensorType,
}

impl Slot {
    /// Bytes of its values.
    pub(super) fn num_bytes(&self) -> usize {
        self.kind.num_bytes(self.shape.iter().product())
    }
}

/// Bytes of all tensors, with what fills up each one.
pub(super) fn data_len(slots: &[Slot]) -> u64 {
    let sizes = slots
        .iter()
        .map(|slot| slot.num_bytes().next_multiple_of(ALIGNMENT) as u64);
    sizes.sum()
}

/// A file whose header is written; the tensors follow in their order.
pub(super) struct GgufWriter {
    path: PathBuf,
    out: BufWriter<File>,
    /// Bytes of the tensor that is being written.
    written: usize,
}

impl GgufWriter {
    /// Creates the file and writes everything but the tensors.
    pub(super) fn create(
        path: &Path,
        metadata: &[Entry],
        slots: &[Slot],
    ) -> Result<Self, GgufError> {
        let file = File::create_new(path).map_err(io_error(path))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&head(metadata, slots))
            .map_err(io_error(path))?;
        Ok(Self {
            path: path.to_owned(),
            out,
            written: 0,
        })
    }

    /// Writes a part of the next tensor.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        self.written += bytes.len();
        let written = self.out.write_all(bytes);
        written.map_err(io_error(&self.path))
    }

    /// Ends a tensor, which must have been written whole.
    pub(super) fn end(&mut self, slot: &Slot) -> Result<(), GgufError> {
        let (written, expected) = (self.written, slot.num_bytes());
        if written != expected {
            let text = format!(
                "tensor `{}`: expected {expected} bytes, wrote {written}",
                slot.name
            );
            return Err(io_error(&self.path)(io::Error::other(text)));
        }
        let padding = expected.next_multiple_of(ALIGNMENT) - expected;
        self.write(&[0; ALIGNMENT][..padding])?;
        self.written = 0;
        Ok(())
    }

    /// Waits until the file is on the disk.
    pub(super) fn finish(self) -> Result<(), GgufError> {
        sync(self.out).map_err(io_error(&self.path))
    }
}

/// Everything before the tensors.
fn head(metadata: &[Entry], slots: &[Slot]) -> Vec<u8> {
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((slots.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_text(key, &mut head);
        value.write(&mut head);
    }
    let mut offset = 0u64;
    for slot in slots {
        write_text(&slot.name, &mut head);
        head.extend((slot.shape.len() as u32).to_le_bytes());
        for len in slot.shape.iter().rev() {
            head.extend((*len as u64).to_le_bytes());
        }
        head.extend(slot.kind.id().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += slot.num_bytes().next_multiple_of(ALIGNMENT) as u64;
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    head
}
