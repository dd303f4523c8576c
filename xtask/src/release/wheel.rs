//! A wheel whose content is the program and the bundled data: `pip install qwen-burn`, `uvx qwen-burn serve`.

use anyhow::Result;

use super::digest::base64;
use super::package::{LICENCES, Options, Package, SHARE, data, top_file, write};
use super::zip::Zip;

/// What compiles kernels, and its headers, where a build has CUDA.
const CUDA_PACKAGES: [&str; 4] = [
    "nvidia-cuda-nvrtc>=13,<14",
    "nvidia-cuda-runtime>=13,<14",
    "nvidia-cuda-crt>=13,<14",
    "nvidia-cuda-cccl>=13,<14",
];
const SUMMARY: &str =
    "Serve and fine-tune Qwen-architecture language models on one small GPU or a plain CPU";
const REPOSITORY: &str = "https://github.com/qwen-burn/qwen-burn";

/// `cargo xtask wheel`.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let options = Options::parse(flags)?;
    let package = Package::read(&options)?;
    let (name, bytes) = wheel(&package)?;
    write(&options.out.join(name), &bytes)
}

/// A wheel that is being written.
struct Wheel {
    zip: Zip,
    record: String,
}

impl Wheel {
    fn add(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.zip.add(name, content, mode)?;
        let digest = base64(content);
        self.record += &format!("{name},sha256={digest},{}\n", content.len());
        Ok(())
    }
}

/// Name and bytes.
fn wheel(package: &Package) -> Result<(String, Vec<u8>)> {
    let distribution = match package.cuda {
        true => "qwen_burn_cuda",
        false => "qwen_burn",
    };
    let version = &package.version;
    let tag = package.platform.wheel_tag();
    let stem = format!("{distribution}-{version}");
    let mut wheel = Wheel {
        zip: Zip::default(),
        record: String::new(),
    };
    let scripts = format!("{stem}.data/scripts/{}", package.program_name());
    wheel.add(&scripts, &package.program, 0o755)?;
    for (name, content) in data()? {
        wheel.add(&format!("{stem}.data/data/{SHARE}/{name}"), &content, 0o644)?;
    }
    let info = format!("{stem}.dist-info");
    for licence in LICENCES {
        wheel.add(
            &format!("{info}/licenses/{licence}"),
            &top_file(licence)?,
            0o644,
        )?;
    }
    // Other sites know no files of the repository.
    let mut readme = String::from_utf8(top_file("README.md")?)?;
    for start in ["docs/", "crates/", "README"] {
        let link = format!("]({REPOSITORY}/blob/main/{start}");
        readme = readme.replace(&format!("]({start}"), &link);
    }
    wheel.add(
        &format!("{info}/METADATA"),
        metadata(package, &readme).as_bytes(),
        0o644,
    )?;
    let tags: String = tag
        .split('.')
        .map(|tag| format!("Tag: py3-none-{tag}\n"))
        .collect();
    let text = format!("Wheel-Version: 1.0\nGenerator: xtask\nRoot-Is-Purelib: false\n{tags}");
    wheel.add(&format!("{info}/WHEEL"), text.as_bytes(), 0o644)?;
    let list = format!("{info}/RECORD");
    let record = format!("{}{list},,\n", wheel.record);
    wheel.zip.add(&list, record.as_bytes(), 0o644)?;
    Ok((format!("{stem}-py3-none-{tag}.whl"), wheel.zip.finish()))
}

fn metadata(package: &Package, readme: &str) -> String {
    let (name, needs) = match package.cuda {
        true => ("qwen-burn-cuda", &CUDA_PACKAGES[..]),
        false => ("qwen-burn", &[][..]),
    };
    let needs: String = needs
        .iter()
        .map(|needed| format!("Requires-Dist: {needed}\n"))
        .collect();
    let licences: String = LICENCES
        .iter()
        .map(|file| format!("License-File: {file}\n"))
        .collect();
    format!(
        "Metadata-Version: 2.4\nName: {name}\nVersion: {}\nSummary: {SUMMARY}\n\
         License-Expression: MIT OR Apache-2.0\n{licences}Project-URL: Repository, {REPOSITORY}\n\
         Project-URL: Changelog, {REPOSITORY}/blob/main/docs/CHANGELOG.md\nRequires-Python: >=3.8\n{needs}\
         Description-Content-Type: text/markdown\n\n{readme}",
        package.version
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::binary::Platform;

    fn package(cuda: bool) -> Package {
        Package {
            version: "1.2.3".to_owned(),
            platform: Platform::Gnu {
                arch: "x86_64",
                minor: 28,
            },
            program: b"a program".to_vec(),
            cuda,
        }
    }

    #[test]
    fn a_wheel_lists_its_files_and_names_its_platform() {
        let (name, bytes) = wheel(&package(false)).unwrap();
        assert_eq!(name, "qwen_burn-1.2.3-py3-none-manylinux_2_28_x86_64.whl");
        let names = |part: &str| {
            bytes
                .windows(part.len())
                .any(|window| window == part.as_bytes())
        };
        for part in [
            "qwen_burn-1.2.3.data/scripts/qwen-burn",
            "qwen_burn-1.2.3.data/data/share/qwen-burn/model/model.safetensors",
            "qwen_burn-1.2.3.dist-info/RECORD",
        ] {
            assert!(names(part), "{part}");
        }
    }

    #[test]
    fn only_a_build_with_cuda_needs_packages() {
        assert!(!metadata(&package(false), "text").contains("Requires-Dist"));
        let cuda = metadata(&package(true), "text");
        assert!(cuda.contains("Name: qwen-burn-cuda\n"), "{cuda}");
        assert!(
            cuda.contains("Requires-Dist: nvidia-cuda-nvrtc>=13,<14\n"),
            "{cuda}"
        );
        assert!(cuda.ends_with("\n\ntext"), "{cuda}");
    }
}
