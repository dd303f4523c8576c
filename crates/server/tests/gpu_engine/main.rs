//! The engine on a GPU against the engine on the CPU: the bundled model's greedy text is the same, whatever runs beside it.
//!
//! Needs a feature for a GPU and a device: `--features wgpu` finds Mesa's lavapipe on machines without one (with
//! `ASSUME_PLANE_OPERATIONS=1`).

mod reads;

use std::path::{Path, PathBuf};

use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, TargetModules};
use model_qwen::{LoadOptions, QwenModel, SamplingParams, Tokenizer, linear_names};
use server::config::Config;
use server::engine::{Engine, EngineHandle, EngineOutput, GenerateRequest, TokenLogprobs};

fn start(device: &str, flags: &[&str]) -> EngineHandle {
    start_warm(device, &[flags, &["--no-warm-up"]].concat())
}

fn start_warm(device: &str, flags: &[&str]) -> EngineHandle {
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
    let mut names = ["cuda", "wgpu"].into_iter();
    let gpu = names.find(|name| model_qwen::parse_device(name).is_ok());
    gpu.expect("a GPU")
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
        constraint: None,
        stop_token_ids: Vec::new(),
        adapter: None,
        cache_salt: None,
        prompt_logprobs: None,
    }
}

/// The tokens of several requests that run together.
async fn tokens(engine: &EngineHandle, requests: Vec<GenerateRequest>) -> Vec<Vec<u32>> {
    let scored = scored_tokens(engine, requests).await.into_iter();
    let ids = |tokens: Vec<ScoredToken>| tokens.into_iter().map(|(id, _)| id).collect();
    scored.map(ids).collect()
}

/// A request alone has the tokens that it has among others. Its first `num` are compared: each takes a step of its own.
async fn assert_begins(
    engine: &EngineHandle,
    request: &GenerateRequest,
    expected: &[u32],
    num: usize,
) {
    let request = GenerateRequest {
        max_tokens: request.max_tokens.min(num),
        ..request.clone()
    };
    let expected = &expected[..expected.len().min(num)];
    assert_eq!(tokens(engine, vec![request]).await, [expected], "alone");
}

/// A token, and its log-probabilities if they are wanted.
type ScoredToken = (u32, Option<TokenLogprobs>);

/// [`tokens`], with their log-probabilities.
async fn scored_tokens(
    engine: &EngineHandle,
    requests: Vec<GenerateRequest>,
) -> Vec<Vec<ScoredToken>> {
    let submit = |request| engine.submit(request).expect("room in the queue");
    let streams: Vec<_> = requests.into_iter().map(submit).collect();
    let mut all = Vec::new();
    for mut stream in streams {
        let mut tokens = Vec::new();
        while let Some(output) = stream.next().await {
            if let EngineOutput::Token { id, logprobs, .. } = output {
                tokens.push((id, logprobs));
            }
        }
        all.push(tokens);
    }
    all
}

/// One test at a time: engines of one process would record each other's work.
static DEVICE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The steps before the first request leave nothing behind.
#[tokio::test]
async fn a_warm_engine_has_the_same_tokens() {
    let _turn = DEVICE.lock().await;
    let requests: Vec<GenerateRequest> = (0..3).map(request).collect();
    let expected = tokens(&start("cpu", &[]), requests.clone()).await;
    // The largest of the steps before has the longest prompt and a part of another.
    let few = ["--max-num-seqs", "3", "--max-num-batched-tokens", "320"];
    let warm = start_warm(gpu(), &few);
    assert_eq!(tokens(&warm, requests).await, expected);
}

/// Questions that the bundled model answers with text of its own, which does not begin to repeat itself at once.
fn chats() -> Vec<GenerateRequest> {
    let dir = model_qwen::bundled_model_dir().expect("the bundled model");
    let tokenizer = Tokenizer::from_dir(&dir).expect("its tokenizer");
    let questions = [
        "Tell me a story about a cat who wants to swim.",
        "What do you like to eat?",
        "Hello! How are you today?",
        "Why is the little bird sad?",
        "Tell me about your best friend.",
    ];
    let chats = (0..).zip(questions).map(|(i, question)| {
        let text = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        GenerateRequest {
            prompt: tokenizer.encode(&text, false).expect("its tokens"),
            ..request(i)
        }
    });
    chats.collect()
}

/// How many steps were launched before the tokens of the step before were known.
fn steps_ahead(engine: &EngineHandle) -> u64 {
    engine.stats().num_steps_ahead
}

