//! The adapter of a run: started, and read back from the model to be written.

mod decomposed;
mod low_rank;
mod read;

use burn::tensor::{DType, Tensor, TensorData};
use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, TargetModules};
use lora_4bit::{Linear, LoraWeights};
use model_qwen::{AdapterError, QwenModel, linear_names};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::decomposed::start_from;
pub use self::decomposed::{AdapterForm, Matrices, split, take_out};
pub use self::read::read_adapter;
use self::read::saved_modules;
use crate::config::LoraOptions;
use crate::parameters::Trainable;

/// The slot that a run trains.
pub const SLOT: usize = 0;

/// The slot of the adapter that a run is compared with (`--ref-adapter`).
pub(crate) const REFERENCE_SLOT: usize = SLOT + 1;

/// The names of the layers that get an adapter. `all-linear` stands for every linear layer of a decoder layer; the output head is
/// left out.
#[must_use]
pub fn target_modules(options: &LoraOptions) -> Vec<String> {
    if options.is_all_linear() {
        linear_names().map(str::to_owned).to_vec()
    } else {
        options.target_modules.clone()
    }
}

/// A new adapter for `model`, as `options` describe it.
#[must_use]
pub fn new_adapter(
    options: &LoraOptions,
    base: Option<String>,
    model: &QwenModel,
    seed: u64,
) -> LoraAdapter {
    let config = lora_config(options, base);
    let mut adapter = init_adapter(config, &target_modules(options), model, seed);
    start_from(&mut adapter, options.init, model, seed);
    adapter
}

/// The configuration of the adapter that `options` describe.
pub(crate) fn lora_config(options: &LoraOptions, base: Option<String>) -> LoraConfig {
    LoraConfig {
        r: options.r,
        lora_alpha: options.alpha,
        lora_dropout: options.dropout(),
        target_modules: TargetModules::List(target_modules(options)),
        use_rslora: options.use_rslora,
        use_dora: options.use_dora,
        modules_to_save: options.modules_to_save.clone(),
        base_model_name_or_path: base,
        ..LoraConfig::default()
    }
}

/// An adapter that changes nothing yet: A uniform in ±1/√in (Kaiming with a = √5, as PEFT), B zero; with DoRA the norms of
/// the rows of the base weight.
///
/// `modules` are names like `q_proj`; a layer belongs when its name ends with one of them.
fn init_adapter(
    config: LoraConfig,
    modules: &[String],
    model: &QwenModel,
    seed: u64,
) -> LoraAdapter {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let r = config.r;
    let modules = with_names(modules, model)
        .map(|(name, linear)| {
            let (in_features, out_features) = (linear.in_features(), linear.out_features());
            let bound = 1.0 / (in_features as f32).sqrt();
            let a = (0..r * in_features)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            (
                name,
                LoraMatrices {
                    a,
                    b: vec![0.0; out_features * r],
                    r,
                    in_features,
                    out_features,
                    magnitude: config.use_dora.then(|| row_norms(linear)),
                },
            )
        })
        .collect();
    LoraAdapter {
        saved: saved_modules(model, &config),
        config,
        modules,
    }
}

/// Puts an adapter into `slot`, and the weights that it brings in the place of the model's own.
///
/// # Errors
/// When it was made for another model.
pub fn put_adapter(
    model: &mut QwenModel,
    slot: usize,
    mut adapter: LoraAdapter,
) -> Result<LoraConfig, AdapterError> {
    model.check_adapter(&adapter)?;
    adapter.share_saved(model.config.tie_word_embeddings);
    let saved = std::mem::take(&mut adapter.saved);
    model.replace_saved(&saved);
    model.add_adapter(slot, &adapter)?;
    Ok(adapter.config)
}

/// What is trained of an adapter of this form.
#[must_use]
pub fn trainable(slot: usize, modules_to_save: &[String]) -> Trainable {
    let has = |short: &str| modules_to_save.iter().any(|name| name.ends_with(short));
    match modules_to_save.is_empty() {
        true => Trainable::Adapter { slot },
        false => Trainable::AdapterAndModules {
            slot,
            embed_tokens: has("embed_tokens"),
            lm_head: has("lm_head"),
        },
    }
}

/// The layers that get an adapter.
pub(crate) fn targeted<'a>(
    options: &LoraOptions,
    model: &'a QwenModel,
) -> impl Iterator<Item = (String, &'a Linear)> {
    with_names(&target_modules(options), model)
        .collect::<Vec<_>>()
        .into_iter()
}

/// The layers whose names end with one of `modules`.
fn with_names<'a>(
    modules: &[String],
    model: &'a QwenModel,
) -> impl Iterator<Item = (String, &'a Linear)> {
    model.linears().into_iter().filter(|(name, _)| {
        let last = name.rsplit('.').next().unwrap_or(name);
        modules.iter().any(|module| module == last)
    })
}

/// The norm of each row of a layer's weight.
fn row_norms(linear: &Linear) -> Vec<f32> {
    let zeros = |rows: usize, width: usize| {
        let device = linear.weight.device();
        let data = TensorData::zeros::<f32, _>([rows, width]);
        Tensor::<2>::from_data(data, (&device, DType::F32))
    };
    let (a, b) = (
        zeros(1, linear.in_features()),
        zeros(linear.out_features(), 1),
    );
    let start = LoraWeights::new(a, b, 0.0).with_magnitude(&linear.weight, None);
    let magnitude = start.dora.map(|dora| dora.magnitude.into_data());
    magnitude.map_or_else(Vec::new, |data| data.iter::<f32>().collect())
}
