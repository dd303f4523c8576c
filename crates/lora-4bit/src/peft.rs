//! LoRA adapters in PEFT's folder layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The matrices of module `M` are `base_model.model.M.lora_A.weight` `[r, in]` and `base_model.model.M.lora_B.weight`
//! `[out, r]`; the module then computes `W x + s B (A x)` with the scaling `s` of [`LoraConfig::scaling_for`].
//!
//! With DoRA (`use_dora`) the module has `base_model.model.M.lora_magnitude_vector` `[out]` besides, see
//! [`LoraMatrices::magnitude`].
//!
//! With `modules_to_save`, or a vocabulary that has grown, there is `base_model.model.M.weight` for the embedding or the head, see
//! [`SavedModule`].
//!
//! What this crate does not compute (trained biases, norms, and so on) is refused by name when it is read.
//!
//! Source: `peft/tuners/lora/config.py`, `peft/utils/save_and_load.py` and `peft/utils/other.py` of PEFT 0.21.

mod config;
mod error;
mod floats;
mod folder;
mod matcher;
mod names;
mod pattern;
mod read_config;
mod savable;
mod saved;
mod unsupported;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use safetensors::tensor::{SafeTensors, TensorView, serialize};

use crate::bnb::OwnedTensor;

pub use config::{LoraConfig, OneOrMany, TargetModules};
pub use error::PeftError;
pub use folder::{adapter_below, by_number};
pub use matcher::LoraMatcher;
pub use names::{CONFIG_FILE, WEIGHTS_FILE};
pub use pattern::PatternMap;
pub use savable::SAVABLE;
pub use saved::SavedModule;

use floats::read_floats;
use folder::{publish, read_file, write_file};
use names::{A_SUFFIX, B_SUFFIX, MAGNITUDE_SUFFIX, PREFIX, tensor_name};
use saved::{read_saved, saved_name};

/// The two matrices of one module, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraMatrices {
    /// `A`, `[r, in_features]`.
    pub a: Vec<f32>,
    /// `B`, `[out_features, r]`.
    pub b: Vec<f32>,
    /// The rank.
    pub r: usize,
    /// Width of the module's input.
    pub in_features: usize,
    /// Width of the module's output.
    pub out_features: usize,
    /// DoRA: the length that each row of `W + s B A` is given, `[out_features]`.
    pub magnitude: Option<Vec<f32>>,
}

impl LoraMatrices {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.a.len() + self.b.len() + self.magnitude.as_ref().map_or(0, Vec::len)
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A LoRA adapter in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraAdapter {
    /// The hyperparameters.
    pub config: LoraConfig,
    /// The matrices, by module name, such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraMatrices>,
    /// The weights that take the place of the model's, by module name: `model.embed_tokens`, `lm_head`.
    pub saved: BTreeMap<String, SavedModule>,
}

impl LoraAdapter {
    /// Reads an adapter folder.
    ///
    /// # Errors
    ///
    /// If the folder or a file is missing or damaged, the configuration asks for something that is not implemented, or
    /// the matrices do not fit the configuration.
    pub fn load(dir: &Path) -> Result<Self, PeftError> {
        match fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(PeftError::NotAFolder(dir.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PeftError::NoFolder(dir.to_owned()));
            }
            Err(error) => return Err(PeftError::io("open", dir)(error)),
        }
        let config = read_file(dir, CONFIG_FILE)?;
        let weights = read_file(dir, WEIGHTS_FILE)?;
        Self::from_bytes(&config, &weights)
    }

