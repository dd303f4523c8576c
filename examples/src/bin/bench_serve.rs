//! Speed and memory of the server, on the CPU or with `--device`, over HTTP: `bench_serve --server target/release/server --model DIR`.
//!
//! Starts the server, waits until it is ready, and measures one stream, several streams together, one with a LoRA adapter
//! (`--lora DIR`), and the time to the first token of a long prompt, sent twice. With `--whole N` only whole requests of one
//! stream, which `bench_engine` measures in process. What follows `--` are further flags of the server.

#![allow(clippy::print_stdout)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::Map;
use server::bench::client::Client;
use server::bench::request::{Api, Backend, Prompt, stream};
use tokio::runtime::Runtime;

/// Starts a server and measures it over HTTP.
#[derive(Debug, Parser)]
struct Args {
    /// The server's program.
    #[arg(long)]
    server: PathBuf,
    /// Folder of the checkpoint.
    #[arg(long)]
    model: PathBuf,
    /// Passed on to the server.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Passed on to the server.
    #[arg(long)]
    quantization: Option<String>,
    /// Passed on to the server.
    #[arg(long)]
    compute_dtype: Option<String>,
    /// Folder of a LoRA adapter.
    #[arg(long)]
    lora: Option<PathBuf>,
    /// Streams that run together.
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Tokens of each stream's prompt.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens that each stream generates.
    #[arg(long, default_value_t = 128)]
    generate: usize,
    /// Tokens of the prompt that is sent twice.
    #[arg(long, default_value_t = 1000)]
    prefix: usize,
    /// Measures only this many requests of one stream, each from its start to its last token, after one that warms up.
    #[arg(long)]
    whole: Option<usize>,
    /// Flags of the server; without any, --max-model-len 4096.
    #[arg(last = true)]
    flags: Vec<OsString>,
}

const MODEL: &str = "base";
const ADAPTER: &str = "adapter";

fn main() -> Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    let server = Server::start(&args)?;
    println!("ready after {:.2} s", start.elapsed().as_secs_f64());
    if let Some(num) = args.whole {
        return measure_whole(&server, &args, num);
    }
    println!("resident when ready: {}", server.memory()?);

    server.stream(MODEL, &tokens(0, args.prompt), 8)?; // warm-up
    let one = server.stream(MODEL, &tokens(1, args.prompt), args.generate)?;
    println!("1 stream: decode {:.2} tok/s", one.rate());
    if args.lora.is_some() {
        let with = server.stream(ADAPTER, &tokens(1, args.prompt), args.generate)?;
        let again = server.stream(MODEL, &tokens(2, args.prompt), args.generate)?;
        let ratio = with.rate() / (0.5 * (one.rate() + again.rate()));
        let rate = with.rate();
        println!(
            "1 stream with an adapter: decode {rate:.2} tok/s, {ratio:.2} x without (mean of before and after)"
        );
    }
    let together = server.streams(&args)?;
    let ratio = together / one.rate();
    println!(
        "{} streams: decode {together:.2} tok/s together, {ratio:.2} x one stream",
        args.streams
    );
    let prompt = tokens(99, args.prefix);
    let first = server.stream(MODEL, &prompt, 2)?.first;
    let second = server.stream(MODEL, &prompt, 2)?.first;
    println!(
        "first token of {} prompt tokens: {:.0} ms, sent again {:.0} ms, 1/{:.0}",
        args.prefix,
        first.as_secs_f64() * 1e3,
        second.as_secs_f64() * 1e3,
        first.as_secs_f64() / second.as_secs_f64()
    );
    println!("resident at the end: {}", server.memory()?);
    let busy = server.cpu_time()?;
    std::thread::sleep(Duration::from_secs(3));
    let busy = server.cpu_time()? - busy;
    println!("CPU time of 3 s without requests: {:.0} ms", busy * 1e3);
    Ok(())
}

