//! TensorBoard's event files: records of one `Event` message each, with check sums.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::metrics::Record;

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Makes a new file in `folder`. A run that goes on after `resumed` steps makes TensorBoard forget what an earlier file of
    /// the folder has of later steps.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn create(folder: &Path, resumed: Option<usize>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let seconds = wall_time() as u64;
        let id = std::process::id();
        let (file, path) = new_file(folder, |number| {
            format!("events.out.tfevents.{seconds}.trainer-sft.{id}.{number}")
        })?;
        let mut events = Self { file, path };
        events.put(0, &bytes_field(3, b"brain.Event:2"))?;
        if let Some(step) = resumed {
            // A session log with the status START.
            events.put(step + 1, &bytes_field(7, &[0x08, 1]))?;
        }
        Ok(events)
    }

    /// Writes the numbers of a record, with the tags of transformers: `train/loss`, `eval/loss`, …
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&mut self, record: &Record) -> io::Result<()> {
        let Ok(Value::Object(numbers)) = serde_json::to_value(record) else {
            return Ok(());
        };
        let mut summary = Vec::new();
        for (name, value) in numbers.iter().filter(|(name, _)| *name != "step") {
            let Some(value) = value.as_f64() else {
                continue;
            };
            let tag = match name.strip_prefix("eval_") {
                Some(name) => format!("eval/{name}"),
                None => format!("train/{name}"),
            };
            let mut one = bytes_field(1, tag.as_bytes());
            one.push(2 << 3 | 5);
            one.extend((value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &one));
        }
        self.put(record.step, &bytes_field(5, &summary))
    }

    /// Where the events go.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an event with `what`, which is a field of it.
    fn put(&mut self, step: usize, what: &[u8]) -> io::Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(wall_time().to_le_bytes());
        event.push(2 << 3);
        event.extend(varint(step as u64));
        event.extend(what);
        self.file.write_all(&framed(&event))
    }
}

/// Makes the first file of these names that does not exist.
fn new_file(folder: &Path, name: impl Fn(usize) -> String) -> io::Result<(File, PathBuf)> {
    let mut number = 0;
    loop {
        let path = folder.join(name(number));
        match File::create_new(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}

/// A field of a protocol buffer message with a string, bytes or a message in it.
fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(bytes.len() as u64));
    field.extend(bytes);
    field
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A record: length, its check sum, the bytes, their check sum.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let sums = [length.as_slice(), bytes].map(|bytes| masked(crc32c(bytes)).to_le_bytes());
    [&length, &sums[0][..], bytes, &sums[1]].concat()
}

/// As TFRecord files have it, so that sums over data with sums in it stay good.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_sum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn numbers_take_seven_bits_a_byte() {
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(300), [0xac, 2]);
    }

    #[test]
    fn a_file_has_its_version_and_the_numbers_of_its_records() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), Some(4)).unwrap();
        let record = Record {
            step: 5,
            loss: Some(1.5),
            eval_loss: Some(2.5),
            ..Record::default()
        };
        events.write(&record).unwrap();
        let bytes = fs::read(events.path()).unwrap();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(framed(&rest[12..12 + length]), rest[..length + 16]);
            found.push(rest[12..12 + length].to_vec());
            rest = &rest[length + 16..];
        }
        assert_eq!(found.len(), 3);
        let has = |event: &[u8], part: &[u8]| event.windows(part.len()).any(|w| w == part);
        assert!(has(&found[0], b"brain.Event:2"));
        assert!(has(&found[1], &[0x10, 5, 0x3a, 2, 8, 1]));
        for (tag, value) in [("train/loss", 1.5f32), ("eval/loss", 2.5)] {
            let one = [tag.as_bytes(), &[0x15], &value.to_le_bytes()].concat();
            assert!(has(&found[2], &one), "{tag}");
        }
        assert!(!has(&found[2], b"step"));
        // Another run of the same second gets a file of its own.
        let other = EventFile::create(folder.path(), None).unwrap();
        assert_ne!(other.path(), events.path());
    }
}
