//! A random Qwen2 model in a folder, random adapters next to it, and what they must answer.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use kv_paging::CausalAttention;
use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, TargetModules};
use lora_4bit::{AdapterSelection, Linear, Weight};
use model_qwen::{
    GenerateRequest, LoadOptions, QwenConfig, QwenModel, SamplingParams, generate, linear_names,
    parse_device,
};
use tempfile::TempDir;

pub(crate) const VOCAB_SIZE: usize = 8192;
pub(crate) const MAX_POSITION_EMBEDDINGS: usize = 4096;
/// Of the `generation_config.json` below.
pub(crate) const EOS: [u32; 2] = [0, 2];
const NUM_LAYERS: usize = 2;
const NUM_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
/// Bytes of a block of 16 tokens: keys and values in f32.
pub(crate) const BLOCK_BYTES: usize = 2 * NUM_LAYERS * NUM_KV_HEADS * HEAD_DIM * 4 * 16;

/// A linear congruential generator, so that the tests depend on no other crate's random numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Uniform in 0..1.
    fn uniform(&mut self) -> f32 {
        // Knuth's MMIX constants.
        self.0 = self.0.wrapping_mul(6364136223846793005);
        self.0 = self.0.wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    /// Token ids that are not special.
    pub(crate) fn tokens(&mut self, count: usize) -> Vec<u32> {
        let mut token = || 100 + (self.uniform() * (VOCAB_SIZE - 100) as f32) as u32;
        (0..count).map(|_| token()).collect()
    }

    /// Uniform values of standard deviation 0.2.
    fn matrix(&mut self, len: usize) -> Vec<f32> {
        let scale = 0.2 * 12f32.sqrt();
        (0..len).map(|_| (self.uniform() - 0.5) * scale).collect()
    }
}

/// A model folder that is removed with the value.
pub(crate) struct TestModel(TempDir);

impl TestModel {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/model");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(bundled.join(file), dir.path().join(file)).unwrap();
        }
        // Sampling defaults, but no penalty: the references of the tests are plainly greedy.
        let generation_config =
            r#"{"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.9, "top_k": 40}"#;
        std::fs::write(dir.path().join("generation_config.json"), generation_config).unwrap();
        let config = QwenConfig {
            model_type: "qwen2".to_owned(),
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: NUM_LAYERS,
            num_attention_heads: 4,
            num_key_value_heads: NUM_KV_HEADS,
            head_dim: HEAD_DIM,
            vocab_size: VOCAB_SIZE,
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            rope_scaling: None,
            // A tied model of random weights repeats its last token.
            tie_word_embeddings: false,
            attention_bias: true,
            qk_norm: false,
            max_position_embeddings: MAX_POSITION_EMBEDDINGS,
            sliding_window: None,
            eos_token_ids: EOS.to_vec(),
            bos_token_id: Some(0),
            dtype: DType::F32,
        };
        let mut model = QwenModel::random(config, 7, &cpu());
        // With the usual deviation of 0.02 so small a model says the same whatever the prompt.
        model.linears_mut().for_each(|linear| scale(linear, 10.0));
        scale(&mut model.lm_head, 20.0);
        model.save(dir.path(), DType::F32).unwrap();
        Self(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Writes a random adapter and returns its folder. Adapters of different seeds have different ranks and modules; each third
    /// one has DoRA.
    pub(crate) fn adapter(&self, seed: usize) -> PathBuf {
        let r = 2 + 3 * (seed % 3);
        let suffixes: &[&str] = match seed % 3 {
            0 => &["q_proj", "v_proj"],
            1 => &["gate_proj", "up_proj", "down_proj"],
            _ => &linear_names(),
        };
        let use_dora = seed % 3 == 2;
        let mut random = Random(1000 + seed as u64);
        let model = self.load();
        let linears = model.linears().into_iter();
        let targeted = linears.filter(|(name, _)| suffixes.iter().any(|s| name.ends_with(s)));
        let modules = targeted.map(|(name, linear)| {
            let (in_features, out_features) = (linear.in_features(), linear.out_features());
            let matrices = LoraMatrices {
                a: random.matrix(r * in_features),
                b: random.matrix(out_features * r),
                r,
                in_features,
                out_features,
                magnitude: use_dora.then(|| {
                    let lengths = random.matrix(out_features).into_iter();
                    lengths.map(|length| length.abs() + 1.0).collect()
                }),
            };
            (name, matrices)
        });
        let adapter = LoraAdapter {
            config: LoraConfig {
                r,
                lora_alpha: 2.0 * r as f64,
                use_dora,
                target_modules: TargetModules::List(
                    suffixes.iter().map(|&s| s.to_owned()).collect(),
                ),
                ..LoraConfig::default()
            },
            modules: modules.collect(),
            saved: Default::default(),
        };
        let path = self.dir().join(format!("adapter-{seed}"));
        adapter.save(&path).unwrap();
        path
    }

    /// The model itself, without a server.
    pub(crate) fn load(&self) -> QwenModel {
        QwenModel::load(self.dir(), &LoadOptions::default(), &cpu()).unwrap()
    }

    /// The model with an adapter in slot 0.
    pub(crate) fn load_with(&self, adapter: &Path) -> QwenModel {
        let mut model = self.load();
        let adapter = LoraAdapter::load(adapter).unwrap();
        model.add_adapter(0, &adapter).unwrap();
        model
    }
}

/// Greedy tokens of one sequence, computed without the engine; an end-of-sequence token is not among them.
pub(crate) fn greedy(
    model: &QwenModel,
    prompt: &[u32],
    max_tokens: usize,
    adapter: Option<usize>,
) -> Vec<u32> {
    let request = GenerateRequest {
        prompt: prompt.to_vec(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens,
        stop_token_ids: EOS.to_vec(),
        adapter,
    };
    generate(model, &request, |_| ControlFlow::Continue(())).unwrap()
}

/// Log-probabilities of all tokens after each token, `[tokens][vocab]`, in one forward pass without a cache.
pub(crate) fn log_softmax(
    model: &QwenModel,
    tokens: &[u32],
    adapter: Option<usize>,
) -> Vec<Vec<f64>> {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let selection = AdapterSelection::per_row(&vec![adapter; tokens.len()], &model.device());
    let mut causal = CausalAttention::new(&[tokens.len()]);
    let hidden = model.forward(tokens, &positions, &selection, &mut causal); // [tokens, hidden]
    let logits: Tensor<2> = model.logits(hidden); // [tokens, vocab]
    let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let normalized = logits.chunks_exact(VOCAB_SIZE).map(|row| {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        row.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
    });
    normalized.collect()
}

fn scale(linear: &mut Linear, factor: f32) {
    if let Weight::Dense(weight) = &linear.weight {
        linear.weight = Weight::Dense(weight.clone().mul_scalar(factor));
    }
}

fn cpu() -> Device {
    parse_device("cpu").unwrap()
}
