//! The program as a user gets it: from a wheel, in a new environment, in an empty folder, without the source tree.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{output, reach, release, root};

mod image;

/// Hides a folder from a program: its arguments are the folder, then the program and its own.
const HIDE: [&str; 5] = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
const MOUNT: &str = "mount -t tmpfs none \"$0\" && exec \"$@\"";

/// `cargo xtask installed`: the programs of `--bin-dir`, or those that a plain build made.
pub(crate) fn run(flags: &[&str]) -> Result<()> {
    let bin_dir = match flags {
        ["--bin-dir", folder] => (*folder).to_owned(),
        [] => format!("{}/debug", crate::target_directory()?),
        _ => bail!("usage: cargo xtask installed [--bin-dir DIR]"),
    };
    let folder = std::env::temp_dir().join(format!("qwen-burn-installed-{}", std::process::id()));
    let tried = install(&folder, &bin_dir)
        .and_then(|installed| installed.try_all().and_then(|()| installed.try_uvx()))
        .and_then(|()| image::run(&folder, &bin_dir));
    let removed = fs::remove_dir_all(&folder);
    tried?;
    removed.with_context(|| folder.display().to_string())
}

/// The installer behind `uvx`.
const UV: &str = "uv==0.13.9";

/// A program in an environment of its own.
struct Installed {
    wheel: PathBuf,
    environment: PathBuf,
    /// The environment's own.
    python: PathBuf,
    program: PathBuf,
    /// An empty folder.
    work: PathBuf,
    hides_tree: bool,
}

fn install(folder: &Path, bin_dir: &str) -> Result<Installed> {
    let [dist, environment, work] = ["dist", "venv", "work"].map(|name| folder.join(name));
    for path in [&dist, &work] {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    }
    release::wheel(&["--bin-dir", bin_dir, "--out", &dist.to_string_lossy()])?;
    let wheel = fs::read_dir(&dist)?
        .next()
        .context("no wheel was written")??;
    let python = if cfg!(windows) { "python" } else { "python3" };
    let python = std::env::var("CLIENTS_PYTHON").unwrap_or_else(|_| python.to_owned());
    output(&python, &["-m", "venv", &environment.to_string_lossy()])?;
    let scripts = environment.join(if cfg!(windows) { "Scripts" } else { "bin" });
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
    ];
    let [wheel, own_python] = [wheel.path(), scripts.join("python")];
    let texts = [&wheel, &own_python].map(|path| path.to_string_lossy().into_owned());
    output(&texts[1], &[&pip[..], &[&texts[0]]].concat())?;
    let mut installed = Installed {
        wheel,
        python: own_python,
        program: scripts.join("qwen-burn"),
        environment,
        work,
        hides_tree: true,
    };
    installed.hides_tree = installed
        .command(&["--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !installed.hides_tree {
        println!("the source tree stays visible: this machine has no `unshare`, or forbids it");
    }
    Ok(installed)
}

