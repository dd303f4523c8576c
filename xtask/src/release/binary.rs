//! What a program's file says of the machines that it runs on: ELF, Mach-O or PE, of 64 bits.

use anyhow::{Context, Result, bail, ensure};

/// What a program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    /// Linux with glibc of this version (the second number of 2.N).
    Gnu { arch: &'static str, minor: u32 },
    /// Linux, without a C library of the system.
    Static { arch: &'static str },
    /// macOS of this version.
    Mac {
        arch: &'static str,
        version: (u32, u32),
    },
    /// Windows.
    Windows { arch: &'static str },
}

/// Libraries that every Linux with glibc has.
const OF_SYSTEM: [&str; 8] = [
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
];

impl Platform {
    /// Reads a program's file.
    pub(super) fn of(program: &[u8]) -> Result<Self> {
        match program {
            [0x7f, b'E', b'L', b'F', 2, 1, ..] => elf(program),
            [0xcf, 0xfa, 0xed, 0xfe, ..] => mach_o(program),
            [b'M', b'Z', ..] => pe(program),
            _ => bail!("expected a program of 64 bits (ELF, Mach-O or PE)"),
        }
    }

    /// The tag of a wheel.
    pub(super) fn wheel_tag(&self) -> String {
        match self {
            Self::Gnu { arch, minor } => format!("manylinux_2_{minor}_{arch}"),
            Self::Static { arch } => format!("manylinux2014_{arch}.musllinux_1_1_{arch}"),
            Self::Mac {
                arch,
                version: (major, minor),
            } => format!("macosx_{major}_{minor}_{arch}"),
            Self::Windows { arch } => format!("win_{arch}"),
        }
    }

    /// What a program's file is called at its end.
    pub(super) fn suffix(&self) -> &'static str {
        match self {
            Self::Windows { .. } => ".exe",
            _ => "",
        }
    }

    /// The triple of the target, as Rust names it.
    pub(super) fn triple(&self) -> String {
        match self {
            Self::Gnu { arch, .. } => format!("{arch}-unknown-linux-gnu"),
            Self::Static { arch } => format!("{arch}-unknown-linux-musl"),
            Self::Mac { arch: "arm64", .. } => "aarch64-apple-darwin".to_owned(),
            Self::Mac { arch, .. } => format!("{arch}-apple-darwin"),
            Self::Windows { arch: "arm64" } => "aarch64-pc-windows-msvc".to_owned(),
            Self::Windows { .. } => "x86_64-pc-windows-msvc".to_owned(),
        }
    }
}

/// Numbers in a file.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        let bytes = bytes.context("the program's file ends too soon")?;
        Ok(bytes.try_into()?)
    }

    fn u16(&self, at: usize) -> Result<usize> {
        Ok(u16::from_le_bytes(self.get(at)?).into())
    }

    fn u32(&self, at: usize) -> Result<usize> {
        Ok(u32::from_le_bytes(self.get(at)?) as usize)
    }

    fn u64(&self, at: usize) -> Result<usize> {
        Ok(usize::try_from(u64::from_le_bytes(self.get(at)?))?)
    }

    /// A name that ends with a zero.
    fn text(&self, at: usize) -> Result<&'a str> {
        let rest = self.0.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0);
        let end = end.context("a name without an end in the program's file")?;
        Ok(std::str::from_utf8(&rest[..end])?)
    }
}

/// A section of an ELF file.
struct Section {
    kind: usize,
    offset: usize,
    size: usize,
    link: usize,
}

fn sections(file: &Bytes<'_>) -> Result<Vec<Section>> {
    let (start, each, count) = (file.u64(0x28)?, file.u16(0x3a)?, file.u16(0x3c)?);
    let section = |at: usize| {
        Ok(Section {
            kind: file.u32(at + 4)?,
            offset: file.u64(at + 0x18)?,
            size: file.u64(at + 0x20)?,
            link: file.u32(at + 0x28)?,
        })
    };
    (0..count).map(|i| section(start + i * each)).collect()
}

/// The libraries that an ELF program is linked with.
pub(super) fn libraries(program: &[u8]) -> Result<Vec<String>> {
    const DYNAMIC: usize = 6;
    const NEEDED: usize = 1;
    let file = Bytes(program);
    let sections = sections(&file)?;
    let mut names = Vec::new();
    for dynamic in sections.iter().filter(|section| section.kind == DYNAMIC) {
        let strings = sections.get(dynamic.link).context("ELF: no strings")?;
        for at in (dynamic.offset..dynamic.offset + dynamic.size).step_by(16) {
            if file.u64(at)? == NEEDED {
                names.push(file.text(strings.offset + file.u64(at + 8)?)?.to_owned());
            }
        }
    }
    Ok(names)
}