/// Prints the output speed of whole requests.
fn measure_whole(server: &Server, args: &Args, num: usize) -> Result<()> {
    ensure!(num > 0, "--whole: expected 1 or more, found 0");
    let mut rates = Vec::with_capacity(num);
    for run in 0..=num {
        let prompt = tokens(run as u32, args.prompt);
        let stream = server.stream(MODEL, &prompt, args.generate)?;
        // The first one warms up.
        if run > 0 {
            rates.push(stream.tokens as f64 / stream.whole().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "whole requests: median {:.1} output tok/s of {rates:.1?}",
        rates[num / 2]
    );
    Ok(())
}

/// What one stream saw.
struct Stream {
    start: Instant,
    /// Until the first token.
    first: Duration,
    /// From the first token to the last.
    rest: Duration,
    tokens: usize,
}

impl Stream {
    /// From the request to the last token.
    fn whole(&self) -> Duration {
        self.first + self.rest
    }

    /// Tokens per second after the first.
    fn rate(&self) -> f64 {
        (self.tokens - 1) as f64 / self.rest.as_secs_f64()
    }
}

/// A running server; it is ended when this is dropped.
struct Server {
    child: Child,
    runtime: Runtime,
    client: Client,
    api: Api,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(args: &Args) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut command = Command::new(&args.server);
        command
            .args(["--device", &args.device, "--served-model-name", MODEL])
            .arg("--port")
            .arg(port.to_string())
            .arg("--model")
            .arg(&args.model)
            .stdout(Stdio::null());
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        match args.flags.is_empty() {
            true => command.args(["--max-model-len", "4096"]),
            false => command.args(&args.flags),
        };
        if let Some(quantization) = &args.quantization {
            command.args(["--quantization", quantization]);
        }
        if let Some(compute_dtype) = &args.compute_dtype {
            command.args(["--compute-dtype", compute_dtype]);
        }
        if let Some(lora) = &args.lora {
            let module = format!("{ADAPTER}={}", lora.display());
            command.args(["--enable-lora", "--lora-modules", &module]);
        }
        let child = command
            .spawn()
            .with_context(|| args.server.display().to_string())?;
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self {
            child,
            runtime: Runtime::new()?,
            client: Client::new(&url, &[])?,
            api: Api {
                backend: Backend::Openai,
                endpoint: Backend::Openai.endpoint().to_owned(),
                extra: Map::from_iter([
                    ("temperature".to_owned(), 0.into()),
                    ("ignore_eos".to_owned(), true.into()),
                ]),
            },
        };
        let start = Instant::now();
        while (server.runtime)
            .block_on(server.client.get("/v1/models"))
            .is_err()
        {
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "the server ended with {ended:?}");
            ensure!(start.elapsed() < Duration::from_secs(300), "not ready");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    /// Streams `generate` tokens after `prompt`.
    fn stream(&self, model: &str, prompt: &[u32], generate: usize) -> Result<Stream> {
        let prompt = Prompt::Tokens(prompt.to_vec());
        let sent = stream(&self.client, &self.api, model, &prompt, generate, None);
        let outcome = self.runtime.block_on(sent);
        if let Some(error) = outcome.error {
            bail!("{error}");
        }
        let tokens = outcome.output_tokens;
        ensure!(tokens == generate, "{tokens} tokens instead of {generate}");
        let first = Duration::from_secs_f64(outcome.ttft);
        let whole = Duration::from_secs_f64(outcome.latency);
        Ok(Stream {
            start: outcome.start,
            first,
            rest: whole - first,
            tokens,
        })
    }

    /// Tokens per second of all streams while they all run.
    fn streams(&self, args: &Args) -> Result<f64> {
        let run = |seed: usize| {
            let stream = self.stream(MODEL, &tokens(seed as u32, args.prompt), args.generate)?;
            let first = stream.start + stream.first;
            Ok((first, first + stream.rest))
        };
        let spans: Vec<Result<(Instant, Instant)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..args.streams)
                .map(|i| scope.spawn(move || run(10 + i)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        let spans = spans.into_iter().collect::<Result<Vec<_>>>()?;
        // From when the last one has its first token, to when the first one has its last.
        let start = spans.iter().map(|(start, _)| *start).max();
        let end = spans.iter().map(|(_, end)| *end).min();
        let (start, end) = start.zip(end).context("no stream")?;
        let rate = |(from, to): &(Instant, Instant)| {
            (args.generate - 1) as f64 / (*to - *from).as_secs_f64()
        };
        ensure!(end > start, "the streams did not run together");
        Ok(spans.iter().map(rate).sum())
    }

    /// Resident memory: all, and the part that is not of files.
    fn memory(&self) -> Result<String> {
        let status = read(&self.proc("status"))?;
        let mib = |key: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(key));
            let kib = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(kib.with_context(|| key.to_owned())?.parse::<u64>()? >> 10)
        };
        let (all, own) = (mib("VmRSS:")?, mib("RssAnon:")?);
        let peak = mib("VmHWM:")?;
        Ok(format!(
            "{all} MiB, of which {own} MiB are not pages of files; peak {peak} MiB"
        ))
    }

    /// Seconds of CPU that all threads have taken.
    fn cpu_time(&self) -> Result<f64> {
        let stat = read(&self.proc("stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        // Fields 14 and 15, in ticks of 10 ms; the first of these is field 3.
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// A prompt of `len` tokens that any vocabulary has, which shares no beginning with those of other seeds.
fn tokens(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (seed * 7919 + i * 7) % 1000)
        .collect()
}
