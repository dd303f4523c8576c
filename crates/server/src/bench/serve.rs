//! `bench serve`: requests to a running server at a rate, and what comes back.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::arrivals::times;
use super::client::Client;
use super::dataset::sample::Sample;
use super::dataset::samples;
use super::dataset_args::DatasetName;
use super::drafts::DraftCounts;
use super::measured::Measured;
use super::offline::bar;
use super::ready::{Failure, until_ready};
use super::records::Records;
use super::report::{Run, file_name, report};
use super::request::{Api, Backend, Outcome, Prompt, stream};
use super::serve_args::{LoraAssignment, ServeArgs};
use super::serve_values::header_text;
use super::texts::Texts;
use crate::output_file::OutputFile;
use crate::request_id::RequestId;

/// What all requests share.
struct Target {
    client: Arc<Client>,
    api: Api,
    /// Before each request's number, and what tells requests before the measurement from the measured ones.
    request_id_prefix: String,
    running: Arc<Semaphore>,
    bar: ProgressBar,
}

/// Measures a server.
pub(super) async fn run(args: &ServeArgs) -> Result<Measured> {
    let client = Client::new(&args.url(), &headers(args)?);
    let client = Arc::new(client.with_context(|| args.url_flag())?);
    let records = Records::read(&args.dataset)?;
    let timeout = Duration::from_secs(args.ready_check_timeout_sec);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(args, &client, timeout).await?,
    };
    let date = chrono::Local::now().format("%Y%m%d-%H%M%S").to_string();
    let file = result_file(args, &model, &date)?;
    let served = args.served_model_name.as_ref().unwrap_or(&model).clone();
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let (texts, tokenizer_id) = texts(args, &client, &model, &served)?;
    if matches!(texts, Texts::Server { .. }) {
        models(args, &client, timeout).await?;
    }
    let as_chat = args.backend == Backend::Openai;
    let samples = samples(&args.dataset, records, &texts, as_chat, &mut rng).await?;
    let max_concurrency = args.max_concurrency.unwrap_or(Semaphore::MAX_PERMITS);
    let target = Arc::new(Target {
        client,
        api: api(args),
        request_id_prefix: request_id_prefix(args),
        running: Arc::new(Semaphore::new(max_concurrency.min(Semaphore::MAX_PERMITS))),
        bar: bar(samples.len(), args.disable_tqdm),
    });
    let first = Planned {
        sample: Arc::clone(&samples[0]),
        model: served.as_str().into(),
        time: 0.0,
    };
    wait_until_ready(args, &target, &first).await?;
    warm_up(args, &target, &first).await?;

    let plan = plan(args, &served, &samples, &mut rng);
    tracing::info!(
        requests = samples.len(),
        url = args.url(),
        model,
        "measuring"
    );
    let drafts_before = DraftCounts::of(&target.client).await;
    let (start, clock) = (Instant::now(), chrono::Local::now());
    let outcomes = send_all(&target, &plan, "").await?;
    let duration = start.elapsed().as_secs_f64();
    target.bar.finish_and_clear();
    let drafts = match (DraftCounts::of(&target.client).await, drafts_before) {
        (Some(now), Some(before)) => now.since(&before),
        _ => None,
    };

    let run = Run {
        args,
        model_id: &model,
        tokenizer_id: &tokenizer_id,
        date,
        samples: &samples,
        outcomes: &outcomes,
        duration,
        drafts,
        rate_changes: rate_changes(args, &plan, clock),
    };
    let (text, result) = report(&run);
    let result = Value::Object(result).to_string();
    let written = file.map_or(Ok(()), |file| file.write_result(&result));
    let error = written.and_then(|()| some_answer(&outcomes)).err();
    Ok(Measured { text, error })
}

/// Fails if no request has an answer.
fn some_answer(outcomes: &[Outcome]) -> Result<()> {
    let Some(error) = outcomes.iter().find_map(|outcome| outcome.error.as_ref()) else {
        return Ok(());
    };
    if outcomes.iter().any(Outcome::is_success) {
        tracing::warn!(error, "requests have failed; the first one says");
        return Ok(());
    }
    bail!("all {} requests have failed: {error}", outcomes.len())
}

/// A request, and when it is sent.
#[derive(Clone)]
struct Planned {
    sample: Arc<Sample>,
    model: Arc<str>,
    /// Seconds from the start.
    time: f64,
}

