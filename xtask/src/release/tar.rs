//! Tar files: packages for Linux and macOS, and layers of images. The same content makes the same bytes.

use std::io::Write as _;

use anyhow::{Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;

const BLOCK: usize = 512;
/// Bytes that a name may have.
const NAME: usize = 100;

/// A tar file in memory.
#[derive(Default)]
pub(super) struct Tar {
    bytes: Vec<u8>,
}

/// Who owns a file, and what others may do with it.
#[derive(Clone, Copy)]
pub(super) struct Rights {
    pub(super) mode: u32,
    pub(super) owner: u32,
}

impl Rights {
    pub(super) const FILE: Self = Self {
        mode: 0o644,
        owner: 0,
    };
    const LINK: Self = Self {
        mode: 0o777,
        owner: 0,
    };
    pub(super) const PROGRAM: Self = Self {
        mode: 0o755,
        owner: 0,
    };
}

impl Tar {
    pub(super) fn file(&mut self, name: &str, content: &[u8], rights: Rights) -> Result<()> {
        self.entry(name, content.len(), rights, b'0', "")?;
        self.bytes.extend_from_slice(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    pub(super) fn folder(&mut self, name: &str, rights: Rights) -> Result<()> {
        self.entry(&format!("{name}/"), 0, rights, b'5', "")
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, 0, Rights::LINK, b'2', target)
    }

    fn entry(
        &mut self,
        name: &str,
        size: usize,
        rights: Rights,
        kind: u8,
        target: &str,
    ) -> Result<()> {
        for name in [name, target] {
            ensure!(name.len() < NAME, "{name}: a name of {} bytes", name.len());
        }
        let mut header = [0; BLOCK];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{:07o}", rights.mode));
        put(108, &format!("{:07o}", rights.owner));
        put(116, &format!("{:07o}", rights.owner));
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        // The sum counts its own place as blanks.
        put(148, "        ");
        put(157, target);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.bytes.extend_from_slice(&header);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// The bytes, packed.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