impl Installed {
    /// The program in the empty folder, without the source tree where that can be hidden.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.hides_tree {
            true => {
                let mut command = Command::new(HIDE[0]);
                command
                    .args(&HIDE[1..])
                    .arg(MOUNT)
                    .arg(root())
                    .arg(&self.program);
                command
            }
            false => Command::new(&self.program),
        };
        command
            .args(arguments)
            .current_dir(&self.work)
            .env_remove("QWEN_BURN_DATA")
            .stdin(Stdio::null());
        command
    }

    /// Standard output, and whether the program has succeeded.
    fn output(&self, arguments: &[&str]) -> Result<(String, bool)> {
        println!("$ qwen-burn {}", arguments.join(" "));
        let output = self.command(arguments).output()?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        println!("{out}{err}");
        Ok((format!("{out}{err}"), output.status.success()))
    }

    /// As [`Self::output`] of a program that has to succeed.
    fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let (text, well) = self.output(arguments)?;
        ensure!(well, "`qwen-burn {}` has failed", arguments.join(" "));
        Ok(text)
    }

    fn try_all(&self) -> Result<()> {
        let version = self.succeed(&["--version"])?;
        ensure!(version.starts_with("qwen-burn "), "{version}");
        let share = self.environment.join("share/qwen-burn");
        let data = self.find_data()?;
        ensure!(data == share, "the bundled data is {}", data.display());
        println!("$ qwen-burn serve --port 0");
        answers_a_chat(&mut self.command(&["serve", "--port", "0"]))?;
        self.train(&share)
    }

    /// Runs the program without installing it, where uv can be had.
    fn try_uvx(&self) -> Result<()> {
        let python = self.python.to_string_lossy();
        let pip = ["-m", "pip", "install", "--quiet", "--retries", "1", UV];
        if let Err(error) = output(&python, &pip) {
            ensure!(!reach::must_reach("pypi.org"), "no {UV}: {error:#}");
            println!("left out: uvx, since {UV} is out of reach");
            return Ok(());
        }
        let version = self.uvx(&["--version"]).output()?;
        let said = String::from_utf8_lossy(&version.stdout);
        println!("{said}{}", String::from_utf8_lossy(&version.stderr));
        let well = version.status.success() && said.starts_with("qwen-burn ");
        ensure!(well, "uvx has not run the program");
        // uv makes an environment of its own, in which the data have to be found.
        let data = bundled_data(&self.uvx(&["doctor", "--json"]).output()?.stdout)?;
        let (shown, cache) = (data.display(), self.environment.join("uv").canonicalize()?);
        println!("{shown}");
        ensure!(data.starts_with(cache), "the bundled data is {shown}");
        // It ends by itself: whoever kills uv leaves its program running.
        let mut chat = self.uvx(&["chat", "--max-tokens", "16"]);
        let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut question = chat.stdin.take().context("no input of the chat")?;
        question.write_all(b"Tell me a story.\n")?;
        drop(question);
        let answer = chat.wait_with_output()?;
        let text = String::from_utf8_lossy(&answer.stdout);
        println!("{text}");
        let well = answer.status.success() && text.trim().len() > 10;
        ensure!(well, "uvx has found no model to chat with");
        Ok(())
    }

    /// A command of the program by uvx, in the empty folder.
    fn uvx(&self, arguments: &[&str]) -> Command {
        println!("$ uvx --from WHEEL qwen-burn {}", arguments.join(" "));
        let mut command = Command::new(&self.python);
        command
            .args(["-m", "uv", "tool", "run", "--offline", "--no-config"])
            .arg("--python")
            .arg(&self.python)
            .arg("--from")
            .arg(&self.wheel)
            .arg("qwen-burn")
            .args(arguments)
            .current_dir(&self.work)
            .env_remove("QWEN_BURN_DATA")
            .env("UV_CACHE_DIR", self.environment.join("uv"))
            .stdin(Stdio::null());
        command
    }

    /// The folder of the bundled data as the program says it.
    fn find_data(&self) -> Result<PathBuf> {
        bundled_data(&self.command(&["doctor", "--json"]).output()?.stdout)
    }

    /// Trains two steps on the sample, and looks at the result.
    fn train(&self, share: &Path) -> Result<()> {
        let sample = share.join("train.jsonl").to_string_lossy().into_owned();
        let (text, _) = self.output(&["train"])?;
        ensure!(text.contains(&sample), "the error does not name the sample");
        let flags = ["--max-steps", "2", "--output", "adapters/two"];
        let trained = self.succeed(&[&["train", "--data", &sample], &flags[..]].concat())?;
        ensure!(
            trained.contains("qwen-burn serve"),
            "no word of `qwen-burn serve`"
        );
        let config = fs::read(self.work.join("adapters/two/adapter_config.json"))?;
        let config: Value = serde_json::from_slice(&config)?;
        let base = config["base_model_name_or_path"].as_str();
        let expected = share.join("model");
        ensure!(
            base.map(Path::new) == Some(&*expected),
            "adapter_config.json: the base is {base:?}, expected {}",
            expected.display()
        );
        self.succeed(&["inspect", "adapters/two"]).map(|_| ())
    }
}

/// The folder of the bundled data in a report of `doctor`. It may miss memory or a disk, which is no fault of the package.
fn bundled_data(report: &[u8]) -> Result<PathBuf> {
    let report: Value = serde_json::from_slice(report).context("doctor --json")?;
    let checks = report["checks"].as_array().context("doctor: no checks")?;
    let data = checks.iter().find(|check| check["name"] == "bundled data");
    let found = data.and_then(|data| data["found"].as_str());
    Ok(found
        .context("doctor says nothing of the bundled data")?
        .into())
}

/// Starts a server, which has to answer one chat with the bundled model.
fn answers_a_chat(server: &mut Command) -> Result<()> {
    let mut server = server.stdout(Stdio::piped()).spawn()?;
    let answer = address_of(&mut server).and_then(|address| ask(&address));
    // It may have ended itself.
    let _ = server.kill();
    server.wait()?;
    let answer = answer?;
    println!("{answer}");
    let is_chat = answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"chat.completion\"");
    ensure!(is_chat, "expected a chat completion");
    Ok(())
}

/// Where a server says that it is.
fn address_of(server: &mut Child) -> Result<String> {
    let stdout = server.stdout.take().context("no output of the server")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some((_, rest)) = line.split_once(" at http://") {
            return Ok(rest.split(". ").next().unwrap_or(rest).to_owned());
        }
    }
    bail!("the server has ended without an address")
}

/// The answer to a short chat, head and body.
fn ask(address: &str) -> Result<String> {
    let body =
        r#"{"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 16}"#;
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
