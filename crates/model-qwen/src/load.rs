//! From a model folder to a [`QwenModel`]: names, shapes and dtypes are checked here and nowhere else.

mod error;
mod lm_head;
mod names;
mod options;
mod shapes;
mod values;

use std::path::Path;
use std::time::Duration;

use burn::tensor::{DType, DataError, Device, Tensor, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use lora_4bit::bnb;
use lora_4bit::device::is_cpu;
use lora_4bit::nf4::Nf4Data;
use lora_4bit::{Linear, Nf4Weight, Weight};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::QwenConfig;
use crate::device::{is_gpu, use_one_queue};
use crate::dtype::Dtype;
use crate::model::{DecoderLayer, Mlp, QwenModel, SelfAttention, linear_features};
use crate::pooling::Architecture;
use crate::throttle::Throttle;

pub use error::LoadError;
pub(crate) use lm_head::open;
pub use lm_head::{is_headless, score_weights};
pub use options::{LoadOptions, Quantization};
pub use shapes::FolderShapes;

/// How often it is said how far a slow load is.
const REPORT_EVERY: Duration = Duration::from_secs(3);

impl QwenModel {
    /// Loads a model folder.
    ///
    /// On the CPU a dense weight in the file's own dtype is the mapped file itself: nothing is
    /// copied, and processes share the page cache.
    ///
    /// # Errors
    /// When `config.json` or the weight files are missing, broken, or do not fit each other.
    pub fn load(dir: &Path, options: &LoadOptions, device: &Device) -> Result<Self, LoadError> {
        Self::load_with_progress(dir, options, device, &|_, _| {})
    }

    /// [`load`](Self::load), which calls `progress` first with 0, then after each layer: (layers that are there, layers).
    ///
    /// # Errors
    /// As `load`.
    pub fn load_with_progress(
        dir: &Path,
        options: &LoadOptions,
        device: &Device,
        progress: LayerProgress<'_>,
    ) -> Result<Self, LoadError> {
        Self::load_with(dir, options, (device, true), progress)
    }

    /// [`load`](Self::load) on the CPU to know whether the folder can be loaded: the pages of what was looked at do not stay in
    /// this process's memory.
    pub(crate) fn load_to_check(dir: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::load_with(dir, options, (&Device::flex(), false), &|_, _| {})
    }

    fn load_with(
        dir: &Path,
        options: &LoadOptions,
        (device, keeps_pages): (&Device, bool),
        progress: LayerProgress<'_>,
    ) -> Result<Self, LoadError> {
        use_one_queue();
        let (mut config, notes) = QwenConfig::load_with_notes(dir)?;
        if !notes.is_empty() {
            let path = dir.join("config.json");
            tracing::warn!("{}: {}", path.display(), notes.join("; "));
        }
        if options.lm_head && Architecture::of(dir)? != Architecture::CausalLm {
            return Err(LoadError::NoHead {
                dir: dir.to_owned(),
            });
        }
        let checkpoint = lm_head::open(dir, &config)?;
        if options.lm_head && lm_head::untie(&checkpoint, &mut config) {
            tracing::warn!(
                "{}: `tie_word_embeddings` is true, but lm_head.weight and the embedding are stored with other values: they are \
                 not tied",
                dir.join("config.json").display()
            );
        }
        let loader = Loader {
            checkpoint: &checkpoint,
            options,
            device,
            keeps_pages,
            progress,
        };
        loader.check_names(dir, &config)?;
        // Exact sizes outside of the pools of a GPU, whose pages would grow to the size of the embedding.
        let mut model =
            device.memory_persistent_allocations(config, |config| loader.model(config))?;
        if options.int8_lm_head {
            model.copy_lm_head_int8();
            if model.int8_lm_head.is_some() {
                // What is read of lm_head now are a few rows.
                checkpoint.release(&checkpoint.stored(head_name(&model.config)));
            }
        }
        if !options.check_finite_now {
            values::check_later(checkpoint, options, device);
        }
        Ok(model)
    }
}

/// Hears how many layers of a model are there, and of how many.
pub type LayerProgress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Makes a linear layer: module name within the layer, `[out, in]`, whether it has a bias.
pub(crate) type MakeLinear<'a> =
    dyn FnMut(&str, [usize; 2], bool) -> Result<Linear, LoadError> + 'a;
/// Makes the weight of a norm: name within the layer, length.
pub(crate) type MakeNorm<'a> = dyn FnMut(&str, usize) -> Result<Tensor<1>, LoadError> + 'a;

/// One decoder layer of the config's shape, its parts made by the caller.
pub(crate) fn build_layer(
    config: &QwenConfig,
    linear: &mut MakeLinear<'_>,
    norm: &mut MakeNorm<'_>,
) -> Result<DecoderLayer, LoadError> {
    let hidden = config.hidden_size;
    let features = linear_features(config);
    let mut linear = |at: usize, bias| {
        let (name, [inputs, outputs]) = features[at];
        linear(name, [outputs, inputs], bias)
    };
    let bias = config.attention_bias;
    let mut qk_norm = |name: &str| {
        config
            .qk_norm
            .then(|| norm(name, config.head_dim))
            .transpose()
    };
    let (q_norm, k_norm) = (qk_norm("self_attn.q_norm")?, qk_norm("self_attn.k_norm")?);
    let o_bias = has_output_bias(config);
    Ok(DecoderLayer {
        input_layernorm: norm("input_layernorm", hidden)?,
        self_attn: SelfAttention {
            q_proj: linear(0, bias)?,
            k_proj: linear(1, bias)?,
            v_proj: linear(2, bias)?,
            o_proj: linear(3, o_bias)?,
            q_norm,
            k_norm,
            head_dim: config.head_dim,
        },
        post_attention_layernorm: norm("post_attention_layernorm", hidden)?,
        mlp: Mlp {
            gate_proj: linear(4, false)?,
            up_proj: linear(5, false)?,
            down_proj: linear(6, false)?,
        },
        rms_norm_eps: config.rms_norm_eps,
    })
}

/// Qwen3 with attention_bias also has one on the output projection; Qwen2 never has.
fn has_output_bias(config: &QwenConfig) -> bool {
    config.attention_bias && config.model_type == "qwen3"
}

/// The tensor that lm_head is.
fn head_name(config: &QwenConfig) -> &'static str {
    match config.tie_word_embeddings {
        true => "model.embed_tokens.weight",
        false => "lm_head.weight",
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    device: &'a Device,
    /// Whether the pages of tensors that stay in the mapped file stay in memory when they have been looked at.
    keeps_pages: bool,
    progress: LayerProgress<'a>,
}

impl Loader<'_> {
    fn model(&self, mut config: QwenConfig) -> Result<QwenModel, LoadError> {
        // A tied head is not read; a pooling model needs none.
        config.tie_word_embeddings |= !self.options.lm_head;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let name = "model.embed_tokens.weight";
        let stays =
            is_gpu(self.device) && self.options.embeddings_on_cpu && !config.tie_word_embeddings;
        let embed_tokens = match stays {
            true => {
                let name = &self.checkpoint.stored(name);
                self.checkpoint.check_finite(name)?;
                (self.checkpoint).tensor(name, [vocab, hidden], &Device::flex())?
            }
            false => self.dense(name, [vocab, hidden])?,
        };
        if !config.tie_word_embeddings {
            // What is read of it from now on are a few rows.
            self.checkpoint.release(&self.checkpoint.stored(name));
        }
        let mut log = Throttle::new(REPORT_EVERY);
        let num_layers = config.num_hidden_layers;
        let layers = (0..num_layers)
            .map(|i| {
                (self.progress)(i, num_layers);
                if log.is_due() {
                    tracing::info!("loading weights: {i} of {num_layers} layers");
                }
                let prefix = format!("model.layers.{i}.");
                build_layer(
                    &config,
                    &mut |module, shape, bias| {
                        self.linear(&format!("{prefix}{module}"), shape, bias)
                    },
                    &mut |name, len| self.vector(&format!("{prefix}{name}.weight"), len),
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        (self.progress)(num_layers, num_layers);
        let norm = self.vector("model.norm.weight", hidden)?;
        let lm_head = (!config.tie_word_embeddings)
            .then(|| self.dense(head_name(&config), [vocab, hidden]))
            .transpose()?;
        Ok(QwenModel::new(config, embed_tokens, layers, norm, lm_head))
    }

    /// A matrix in the dtype the options ask for.
    fn dense(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, LoadError> {
        self.tensor(name, shape, self.options.dtype)
    }

    /// Norm weights and biases are few: always f32.
    fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, LoadError> {
        self.tensor(name, [len], Dtype::F32)
    }

    /// A tensor in the given dtype; `auto` is that of the file.
    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: Dtype,
    ) -> Result<Tensor<D>, LoadError> {
        let name = &self.checkpoint.stored(name);
        // On the CPU it stays in the mapped file unless it is converted.
        let tensor = self.checkpoint.tensor(name, shape, &Device::flex())?;
        let stored = tensor.dtype();
        let dtype = dtype.resolve(stored, self.device);
        let is_converted = stored != dtype;
        if is_converted || self.options.check_finite_now || !values::may_wait(name, self.device) {
            self.checkpoint.check_finite(name)?;
        }
        if is_converted && dtype == DType::F16 {
            self.checkpoint.check_fits_f16(name)?;
        }
        let tensor = match is_converted {
            true => tensor.cast(dtype),
            false => tensor,
        };
        let is_on_cpu = is_cpu(self.device);
        let tensor = match is_on_cpu {
            true => tensor,
            // From one dimension, so that no row is padded.
            false => {
                let len: usize = shape.iter().product();
                let data = tensor.reshape([len]).into_data();
                Tensor::<1>::from_data(data, (self.device, dtype)).reshape(shape)
            }
        };
        if is_converted || !is_on_cpu || !self.keeps_pages {
            self.checkpoint.release(name);
        }
        Ok(tensor)
    }

    fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<Linear, LoadError> {
        let weight_name = self.checkpoint.stored(&format!("{name}.weight"));
        let stored = bnb::read_nf4(&|n| self.checkpoint.view(n), &weight_name)?;
        let weight = if let Some(data) = stored {
            self.check_shape(&weight_name, shape, data.shape)?;
            self.checkpoint.release(&weight_name);
            Weight::Nf4(Nf4Weight::from_data(&data, self.device))
        } else if self.options.quantization == Quantization::Nf4 {
            let tensor = self
                .checkpoint
                .tensor(&weight_name, shape, &Device::flex())?;
            self.checkpoint.check_finite(&weight_name)?;
            let dtype = tensor.dtype();
            let values = floats(&tensor.into_data()).map_err(|e| CheckpointError::Dtype {
                dir: self.checkpoint.dir().to_owned(),
                name: weight_name.clone(),
                found: format!("{e:?}"),
            })?;
            let data = Nf4Data::quantize(&values, shape, dtype, self.options.double_quant);
            self.checkpoint.release(&weight_name);
            Weight::Nf4(Nf4Weight::from_data(&data, self.device))
        } else {
            Weight::Dense(self.dense(&weight_name, shape)?)
        };
        let bias = bias
            .then(|| self.vector(&format!("{name}.bias"), shape[0]))
            .transpose()?;
        Ok(Linear::new(weight, bias))
    }

    fn check_shape(
        &self,
        name: &str,
        expected: [usize; 2],
        found: [usize; 2],
    ) -> Result<(), CheckpointError> {
        if expected == found {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            dir: self.checkpoint.dir().to_owned(),
            name: name.to_owned(),
            expected: expected.to_vec(),
            found: found.to_vec(),
        })
    }
}

/// The values of a float tensor in f32.
fn floats(data: &TensorData) -> Result<Vec<f32>, DataError> {
    let mut values = vec![0.0; data.num_elements()];
    match data.dtype() {
        DType::BF16 => data.as_slice::<bf16>()?.convert_to_f32_slice(&mut values),
        DType::F16 => data.as_slice::<f16>()?.convert_to_f32_slice(&mut values),
        _ => values.copy_from_slice(data.as_slice::<f32>()?),
    }
    Ok(values)
}