/// When each sample is sent, and to which model.
fn plan(
    args: &ServeArgs,
    served: &str,
    samples: &[Arc<Sample>],
    rng: &mut ChaCha8Rng,
) -> Vec<Planned> {
    let names: Vec<Arc<str>> = match args.lora_modules.as_slice() {
        [] => vec![served.into()],
        adapters => adapters.iter().map(|name| name.as_str().into()).collect(),
    };
    let mut draw = || match names.len() {
        1 => 0,
        num => rng.random_range(0..num),
    };
    let models: Vec<usize> = match args.lora_assignment {
        LoraAssignment::Random => samples.iter().map(|_| draw()).collect(),
        LoraAssignment::RoundRobin => (0..samples.len()).map(|i| i % names.len()).collect(),
    };
    let times = times(samples.len(), args.rate(), args.burstiness(), rng);
    let planned = samples.iter().zip(models).zip(times);
    planned
        .map(|((sample, model), time)| Planned {
            sample: Arc::clone(sample),
            model: Arc::clone(&names[model]),
            time,
        })
        .collect()
}

/// When the rate of a ramp came to a further whole number of requests per second, as vLLM writes it.
fn rate_changes(
    args: &ServeArgs,
    plan: &[Planned],
    start: chrono::DateTime<chrono::Local>,
) -> Vec<Value> {
    let Some(first) = args
        .ramp_up_start_rps
        .filter(|_| args.ramp_up_strategy.is_some())
    else {
        return Vec::new();
    };
    let change = |rate: u64, seconds: f64| {
        let since = chrono::TimeDelta::microseconds((seconds * 1e6) as i64);
        let time = (start + since).format("%Y-%m-%dT%H:%M:%S%.6f");
        json!({ "rps": rate, "timestamp": time.to_string() })
    };
    let mut last = u64::from(first);
    let mut changes = vec![change(last, 0.0)];
    for (index, planned) in plan.iter().enumerate() {
        let rate = args.rate().at(index, plan.len()) as u64;
        changes.extend((last + 1..=rate).map(|rate| change(rate, planned.time)));
        last = last.max(rate);
    }
    changes
}

