//! The engine on a GPU against the engine on the CPU: the bundled model's greedy text is the same, whatever runs beside it.
//!
//! Needs a feature for a GPU and a device: `--features wgpu` finds Mesa's lavapipe on machines without one (with
//! `ASSUME_PLANE_OPERATIONS=1`).
#![cfg(feature = "gpu")]

use model_qwen::SamplingParams;
use server::config::Config;
use server::engine::{Engine, EngineHandle, EngineOutput, GenerateRequest};

fn start(device: &str, flags: &[&str]) -> EngineHandle {
    // Exact products and keys as they are computed, so that rounding doesn't choose between close logits.
    let fixed = ["server", "--device", device];
    let small = [
        "--kv-cache-dtype",
        "float32",
        "--compute-dtype",
        "float32",
        "--kv-cache-memory-bytes",
        "64MiB",
        "--max-model-len",
        "256",
    ];
    let command = fixed.iter().chain(&small).chain(flags);
    let config = Config::from_command_line(command.copied()).expect("valid flags");
    Engine::start(&config).expect("an engine").0
}

fn gpu() -> &'static str {
    #[cfg(feature = "cuda")]
    if !burn::tensor::Device::enumerate(burn::tensor::DeviceType::Cuda).is_empty() {
        return "cuda";
    }
    "wgpu"
}

fn request(i: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: (0..5 + 7 * i).map(|j| (3 + 31 * i + 7 * j) % 900).collect(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: 12 + i as usize,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        adapter: None,
        cache_salt: None,
        prompt_logprobs: None,
    }
}

/// The tokens of several requests that run together.
async fn tokens(engine: &EngineHandle, requests: Vec<GenerateRequest>) -> Vec<Vec<u32>> {
    let submit = |request| engine.submit(request).expect("room in the queue");
    let streams: Vec<_> = requests.into_iter().map(submit).collect();
    let mut all = Vec::new();
    for mut stream in streams {
        let mut tokens = Vec::new();
        while let Some(output) = stream.next().await {
            if let EngineOutput::Token { id, .. } = output {
                tokens.push(id);
            }
        }
        all.push(tokens);
    }
    all
}

/// Steps are computed ahead of what is known: sequences that end with a stop token and others that join must not disturb
/// anybody.
/// One test at a time: engines of one process would record each other's work.
static DEVICE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn sequences_come_and_go_while_steps_are_computed_ahead() {
    let _turn = DEVICE.lock().await;
    let cpu = start("cpu", &[]);
    let gpu = start(gpu(), &[]);
    let mut requests: Vec<GenerateRequest> = (0..5).map(request).collect();
    let free = tokens(&cpu, requests.clone()).await;
    for (request, tokens) in requests.iter_mut().zip(&free).take(3) {
        request.stop_token_ids = vec![tokens[6]];
    }
    let expected = tokens(&cpu, requests.clone()).await;
    assert!(expected[..3].iter().all(|tokens| tokens.len() <= 7));
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);

    // Each one comes when the one before has some tokens.
    let mut streams = Vec::new();
    for request in requests {
        let mut stream = gpu.submit(request).expect("room in the queue");
        let mut tokens = Vec::new();
        while tokens.len() < 3 {
            if let Some(EngineOutput::Token { id, .. }) = stream.next().await {
                tokens.push(id);
            }
        }
        streams.push((stream, tokens));
    }
    for ((mut stream, mut tokens), expected) in streams.into_iter().zip(expected) {
        while let Some(output) = stream.next().await {
            if let EngineOutput::Token { id, .. } = output {
                tokens.push(id);
            }
        }
        assert_eq!(tokens, expected);
    }
}

#[tokio::test]
async fn greedy_text_equals_that_of_the_cpu() {
    let _turn = DEVICE.lock().await;
    let cpu = start("cpu", &[]);
    let graphs = start(gpu(), &[]);
    let eager = start(gpu(), &["--enforce-eager"]);
    for together in [1, 3, 9] {
        let requests: Vec<GenerateRequest> = (0..together).map(request).collect();
        let expected = tokens(&cpu, requests.clone()).await;
        assert!(expected.iter().all(|tokens| tokens.len() >= 12));
        assert_eq!(
            tokens(&graphs, requests.clone()).await,
            expected,
            "{together} together"
        );
        assert_eq!(
            tokens(&eager, requests).await,
            expected,
            "{together} together, eager"
        );
    }
}