/// Steps are computed ahead of what is known: sequences that end with a stop token and others that join must not disturb
/// anybody.
#[tokio::test]
async fn sequences_come_and_go_while_steps_are_computed_ahead() {
    let _turn = DEVICE.lock().await;
    let cpu = start("cpu", &[]);
    let gpu = start(gpu(), &[]);
    let mut requests = chats();
    let free = tokens(&cpu, requests.clone()).await;
    for (request, tokens) in requests.iter_mut().zip(&free).take(3) {
        // The last token that comes for the first time: whatever the model repeats, the text ends as late as it can.
        let is_new = |at: &usize| !tokens[..*at].contains(&tokens[*at]);
        let last = (0..tokens.len() - 1).rev().find(is_new);
        request.stop_token_ids = vec![tokens[last.expect("the first token is new")]];
    }
    let expected = tokens(&cpu, requests.clone()).await;
    let ends_early = |(free, expected): (&Vec<u32>, &Vec<u32>)| expected.len() < free.len();
    assert!(free.iter().zip(&expected).take(3).all(ends_early));
    assert!(expected.iter().all(|tokens| tokens.len() > 3));
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    let ahead = steps_ahead(&gpu);
    assert!(ahead > 0);

    // Each one comes when the one before has some tokens.
    let mut streams = Vec::new();
    for request in requests {
        let mut stream = gpu.submit(request).expect("room in the queue");
        let mut tokens = Vec::new();
        while tokens.len() < 3 {
            match stream.next().await {
                Some(EngineOutput::Token { id, .. }) => tokens.push(id),
                Some(_) => {}
                None => panic!("a stream ended after {tokens:?}"),
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
    assert!(steps_ahead(&gpu) > ahead);
    assert_eq!(steps_ahead(&cpu), 0);
}

/// An adapter of the bundled model with random matrices on some of its layers.
fn adapter(seed: usize, r: usize, suffixes: &[&str], dir: &Path) -> PathBuf {
    let base = model_qwen::bundled_model_dir().expect("the bundled model");
    let cpu = burn::tensor::Device::flex();
    let model = QwenModel::load(&base, &LoadOptions::default(), &cpu).expect("it loads");
    let mut state = seed as u32;
    let mut random = |len: usize| {
        let values = (0..len).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.3
        });
        values.collect::<Vec<f32>>()
    };
    let linears = model.linears().into_iter();
    let targeted = linears.filter(|(name, _)| suffixes.iter().any(|s| name.ends_with(s)));
    let modules = targeted.map(|(name, linear)| {
        let (in_features, out_features) = (linear.in_features(), linear.out_features());
        let matrices = LoraMatrices {
            a: random(r * in_features),
            b: random(out_features * r),
            r,
            in_features,
            out_features,
            magnitude: None,
        };
        (name, matrices)
    });
    let adapter = LoraAdapter {
        modules: modules.collect(),
        config: LoraConfig {
            r,
            lora_alpha: 2.0 * r as f64,
            target_modules: TargetModules::List(suffixes.iter().map(|s| s.to_string()).collect()),
            ..LoraConfig::default()
        },
        saved: Default::default(),
    };
    let path = dir.join(format!("adapter-{seed}"));
    adapter.save(&path).expect("it is written");
    path
}

/// Adapters of other ranks and layers, beside sequences without one.
#[tokio::test]
async fn text_of_adapters_equals_that_of_the_cpu() {
    let _turn = DEVICE.lock().await;
    let dir = tempfile::tempdir().expect("a folder");
    let paths = [
        adapter(1, 4, &["q_proj", "v_proj"], dir.path()),
        adapter(2, 16, &linear_names(), dir.path()),
        adapter(3, 5, &["up_proj", "down_proj"], dir.path()),
    ];
    let modules: Vec<String> = (1..)
        .zip(&paths)
        .map(|(i, path)| format!("a{i}={}", path.display()))
        .collect();
    let mut flags = vec!["--enable-lora", "--max-loras", "4", "--lora-modules"];
    flags.extend(modules.iter().map(String::as_str));
    let (cpu, gpu) = (start("cpu", &flags), start(gpu(), &flags));
    let mut requests: Vec<GenerateRequest> = (0..6).map(request).collect();
    let base = tokens(&cpu, requests.clone()).await;
    for (i, request) in requests.iter_mut().enumerate() {
        request.adapter = (i % 4 > 0).then(|| format!("a{}", i % 4));
    }
    let expected = tokens(&cpu, requests.clone()).await;
    let changed = base.iter().zip(&expected).filter(|(a, b)| a != b);
    assert_eq!(changed.count(), 4, "the adapters change the text");
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    for (request, expected) in requests.into_iter().zip(expected).skip(4) {
        assert_eq!(tokens(&gpu, vec![request]).await, [expected]);
    }
}

/// Sampling from the largest logits on the device draws what the CPU draws from all of them.
#[tokio::test]
async fn sampled_text_equals_that_of_the_cpu() {
    let _turn = DEVICE.lock().await;
    let (cpu, gpu) = (start("cpu", &[]), start(gpu(), &[]));
    let mut requests: Vec<GenerateRequest> = (0..6).map(request).collect();
    for (i, request) in requests.iter_mut().enumerate() {
        request.sampling = SamplingParams {
            temperature: 0.8,
            seed: Some(i as u64),
            top_k: if i % 2 == 0 { 20 } else { 0 },
            top_p: if i % 3 == 0 { 1.0 } else { 0.9 },
            repetition_penalty: if i == 4 { 1.1 } else { 1.0 },
            logprobs: (i == 5).then_some(1),
            ..SamplingParams::default()
        };
    }
    let expected = tokens(&cpu, requests.clone()).await;
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    for (request, expected) in requests.into_iter().zip(expected).skip(4) {
        assert_eq!(tokens(&gpu, vec![request]).await, [expected]);
    }
}

/// The device draws tokens itself and goes on with them, where it can: the third and the sixth sequence keep more tokens than
/// it finds.
#[tokio::test]
async fn tokens_that_the_device_draws_are_those_of_the_cpu() {
    let _turn = DEVICE.lock().await;
    let (cpu, gpu) = (start("cpu", &[]), start(gpu(), &[]));
    let eager = start(self::gpu(), &["--enforce-eager"]);
    let mut requests: Vec<GenerateRequest> = (0..7).map(request).collect();
    for (i, request) in requests.iter_mut().enumerate() {
        request.max_tokens = 40;
        request.sampling = SamplingParams {
            temperature: [0.9, 1.0, 3.0, 0.0][i % 4],
            seed: Some(i as u64),
            top_k: if i % 3 == 2 { 600 } else { 0 },
            top_p: if i == 4 { 0.5 } else { 1.0 },
            min_p: if i == 0 { 0.1 } else { 0.0 },
            ..SamplingParams::default()
        };
    }
    // One ends with a stop token while the next one is drawn.
    let free = tokens(&cpu, requests.clone()).await;
    requests[1].stop_token_ids = vec![free[1][9]];
    let expected = tokens(&cpu, requests.clone()).await;
    assert!(expected[1].len() <= 10 && expected[6].len() == 40);
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    assert_eq!(tokens(&eager, requests.clone()).await, expected, "eager");
    for (request, expected) in requests.iter().zip(&expected) {
        assert_begins(&gpu, request, expected, 16).await;
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

/// Guessed tokens are rows of the same sequence, in a recorded step and operation by operation; greedy and drawn by the device.
#[tokio::test]
async fn drafts_change_no_token() {
    let _turn = DEVICE.lock().await;
    let on = "{\"method\": \"ngram\", \"num_speculative_tokens\": 4, \"prompt_lookup_max\": 3, \"prompt_lookup_min\": 1}";
    let drafts = ["--speculative-config", on];
    let cpu = start("cpu", &["--speculative-config", "off"]);
    let graphs = start(gpu(), &drafts);
    let eager = start(gpu(), &[&drafts[..], &["--enforce-eager"]].concat());
    let mut requests: Vec<GenerateRequest> = (0..4).map(request).collect();
    for (i, request) in requests.iter_mut().enumerate() {
        // A prompt that repeats itself, and an answer that does so in the end.
        request.prompt = request.prompt.repeat(3);
        request.max_tokens = 60;
        if i == 2 {
            request.sampling.repetition_penalty = 1.05;
            request.sampling.frequency_penalty = 0.1;
            request.sampling.bad_words = vec![vec![300], vec![7, 9]];
        }
        if i == 3 {
            request.sampling.temperature = 0.3;
            request.sampling.seed = Some(3);
        }
    }
    let expected = tokens(&cpu, requests.clone()).await;
    for engine in [&graphs, &eager] {
        assert_eq!(tokens(engine, requests.clone()).await, expected, "together");
        for (request, expected) in requests.iter().zip(&expected) {
            assert_begins(engine, request, expected, 30).await;
        }
        let stats = engine.stats().speculation.expect("drafts");
        assert!(stats.num_accepted_tokens > 0, "{stats:?}");
    }
}
