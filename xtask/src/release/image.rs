//! A container image without a daemon: the program, the C library that it is linked with, and the bundled data, as an archive
//! that `docker load`, `podman load` and `skopeo copy oci-archive:` read.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::binary::{Platform, libraries};
use super::digest::hex;
use super::package::{LICENCES, Options, PROGRAM, Package, SHARE, data, top_file, write};
use super::tar::{Rights, Tar, gzip};
use crate::output;

/// Who runs the program: nobody that the host knows.
const USER: u32 = 65532;
const HOME: &str = "home/qwen-burn";
/// Another name of the program, by which charts for vLLM start it.
const VLLM: &str = "vllm";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// `cargo xtask image`.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let options = Options::parse(flags)?;
    let package = Package::read(&options)?;
    let arch = match package.platform {
        Platform::Gnu { arch, .. } | Platform::Static { arch } => arch,
        _ => bail!("an image needs a program of Linux"),
    };
    ensure!(
        arch == std::env::consts::ARCH,
        "the image gets the C library of this machine, which is {}",
        std::env::consts::ARCH
    );
    let program = options.out.join(format!(".{PROGRAM}-image"));
    fs::write(&program, &package.program)?;
    let libraries = system_libraries(&package.program, &program);
    fs::remove_file(&program)?;
    let layers = [base(&libraries?)?, of_program(&package.program)?];
    let image = Image::new(arch, &package.version, layers)?;
    println!("layers: {:.1} MB", image.packed_bytes as f64 / 1e6);
    write(
        &options.out.join(format!("{}.oci.tar", package.name())),
        &image.archive()?,
    )
}