/// Sends each request at its time, and waits for all. `kind` is a part of their ids.
async fn send_all(target: &Arc<Target>, plan: &[Planned], kind: &str) -> Result<Vec<Outcome>> {
    let start = Instant::now();
    let mut running: JoinSet<(usize, Outcome)> = JoinSet::new();
    let mut outcomes: Vec<Option<Outcome>> = vec![None; plan.len()];
    for (index, planned) in plan.iter().enumerate() {
        let time = Duration::try_from_secs_f64(planned.time)
            .ok()
            .and_then(|time| start.checked_add(time))
            .context("--request-rate: the requests would take too long")?;
        if time > Instant::now() {
            tokio::time::sleep_until(time.into()).await;
        }
        let (target, planned, id) = (
            Arc::clone(target),
            planned.clone(),
            format!("{kind}{index}"),
        );
        running.spawn(async move { (index, send(&target, &planned, &id).await) });
    }
    while let Some(done) = running.join_next().await {
        let (index, outcome) = done?;
        outcomes[index] = Some(outcome);
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// One request, once it may run.
async fn send(target: &Target, planned: &Planned, id: &str) -> Outcome {
    let id = format!("{}{id}", target.request_id_prefix);
    let begun = Instant::now();
    // The semaphore is never closed.
    let _permit = target.running.acquire().await;
    let prompt = Prompt::Text(planned.sample.prompt.clone());
    let mut outcome = stream(
        &target.client,
        &target.api,
        &planned.model,
        &prompt,
        planned.sample.output_len,
        Some(&id),
    )
    .await;
    outcome.queue = (outcome.start - begun).as_secs_f64();
    target.bar.inc(1);
    outcome
}

/// Waits until the server answers the first request.
async fn wait_until_ready(args: &ServeArgs, target: &Arc<Target>, first: &Planned) -> Result<()> {
    let timeout = Duration::from_secs(args.ready_check_timeout_sec);
    if timeout.is_zero() {
        return Ok(());
    }
    let attempt = async || {
        let outcome = send(target, first, "ready-0").await;
        target.bar.reset();
        match outcome.error {
            None => Ok(()),
            Some(error) => Err(Failure {
                error: anyhow!("{error}"),
                is_early: outcome.is_early,
            }),
        }
    };
    until_ready(&args.url(), timeout, attempt)
        .await
        .context("the first request has failed")
}

async fn warm_up(args: &ServeArgs, target: &Arc<Target>, first: &Planned) -> Result<()> {
    let plan = vec![first.clone(); args.num_warmups];
    let outcomes = send_all(target, &plan, "warm-up-").await?;
    target.bar.reset();
    match outcomes.into_iter().find_map(|outcome| outcome.error) {
        None => Ok(()),
        Some(error) => bail!("--num-warmups: a request has failed: {error}"),
    }
}

/// The first model of a server.
async fn first_model(args: &ServeArgs, client: &Client, timeout: Duration) -> Result<String> {
    let models = models(args, client, timeout).await?;
    let id = models["data"][0]["id"].as_str();
    Ok(id.context("--model: /v1/models names no model")?.to_owned())
}

/// The models of a server, which may still be starting.
async fn models(args: &ServeArgs, client: &Client, timeout: Duration) -> Result<Value> {
    let attempt = async || Ok(client.get("/v1/models").await?);
    until_ready(&args.url(), timeout, attempt).await
}

fn texts(
    args: &ServeArgs,
    client: &Arc<Client>,
    model: &str,
    served: &str,
) -> Result<(Texts, String)> {
    let own = PathBuf::from(model);
    let of_model = own.join("tokenizer.json").is_file().then_some(own);
    match args.tokenizer.clone().or(of_model) {
        Some(dir) => {
            let texts =
                Texts::of_folder(&dir).with_context(|| format!("--tokenizer {}", dir.display()))?;
            Ok((texts, dir.display().to_string()))
        }
        None => {
            let (client, served) = (Arc::clone(client), served.to_owned());
            Ok((
                Texts::Server {
                    client,
                    model: served,
                },
                model.to_owned(),
            ))
        }
    }
}

fn headers(args: &ServeArgs) -> Result<Vec<(String, String)>> {
    let key = std::env::var("OPENAI_API_KEY")
        .ok()
        .filter(|key| !key.is_empty());
    if let Some(key) = &key {
        header_text(key).map_err(|message| anyhow!("OPENAI_API_KEY: {message}"))?;
    }
    let key = key.map(|key| ("authorization".to_owned(), format!("Bearer {key}")));
    Ok(key.into_iter().chain(args.header.clone()).collect())
}

fn request_id_prefix(args: &ServeArgs) -> String {
    let random = || format!("bench-{}-", &RequestId::default().or(None)[..8]);
    args.request_id_prefix.clone().unwrap_or_else(random)
}

fn api(args: &ServeArgs) -> Api {
    let mut extra: Map<String, Value> = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            extra.insert(name.to_owned(), value);
        }
    };
    let generates = args.backend.generates();
    let temperature = args.temperature.or(generates.then_some(0.0));
    add("temperature", temperature.map(Value::from));
    add("top_p", args.top_p.map(Value::from));
    add("top_k", args.top_k.map(Value::from));
    add("min_p", args.min_p.map(Value::from));
    add("frequency_penalty", args.frequency_penalty.map(Value::from));
    add("presence_penalty", args.presence_penalty.map(Value::from));
    add(
        "repetition_penalty",
        args.repetition_penalty.map(Value::from),
    );
    let is_random = args.dataset.name() == DatasetName::Random;
    let ignore_eos = args.ignore_eos || (is_random && generates);
    add("ignore_eos", ignore_eos.then_some(Value::from(true)));
    match args.backend {
        Backend::Openai => add("logprobs", args.logprobs.map(Value::from)),
        Backend::OpenaiChat => {
            add("logprobs", args.logprobs.map(|_| Value::from(true)));
            add("top_logprobs", args.logprobs.map(Value::from));
        }
        Backend::OpenaiEmbeddings | Backend::Other => {}
    }
    add(
        "chat_template_kwargs",
        args.chat_template_kwargs.clone().map(Value::Object),
    );
    extra.extend(args.extra_body.clone().unwrap_or_default());
    Api {
        backend: args.backend,
        endpoint: args.endpoint().to_owned(),
        extra,
    }
}

/// The file of the result, if there is to be one.
fn result_file(args: &ServeArgs, model: &str, date: &str) -> Result<Option<OutputFile>> {
    if !args.save_result && !args.append_result {
        return Ok(None);
    }
    let name = args.result_filename.clone();
    let name = name.unwrap_or_else(|| file_name(args, model, date));
    let dir = args.result_dir.clone().unwrap_or_default();
    if !dir.as_os_str().is_empty() {
        fs::create_dir_all(&dir).with_context(|| format!("--result-dir {}", dir.display()))?;
    }
    let path = dir.join(name);
    let flag = match (&args.result_filename, args.append_result) {
        (Some(_), _) => "--result-filename",
        (None, true) => "--append-result",
        (None, false) => "--save-result",
    };
    OutputFile::open(flag, path, args.append_result).map(Some)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn adapters_come_at_random_or_in_turns() {
        let sample = Arc::new(Sample {
            prompt: "a".to_owned(),
            prompt_len: 1,
            output_len: 1,
        });
        let samples = vec![sample; 40];
        let models = |flags: &[&str]| {
            let words = [&["serve", "--lora-modules", "a", "b"], flags].concat();
            let args = ServeArgs::parse_from(words);
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let plan = plan(&args, "m", &samples, &mut rng);
            let models = plan.iter().map(|planned| planned.model.to_string());
            models.collect::<String>()
        };
        assert_eq!(
            models(&["--lora-assignment", "round-robin"]),
            "ab".repeat(20)
        );
        let random = models(&[]);
        assert!(random.contains("aa") && random.contains("bb"), "{random}");
    }
}