/// The versions of symbols that an ELF program needs, such as `GLIBC_2.17`.
fn versions(program: &[u8]) -> Result<Vec<String>> {
    const VERNEED: usize = 0x6fff_fffe;
    let file = Bytes(program);
    let sections = sections(&file)?;
    let mut names = Vec::new();
    for needed in sections.iter().filter(|section| section.kind == VERNEED) {
        let strings = sections.get(needed.link).context("ELF: no strings")?;
        let mut at = needed.offset;
        loop {
            let mut version = at + file.u32(at + 8)?;
            for _ in 0..file.u16(at + 2)? {
                names.push(
                    file.text(strings.offset + file.u32(version + 8)?)?
                        .to_owned(),
                );
                version += file.u32(version + 12)?;
            }
            match file.u32(at + 12)? {
                0 => break,
                next => at += next,
            }
        }
    }
    Ok(names)
}

fn elf(program: &[u8]) -> Result<Platform> {
    let arch = match Bytes(program).u16(0x12)? {
        62 => "x86_64",
        183 => "aarch64",
        other => bail!("ELF machine {other}: expected x86-64 or aarch64"),
    };
    let libraries = libraries(program)?;
    if libraries.is_empty() {
        return Ok(Platform::Static { arch });
    }
    let foreign = libraries
        .iter()
        .find(|name| !OF_SYSTEM.contains(&name.as_str()));
    ensure!(
        foreign.is_none(),
        "the program is linked with {foreign:?}, which not every Linux has"
    );
    let versions = versions(program)?;
    let minors = versions.iter().filter_map(|version| {
        let number = version.strip_prefix("GLIBC_2.")?;
        number.split('.').next()?.parse::<u32>().ok()
    });
    // The oldest tag of this form.
    let minor = minors
        .max()
        .context("the program needs no version of glibc")?
        .max(5);
    Ok(Platform::Gnu { arch, minor })
}

fn mach_o(program: &[u8]) -> Result<Platform> {
    const BUILD_VERSION: usize = 0x32;
    let file = Bytes(program);
    let arch = match file.u32(4)? {
        0x0100_000c => "arm64",
        0x0100_0007 => "x86_64",
        other => bail!("Mach-O machine {other:#x}: expected arm64 or x86-64"),
    };
    let mut at = 32;
    for _ in 0..file.u32(16)? {
        if file.u32(at)? == BUILD_VERSION {
            let least = file.u32(at + 12)?;
            let version = ((least >> 16) as u32, (least >> 8 & 0xff) as u32);
            return Ok(Platform::Mac { arch, version });
        }
        at += file.u32(at + 4)?;
    }
    bail!("the program names no version of macOS")
}

fn pe(program: &[u8]) -> Result<Platform> {
    let file = Bytes(program);
    let header = file.u32(0x3c)?;
    ensure!(
        file.get(header)? == *b"PE\0\0",
        "expected a program of Windows"
    );
    match file.u16(header + 4)? {
        0x8664 => Ok(Platform::Windows { arch: "amd64" }),
        0xaa64 => Ok(Platform::Windows { arch: "arm64" }),
        other => bail!("PE machine {other:#x}: expected x86-64 or arm64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test itself is a program.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_program_of_this_machine_is_read() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let libraries = libraries(&program).unwrap();
        assert!(libraries.contains(&"libc.so.6".to_owned()), "{libraries:?}");
        let platform = Platform::of(&program).unwrap();
        let Platform::Gnu { arch, minor } = platform else {
            panic!("{platform:?}");
        };
        assert_eq!(arch, std::env::consts::ARCH);
        assert!((17..100).contains(&minor), "{minor}");
        assert!(platform.triple().ends_with("-unknown-linux-gnu"));
        assert!(Platform::of(&program[..100]).is_err());
    }

    #[test]
    fn programs_of_other_systems_are_told_apart() {
        let mut pe = vec![0; 0x100];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x80;
        pe[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
        let windows = Platform::of(&pe).unwrap();
        assert_eq!(windows.wheel_tag(), "win_amd64");
        assert_eq!(windows.triple(), "x86_64-pc-windows-msvc");

        let mut words = [0_u32; 16];
        words[..5].copy_from_slice(&[0xfeed_facf, 0x0100_000c, 0, 2, 2]);
        // Another command comes first.
        words[8..10].copy_from_slice(&[0x19, 8]);
        words[10..14].copy_from_slice(&[0x32, 24, 1, 11 << 16]);
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let mac = Platform::of(&bytes).unwrap();
        assert_eq!(mac.wheel_tag(), "macosx_11_0_arm64");
        assert_eq!(mac.triple(), "aarch64-apple-darwin");
        assert!(Platform::of(b"#!/bin/sh").is_err());
    }
}
