//! The container image, unpacked and started as a container engine does it, without one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::answers_a_chat;
use crate::{output, release};

/// Makes a folder the root of a program: its arguments are the folder, then the program and its own. Containers have these mounts, too.
/// The program's own `PATH` need not lead to `mount` and `chroot`.
const ENTER: [&str; 5] = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
const CHROOT: &str = "own=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount --rbind /proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && chroot=$(command -v chroot) || exit
PATH=$own exec \"$chroot\" \"$0\" \"$@\"";

/// Makes the image of the program in `bin_dir`, below `folder`, and lets it answer a chat.
pub(super) fn run(folder: &Path, bin_dir: &str) -> Result<()> {
    if !cfg!(target_os = "linux") {
        println!("no image: it has programs of Linux");
        return Ok(());
    }
    let image = Image::unpacked(folder, bin_dir)?;
    let version = image.command(&["/usr/bin/vllm", "--version"]).output()?;
    let said = String::from_utf8_lossy(&version.stderr).into_owned();
    if !version.status.success() && (said.contains("unshare:") || said.contains("mount:")) {
        println!("the image is not started: {}", said.trim());
        return Ok(());
    }
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    ensure!(version.starts_with("qwen-burn "), "{version}{said}");
    let command = [&image.texts("Entrypoint")?[..], &image.texts("Cmd")?[..]].concat();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    println!("image$ {} --port 0", command.join(" "));
    answers_a_chat(&mut image.command(&[&command[..], &["--port", "0"]].concat()))
}

struct Image {
    root: PathBuf,
    /// How it is run.
    config: Value,
}

impl Image {
    fn unpacked(folder: &Path, bin_dir: &str) -> Result<Self> {
        let [out, layout, root] = ["image", "layout", "root"].map(|name| folder.join(name));
        for path in [&out, &layout, &root] {
            fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        }
        release::image(&["--bin-dir", bin_dir, "--out", &out.to_string_lossy()])?;
        let archive = fs::read_dir(&out)?
            .next()
            .context("no image was written")??;
        unpack(&archive.path(), &layout)?;
        let blob = |named: &Value| -> Result<PathBuf> {
            let digest = named["digest"].as_str().context("a blob without digest")?;
            Ok(layout.join("blobs").join(digest.replace(':', "/")))
        };
        let index = read(&layout.join("index.json"))?;
        let manifest = read(&blob(&index["manifests"][0])?)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            unpack(&blob(layer)?, &root)?;
        }
        let mut config = read(&blob(&manifest["config"])?)?;
        for name in ["proc", "dev"] {
            fs::create_dir(root.join(name))?;
        }
        Ok(Self {
            root,
            config: config["config"].take(),
        })
    }

    /// A list of the configuration.
    fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = self.config[key].as_array().context(key.to_owned())?;
        let texts = texts.iter().filter_map(|text| text.as_str());
        Ok(texts.map(str::to_owned).collect())
    }

    /// A program of the image, with its environment alone.
    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new(ENTER[0]);
        command
            .args(&ENTER[1..])
            .arg(CHROOT)
            .arg(&self.root)
            .args(program)
            .env_clear()
            .stdin(Stdio::null());
        for variable in self.texts("Env").unwrap_or_default() {
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            command.env(name, value);
        }
        command
    }
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let [archive, folder] = [archive, folder].map(|path| path.to_string_lossy());
    output("tar", &["-xf", &archive, "-C", &folder]).map(|_| ())
}

fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}
