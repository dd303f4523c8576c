//! Zip files: wheels, and packages for Windows. The same content makes the same bytes.

use std::io::Write as _;

use anyhow::{Context, Result};
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

/// 1980-01-01, the first day that the format knows.
const DAY: u16 = 0x21;
/// With deflate.
const VERSION: u16 = 20;
const UNIX: u16 = 3 << 8;
const REGULAR_FILE: u32 = 0o100_000;

/// A zip file in memory.
#[derive(Default)]
pub(super) struct Zip {
    files: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

/// Adds numbers in the format's order.
macro_rules! put {
    ($out:expr, $($number:expr),* $(,)?) => {
        $($out.extend_from_slice(&$number.to_le_bytes());)*
    };
}

impl Zip {
    /// Adds a file with its rights.
    pub(super) fn add(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let mut crc = Crc::new();
        crc.update(content);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content)?;
        let packed = encoder.finish()?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).context("a file above 4 GiB");
        let offset = length(&self.files)?;
        let (deflated, flags, time, name_length) = (8_u16, 0_u16, 0_u16, name.len() as u16);
        let (packed_length, whole_length) = (length(&packed)?, length(content)?);

        put!(
            self.files,
            0x0403_4b50_u32,
            VERSION,
            flags,
            deflated,
            time,
            DAY
        );
        put!(
            self.files,
            crc.sum(),
            packed_length,
            whole_length,
            name_length,
            0_u16
        );
        self.files.extend_from_slice(name.as_bytes());
        self.files.extend_from_slice(&packed);

        let directory = &mut self.directory;
        put!(
            directory,
            0x0201_4b50_u32,
            UNIX | VERSION,
            VERSION,
            flags,
            deflated,
            time,
            DAY
        );
        put!(
            directory,
            crc.sum(),
            packed_length,
            whole_length,
            name_length
        );
        // No comment, one disk, no inner attributes.
        put!(
            directory,
            0_u16,
            0_u16,
            0_u16,
            0_u16,
            (REGULAR_FILE | mode) << 16,
            offset
        );
        directory.extend_from_slice(name.as_bytes());
        self.count += 1;
        Ok(())
    }

    /// The whole file.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let (offset, length) = (self.files.len() as u32, self.directory.len() as u32);
        self.files.append(&mut self.directory);
        put!(
            self.files,
            0x0605_4b50_u32,
            0_u16,
            0_u16,
            self.count,
            self.count,
            length,
            offset,
            0_u16
        );
        self.files
    }
}