/// The libraries of this machine that a program is linked with, by the paths at which its loader finds them.
fn system_libraries(bytes: &[u8], program: &std::path::Path) -> Result<Vec<PathBuf>> {
    if libraries(bytes)?.is_empty() {
        return Ok(Vec::new());
    }
    let program = program.to_str().context("a path that is not UTF-8")?;
    let listed = output("ldd", &[program])?;
    let paths = listed.lines().filter_map(|line| {
        let path = line.split("=>").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

/// What seldom changes: libraries, data, and the files that every system has.
fn base(libraries: &[PathBuf]) -> Result<Vec<u8>> {
    let user = Rights {
        mode: 0o755,
        owner: USER,
    };
    let anyone = Rights {
        mode: 0o1777,
        owner: 0,
    };
    let mut tar = Tar::default();
    tar.folder("tmp", anyone)?;
    tar.folder("home", Rights::PROGRAM)?;
    for folder in [HOME.to_owned(), format!("{HOME}/.cache")] {
        tar.folder(&folder, user)?;
    }
    let passwd = format!(
        "root:x:0:0:root:/root:/sbin/nologin\n{PROGRAM}:x:{USER}:{USER}::/{HOME}:/sbin/nologin\n"
    );
    for (name, text) in [
        ("etc/passwd", passwd.as_str()),
        ("etc/group", &format!("root:x:0:\n{PROGRAM}:x:{USER}:\n")),
        ("etc/nsswitch.conf", "hosts: files dns\n"),
    ] {
        tar.file(name, text.as_bytes(), Rights::FILE)?;
    }
    for path in libraries {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let name = path.to_string_lossy();
        tar.file(name.trim_start_matches('/'), &bytes, Rights::PROGRAM)?;
    }
    for (name, content) in data()? {
        tar.file(&format!("usr/{SHARE}/{name}"), &content, Rights::FILE)?;
    }
    for name in LICENCES {
        tar.file(
            &format!("usr/{SHARE}/{name}"),
            &top_file(name)?,
            Rights::FILE,
        )?;
    }
    Ok(tar.finish())
}

fn of_program(program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    tar.file(&format!("usr/bin/{PROGRAM}"), program, Rights::PROGRAM)?;
    tar.link(&format!("usr/bin/{VLLM}"), PROGRAM)?;
    Ok(tar.finish())
}

/// An image as blobs by their digests.
struct Image {
    version: String,
    blobs: BTreeMap<String, Vec<u8>>,
    config: String,
    layers: Vec<String>,
    manifest: Value,
    packed_bytes: usize,
}

impl Image {
    fn new(arch: &str, version: &str, layers: [Vec<u8>; 2]) -> Result<Self> {
        let mut blobs = BTreeMap::new();
        let mut keep = |bytes: Vec<u8>, kind: &str| {
            let digest = hex(&bytes);
            let named = json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
            blobs.insert(digest.clone(), bytes);
            (digest, named)
        };
        let unpacked: Vec<String> = layers
            .iter()
            .map(|layer| format!("sha256:{}", hex(layer)))
            .collect();
        let packed = layers.iter().map(|layer| gzip(layer));
        let packed = packed.collect::<Result<Vec<_>>>()?;
        let packed_bytes = packed.iter().map(Vec::len).sum();
        let (layers, named): (Vec<_>, Vec<_>) =
            packed.into_iter().map(|layer| keep(layer, LAYER)).unzip();
        let config = serde_json::to_vec(&config(arch, version, &unpacked))?;
        let (config, named_config) = keep(config, CONFIG);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": named_config, "layers": named });
        let (_, manifest) = keep(serde_json::to_vec(&manifest)?, MANIFEST);
        Ok(Self {
            version: version.to_owned(),
            blobs,
            config,
            layers,
            manifest,
            packed_bytes,
        })
    }

    /// The image layout of OCI, and beside it what older versions of `docker load` read.
    fn archive(&self) -> Result<Vec<u8>> {
        let mut manifest = self.manifest.clone();
        let name = format!("{PROGRAM}:{}", self.version);
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": self.version, "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        let path = |digest: &String| format!("blobs/sha256/{digest}");
        let layers: Vec<String> = self.layers.iter().map(path).collect();
        let docker =
            json!([{ "Config": path(&self.config), "RepoTags": [name], "Layers": layers }]);
        let mut tar = Tar::default();
        for (name, value) in [
            ("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" })),
            ("index.json", &index),
            ("manifest.json", &docker),
        ] {
            tar.file(name, &serde_json::to_vec(value)?, Rights::FILE)?;
        }
        for (digest, bytes) in &self.blobs {
            tar.file(&path(digest), bytes, Rights::FILE)?;
        }
        Ok(tar.finish())
    }
}

/// How the image is run.
fn config(arch: &str, version: &str, layers: &[String]) -> Value {
    let architecture = match arch {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": format!("{USER}:{USER}"),
            "WorkingDir": format!("/{HOME}"),
            "Env": ["PATH=/usr/bin", format!("HOME=/{HOME}")],
            "Entrypoint": [format!("/usr/bin/{PROGRAM}")],
            "Cmd": ["serve", "--host", "0.0.0.0"],
            "ExposedPorts": { "8000/tcp": {} },
            "Volumes": { format!("/{HOME}/.cache"): {} },
            "Labels": {
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
                "org.opencontainers.image.source": "https://github.com/qwen-burn/qwen-burn",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": layers },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_blobs_by_their_digests() {
        let image = Image::new("x86_64", "1.2.3", [b"one".to_vec(), b"two".to_vec()]).unwrap();
        for (digest, bytes) in &image.blobs {
            assert_eq!(*digest, hex(bytes));
        }
        // Two layers, the configuration, the manifest.
        assert_eq!(image.blobs.len(), 4);
        let config: Value = serde_json::from_slice(&image.blobs[&image.config]).unwrap();
        assert_eq!(config["architecture"], "amd64");
        assert_eq!(
            config["rootfs"]["diff_ids"][1],
            format!("sha256:{}", hex(b"two"))
        );
        let manifest = image.manifest["digest"].as_str().unwrap();
        let manifest: Value =
            serde_json::from_slice(&image.blobs[manifest.trim_start_matches("sha256:")]).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    }
}