    /// Reads an adapter from the content of its two files.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn from_bytes(config: &[u8], weights: &[u8]) -> Result<Self, PeftError> {
        let mut config = LoraConfig::from_json(config)?;
        let tensors = SafeTensors::deserialize(weights).map_err(PeftError::Safetensors)?;
        let saved = read_saved(&mut config, &tensors)?;
        let matcher = config.matcher()?;
        let mut modules = BTreeMap::new();
        let mut names = tensors.names();
        names.retain(|name| !saved.keys().any(|module| **name == saved_name(module)));
        names.sort_unstable();
        let parse = |name| match parse_name(name)? {
            (_, MAGNITUDE_SUFFIX) if !config.use_dora => {
                Err(PeftError::UnexpectedTensor(String::from(name)))
            }
            parsed => Ok(parsed),
        };
        let parsed: Vec<_> = names.into_iter().map(parse).collect::<Result<_, _>>()?;
        for (module, suffix) in parsed {
            let name = tensor_name(module, suffix);
            if !matcher.targets(module) {
                return Err(PeftError::UntargetedTensor(name));
            }
            let partner = |suffix| {
                let missing = tensor_name(module, suffix);
                match tensors.tensor(&missing) {
                    Ok(tensor) => Ok((missing, tensor)),
                    Err(_) => {
                        let found = name.clone();
                        Err(PeftError::NoPartner { found, missing })
                    }
                }
            };
            let a = partner(A_SUFFIX)?;
            let b = partner(B_SUFFIX)?;
            let magnitude = match config.use_dora {
                true => Some(partner(MAGNITUDE_SUFFIX)?),
                false => None,
            };
            if suffix == A_SUFFIX {
                let rank = matcher.rank(module);
                let mut matrices = read_matrices((&a.0, &a.1), (&b.0, &b.1), rank)?;
                if let Some((name, tensor)) = &magnitude {
                    let values = read_magnitude(name, tensor, matrices.out_features)?;
                    matrices.magnitude = Some(values);
                }
                modules.insert(module.to_owned(), matrices);
            }
        }
        if modules.is_empty() {
            return Err(PeftError::Empty);
        }
        let without = matcher.names_without(modules.keys());
        if !without.is_empty() {
            tracing::warn!(
                "{WEIGHTS_FILE} has no matrices of {}, which `target_modules` in {CONFIG_FILE} names: is the file whole?",
                without.join(", ")
            );
        }
        drop(matcher);
        Ok(Self {
            config,
            modules,
            saved,
        })
    }

    /// Whether the adapter brings one of embedding and head for both of a model whose head is its embedding (`is_tied`).
    pub fn saves_one_for_both(&self, is_tied: bool) -> bool {
        is_tied && self.config.ensure_weight_tying && self.saved.len() == 1
    }

    /// Gives both the weight that one of them brings, where it [brings one for both](Self::saves_one_for_both).
    pub fn share_saved(&mut self, is_tied: bool) {
        if self.saves_one_for_both(is_tied)
            && let Some(weight) = self.saved.values().next().cloned()
        {
            let modules = SAVABLE.map(|(_, module)| (module.to_owned(), weight.clone()));
            self.saved.extend(modules);
            self.config.modules_to_save = SAVABLE.map(|(short, _)| short.to_owned()).to_vec();
        }
    }

    /// Writes the adapter as a folder that PEFT and vLLM load, with F32 matrices.
    ///
    /// Each file appears whole or not at all. A folder that does not exist yet appears with both files at once; in one
    /// that exists, the files are replaced.
    ///
    /// # Errors
    ///
    /// If the configuration or the sizes of the matrices contradict each other, or the files cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), PeftError> {
        let (config, weights) = self.to_bytes()?;
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = dir
            .file_name()
            .unwrap_or("adapter".as_ref())
            .to_string_lossy();
        let staging = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        fs::create_dir_all(&staging).map_err(PeftError::io("create", &staging))?;
        let written = write_file(&staging.join(WEIGHTS_FILE), &weights)
            .and_then(|()| write_file(&staging.join(CONFIG_FILE), &config))
            .and_then(|()| publish(&staging, dir));
        if written.is_err() || staging.exists() {
            // The staging folder is left over only when its files were moved one by one, or on failure.
            let _ = fs::remove_dir_all(&staging);
        }
        written
    }

    /// The content of `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    ///
    /// If the configuration or the sizes of the matrices contradict each other.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, Vec<u8>), PeftError> {
        self.config.validate()?;
        let matcher = self.config.matcher()?;
        let mut tensors = Vec::with_capacity(2 * self.modules.len());
        for (module, matrices) in &self.modules {
            let LoraMatrices {
                a,
                b,
                r,
                in_features,
                out_features,
                magnitude,
            } = matrices;
            let (a_name, b_name) = (tensor_name(module, A_SUFFIX), tensor_name(module, B_SUFFIX));
            if !matcher.targets(module) {
                return Err(PeftError::UntargetedTensor(a_name));
            }
            if *r != matcher.rank(module) {
                return Err(PeftError::Shape {
                    name: a_name,
                    found: vec![*r, *in_features],
                    expected: "[r, in]",
                    rank: matcher.rank(module),
                });
            }
            let magnitude_len = match self.config.use_dora {
                true => *out_features,
                false => 0,
            };
            let counts = [
                ("A", a.len(), r * in_features),
                ("B", b.len(), out_features * r),
                (
                    "lora_magnitude_vector",
                    magnitude.as_ref().map_or(0, Vec::len),
                    magnitude_len,
                ),
            ];
            for (matrix, found, expected) in counts {
                if found != expected {
                    let module = module.clone();
                    return Err(PeftError::NumValues {
                        module,
                        matrix,
                        found,
                        expected,
                    });
                }
            }
            let magnitude = magnitude.as_ref().map(|values| {
                let name = tensor_name(module, MAGNITUDE_SUFFIX);
                (name, values, vec![*out_features])
            });
            let matrices = [
                (a_name, a, vec![*r, *in_features]),
                (b_name, b, vec![*out_features, *r]),
            ];
            for (name, values, shape) in matrices.into_iter().chain(magnitude) {
                tensors.push((
                    name,
                    OwnedTensor {
                        shape,
                        ..OwnedTensor::from_f32s(values)
                    },
                ));
            }
        }
        if tensors.is_empty() {
            return Err(PeftError::Empty);
        }
        for (module, SavedModule { weight, shape }) in &self.saved {
            if weight.len() != shape[0] * shape[1] {
                return Err(PeftError::NumValues {
                    module: module.clone(),
                    matrix: "weight",
                    found: weight.len(),
                    expected: shape[0] * shape[1],
                });
            }
            let tensor = OwnedTensor {
                shape: shape.to_vec(),
                ..OwnedTensor::from_f32s(weight)
            };
            tensors.push((saved_name(module), tensor));
        }
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let weights = serialize(tensors, Some(metadata)).map_err(PeftError::Safetensors)?;
        let config =
            serde_json::to_vec_pretty(&self.config.to_json()).map_err(PeftError::ConfigJson)?;
        Ok((config, weights))
    }
}

/// Whether a tensor belongs to the head, to the embedding or to a norm.
fn is_outside_of_linears(name: &str) -> bool {
    let is_one = |part: &str| {
        matches!(part, "lm_head" | "embed_tokens") || part == "norm" || part.ends_with("norm")
    };
    name.split('.').any(is_one)
}

/// The module of a tensor, and what follows it in the name.
fn parse_name(name: &str) -> Result<(&str, &'static str), PeftError> {
    if is_outside_of_linears(name) {
        return Err(PeftError::UnsupportedModule(name.to_owned()));
    }
    let parse = || {
        let rest = name.strip_prefix(PREFIX)?;
        [A_SUFFIX, B_SUFFIX, MAGNITUDE_SUFFIX]
            .into_iter()
            .find_map(|suffix| Some((rest.strip_suffix(suffix)?, suffix)))
    };
    parse()
        .filter(|(module, _)| !module.is_empty())
        .ok_or_else(|| PeftError::UnexpectedTensor(name.to_owned()))
}

fn read_matrices(
    (a_name, a): (&str, &TensorView<'_>),
    (b_name, b): (&str, &TensorView<'_>),
    rank: usize,
) -> Result<LoraMatrices, PeftError> {
    let shape_error = |name: &str, tensor: &TensorView<'_>, expected| PeftError::Shape {
        name: name.to_owned(),
        found: tensor.shape().to_vec(),
        expected,
        rank,
    };
    let in_features = match *a.shape() {
        [r, in_features] if r == rank && in_features > 0 => in_features,
        _ => return Err(shape_error(a_name, a, "[r, in]")),
    };
    let out_features = match *b.shape() {
        [out_features, r] if r == rank && out_features > 0 => out_features,
        _ => return Err(shape_error(b_name, b, "[out, r]")),
    };
    Ok(LoraMatrices {
        a: read_floats(a_name, a)?,
        b: read_floats(b_name, b)?,
        r: rank,
        in_features,
        out_features,
        magnitude: None,
    })
}

/// One value for each row of the module's weight.
fn read_magnitude(
    name: &str,
    tensor: &TensorView<'_>,
    out_features: usize,
) -> Result<Vec<f32>, PeftError> {
    if tensor.shape() != [out_features] {
        return Err(PeftError::MagnitudeShape {
            name: name.to_owned(),
            found: tensor.shape().to_vec(),
            expected: out_features,
        });
    }
    read_floats(name, tensor)
}
