//! What a run takes of its device's memory, before anything is loaded: a table, a check against what there is, and the largest
//! batch that fits.
//!
//! For a GPU the plan goes through the allocations of a step one after the other, and puts them where CubeCL puts them. For a
//! CPU, whose steps go through autodiff graphs, it is an estimate.

mod answers;
mod backward;
mod dora;
mod dropout;
mod fit;
mod full;
mod gradients;
mod groups;
#[cfg(test)]
mod held;
mod ledger;
mod pages;
mod rows;
mod shape;
mod step;

use std::fmt;

use burn::tensor::{DType, Device};
use lora_4bit::ComputeDtype;
use lora_4bit::training::dtype_of;
use model_qwen::{Quantization, QwenConfig, device_memory, is_gpu, linear_features};
use serde::Serialize;

pub use self::fit::PlannedRun;
pub(crate) use self::fit::plan;
use self::ledger::Use;
pub(crate) use self::rows::RowLengths;
use self::shape::{Objective, StepShape};
use crate::config::{Config, GradientCheckpointing, Method, Optim};
use crate::flat::BUCKET_LEN;
use crate::footprint::Footprint;
use crate::generation::cache_bytes;
use crate::lora;
use crate::loss;
use crate::metrics::available_memory;
use crate::space::trained_tensors;
use crate::step::layer_values;

/// What CUDA's driver takes for a process, at most: context and kernels. On an H200 it was 673 to 680 MiB
/// (docs/benchmarks/2026-11-29-memory-plan.md); a card with fewer multiprocessors takes less.
const GPU_DRIVER: u64 = 680 << 20;
/// Of an H200. A card with fewer splits fewer products.
const MULTIPROCESSORS: usize = 132;
/// What the process takes without a model: the program, the tokenizer, threads.
const CPU_PROCESS: u64 = 160 << 20;

/// Where a run takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Type of the activations; `None` on a CPU.
    pub gpu_dtype: Option<DType>,
    /// Bytes of all memory, and of what nobody uses, as far as the system says.
    pub total: Option<u64>,
    /// See `total`.
    pub free: Option<u64>,
}

impl Machine {
    /// The device with the least free memory, and its index.
    pub fn of_least(devices: &[Device]) -> (Self, usize) {
        let machines = devices.iter().map(Self::of).enumerate();
        let least = machines.min_by_key(|(_, machine)| (machine.free, machine.total));
        least.map_or_else(
            || (Self::of(&Device::flex()), 0),
            |(index, machine)| (machine, index),
        )
    }

    /// The machine of a device.
    pub fn of(device: &Device) -> Self {
        if !is_gpu(device) {
            return Self {
                gpu_dtype: None,
                total: crate::metrics::total_memory(),
                free: available_memory(),
            };
        }
        let memory = device_memory(device);
        Self {
            gpu_dtype: Some(dtype_of(device)),
            total: memory.map(|memory| memory.total),
            free: memory.map(|memory| memory.free),
        }
    }
}

/// Bytes of a run, at most, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Tokens computed at once.
    pub tokens: usize,
    /// The frozen weights.
    pub weights: u64,
    /// What is trained, with gradients and moments.
    pub trained: u64,
    /// What the forward pass keeps for the backward pass.
    pub kept: u64,
    /// The work of one layer.
    pub layer: u64,
    /// The work of a chunk of the loss. Not at the same time as that of a layer.
    pub loss: u64,
    /// Keys and values of answers that are drawn, which a card keeps for the next ones (`--method grpo`).
    pub answers: u64,
    /// Bytes of allocated pages that hold nothing. Negative where a layer's work and the kept tensors peak at different times.
    pub unused: i64,
    /// Driver and program.
    pub driver: u64,
    /// What waits in the host's memory instead.
    pub on_host: u64,
    /// Whether the step is known allocation by allocation, and a card has shown that.
    pub is_exact: bool,
}

impl MemoryPlan {
    /// Of a run whose largest micro-batch has so many tokens.
    pub fn new(config: &Config, model: &QwenConfig, machine: &Machine, tokens: usize) -> Self {
        let mut plan = Self::of_one(config, model, machine, tokens);
        if config.num_devices() > 1 {
            plan.trained += sum_bytes(config, model);
            // No card has shown yet what a sum over devices takes besides.
            plan.is_exact = false;
        }
        plan
    }

    /// That of a device that takes its steps alone.
    fn of_one(config: &Config, model: &QwenConfig, machine: &Machine, tokens: usize) -> Self {
        let footprint = Footprint::of(config, model);
        if let Some(dtype) = machine.gpu_dtype {
            let mut plan = on_gpu(config, model, footprint, dtype, tokens);
            plan.answers = answers(config, model, machine, tokens);
            return plan;
        }
        let mut plan = estimate(config, model, footprint, tokens);
        // A run on a CPU keeps more where half of the free memory holds it.
        if let Some(free) = machine.free.filter(|_| is_auto(config)) {
            plan.kept = plan.kept.max(all_activations(model, tokens).min(free / 2));
        }
        plan
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        let work = self.layer.max(self.loss);
        let all = self.weights + self.trained + self.kept + work + self.answers + self.driver;
        all.saturating_add_signed(self.unused)
    }
}

/// What is written of the work that is largest, and of the other.
const LAYER: &str = "one layer's work";
const LOSS: &str = "a chunk of the loss";

impl MemoryPlan {
    /// What memory is for, and bytes of it; together [`MemoryPlan::total`].
    pub fn parts(&self) -> Vec<(&'static str, i64)> {
        let work = match self.layer >= self.loss {
            true => (LAYER, self.layer),
            false => (LOSS, self.loss),
        };
        let mut parts = vec![
            ("weights", self.weights as i64),
            ("trained values, gradients, moments", self.trained as i64),
            ("kept activations", self.kept as i64),
            (work.0, work.1 as i64),
            ("unused parts of pages", self.unused),
            ("driver and program", self.driver as i64),
        ];
        if self.answers > 0 {
            parts.push(("keys and values of answers", self.answers as i64));
        }
        parts
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:<46}{:>10}", "Memory of the device, at most", "MiB")?;
        let all = ("all", self.total() as i64);
        for (name, bytes) in self.parts().into_iter().chain([all]) {
            let mib = (bytes as f64 / f64::from(1 << 20)).round() as i64;
            writeln!(out, "  {name:<44}{mib:>10}")?;
        }
        let (other, bytes) = match self.layer >= self.loss {
            true => (LOSS, self.loss),
            false => (LAYER, self.layer),
        };
        let estimate = match self.is_exact {
            true => "",
            false => "; an estimate: no device has shown what such a step takes",
        };
        write!(
            out,
            "{} tokens at once; {other} ({} MiB) comes at another time{estimate}",
            self.tokens,
            bytes >> 20,
        )?;
        match self.on_host {
            0 => Ok(()),
            bytes => write!(
                out,
                "; besides, {} MiB of the host's memory hold the inputs of layers",
                bytes.div_ceil(1 << 20)
            ),
        }
    }
}

/// Bytes of gradients that lie one after the other, to be summed over devices: all of them, besides a bucket that is being packed. A
/// tensor that is larger than a bucket is one.
fn sum_bytes(config: &Config, model: &QwenConfig) -> u64 {
    let tensors = trained_tensors(config, model).into_iter();
    let largest = tensors.clone().map(|[values, _]| values).max().unwrap_or(0);
    let values: usize = tensors.map(|[values, count]| values * count).sum();
    (size_of::<f32>() * values.min(BUCKET_LEN.max(largest))) as u64
}

fn on_gpu(
    config: &Config,
    model: &QwenConfig,
    footprint: Footprint,
    dtype: DType,
    tokens: usize,
) -> MemoryPlan {
    let shape = step_shape(config, model, dtype, tokens);
    let ledger = step::walk(&shape);
    // Embeddings of their own stay in the CPU's memory.
    let stays = !config.run.full && config.method.method != Method::Grpo && !shape.trains_embedding;
    let embeddings = match stays && !model.tie_word_embeddings {
        true => shape.table(shape.embedding) as u64,
        false => 0,
    };
    let weights = footprint.weights - embeddings;
    let [trained, kept, layer, loss] =
        [Use::Trained, Use::Kept, Use::Layer, Use::Loss].map(|usage| ledger.most(usage));
    let known = trained + kept + layer.max(loss);
    MemoryPlan {
        tokens,
        weights,
        trained,
        kept,
        layer,
        loss,
        answers: 0,
        unused: ledger.peak() as i64 - known as i64,
        driver: GPU_DRIVER,
        on_host: on_host(config, model, shape.wide(1)),
        // The rest is counted, and no card has shown that the count is right.
        is_exact: shape.objective == Objective::Tokens
            && !shape.trains_embedding
            && !shape.trains_lm_head
            && shape.value != 4
            && config.samples.prompts.is_none()
            && !shape.dora
            && !shape.dropout
            && !shape.noise
            && !shape.eight_bit,
    }
}

/// What decides the sizes of a step of a GPU whose activations have this type.
fn step_shape<'m>(
    config: &Config,
    model: &'m QwenConfig,
    dtype: DType,
    tokens: usize,
) -> StepShape<'m> {
    let dtype = match config.model.compute_dtype {
        ComputeDtype::F32 => DType::F32,
        ComputeDtype::Auto | ComputeDtype::Bits16 | ComputeDtype::Bf16 => dtype,
    };
    let held = match config.run.full {
        true => DType::F32,
        false => config.model.dtype.or(model.dtype),
    };
    let saved = lora::trainable(lora::SLOT, &config.lora.modules_to_save);
    let trains_embedding = config.run.full || saved.has_embeddings();
    let trains_lm_head = config.run.full || saved.has_lm_head();
    // What is trained is f32.
    let size_of = |is_trained| if is_trained { 4 } else { held.size() };
    StepShape {
        model,
        ranks: ranks(config, model),
        value: dtype.size(),
        embedding: size_of(trains_embedding),
        lm_head: size_of(trains_lm_head),
        multiprocessors: MULTIPROCESSORS,
        weights_as_they_are: config.quantization() == Quantization::None && held == dtype,
        first_kept: match config.optimizer.gradient_checkpointing {
            GradientCheckpointing::Auto | GradientCheckpointing::True => model.num_hidden_layers,
            GradientCheckpointing::False => 0,
            GradientCheckpointing::Layers(layers) => layers,
        },
        offloads: config.optimizer.offload_activations,
        dropout: config.lora.dropout() > 0.0,
        noise: config.optimizer.neftune_noise_alpha.is_some(),
        dora: config.lora.use_dora,
        full: config.run.full,
        trains_embedding,
        trains_lm_head,
        objective: match config.method.method {
            Method::Sft => Objective::Tokens,
            method => Objective::Answers {
                reference: match method {
                    Method::Grpo => config.method.beta() > 0.0,
                    method => method.has_reference(),
                },
            },
        },
        eight_bit: config.optimizer.optim == Optim::Adamw8bit,
        tokens,
        micro_batches: config.run.gradient_accumulation.clamp(1, 2),
    }
}

/// Bytes of the keys and values of all answers of a step, of `tokens` that are computed at once.
fn answers(config: &Config, model: &QwenConfig, machine: &Machine, tokens: usize) -> u64 {
    if config.method.method != Method::Grpo {
        return 0;
    }
    let rows = config.run.batch_size.max(1);
    let num_answers = rows * config.run.gradient_accumulation;
    // A smaller card stands for this one.
    let free = machine.free.into_iter().chain(config.memory.device_memory);
    cache_bytes(model, (num_answers, tokens / rows), free.min())
}

fn estimate(
    config: &Config,
    model: &QwenConfig,
    footprint: Footprint,
    tokens: usize,
) -> MemoryPlan {
    let input = 4 * tokens * model.hidden_size;
    let graph = 4 * tokens * layer_values(model);
    // A graph's tensors, and the gradients of a part of them.
    let masks = masks(config, model, tokens);
    let layer = graph * 3 / 2 + masks;
    let kept = |computed_again: usize| {
        let all = model.num_hidden_layers;
        let stay = all.saturating_sub(computed_again);
        let inputs = if stay < all {
            input * (all - stay + 1)
        } else {
            0
        };
        all_activations(model, tokens) / all.max(1) as u64 * stay as u64
            + (masks * stay + inputs) as u64
    };
    let kept = match config.optimizer.gradient_checkpointing {
        GradientCheckpointing::False => kept(0),
        GradientCheckpointing::Layers(layers) => kept(layers),
        GradientCheckpointing::Auto | GradientCheckpointing::True => kept(model.num_hidden_layers),
    };
    // Both answers of pairs, and those of the reference, keep the log-probabilities of their tokens, which are few.
    let loss = 2 * 4 * tokens.min(loss::autodiff_chunk_rows(model.vocab_size)) * model.vocab_size;
    MemoryPlan {
        tokens,
        weights: footprint.weights,
        trained: footprint.trained,
        kept,
        layer: layer as u64,
        loss: loss as u64,
        answers: 0,
        unused: 0,
        driver: CPU_PROCESS,
        on_host: 0,
        is_exact: false,
    }
}

/// Bytes of the inputs of all layers where they wait on the host, given those of a value of each token.
fn on_host(config: &Config, model: &QwenConfig, values: usize) -> u64 {
    match config.optimizer.offload_activations {
        true => (values * model.hidden_size * model.num_hidden_layers) as u64,
        false => 0,
    }
}

fn is_auto(config: &Config) -> bool {
    config.optimizer.gradient_checkpointing == GradientCheckpointing::Auto
}

/// Bytes of a layer's masks of dropout, and of the inputs without what they drop.
fn masks(config: &Config, model: &QwenConfig, tokens: usize) -> usize {
    if config.lora.dropout() <= 0.0 || config.run.full {
        return 0;
    }
    let layers = linear_features(model).into_iter().zip(ranks(config, model));
    let inputs = layers.filter(|(_, rank)| *rank > 0);
    let inputs: usize = inputs.map(|((_, [inputs, _]), _)| inputs).sum();
    2 * 4 * tokens * inputs
}

/// Bytes of what the graphs of all layers keep.
fn all_activations(model: &QwenConfig, tokens: usize) -> u64 {
    (4 * tokens * layer_values(model) * model.num_hidden_layers) as u64
}

/// The rank of each layer of [`linear_features`]; 0 without an adapter.
fn ranks(config: &Config, model: &QwenConfig) -> [usize; 7] {
    if config.run.full {
        return [0; 7];
    }
    let chosen = lora::target_modules(&config.lora);
    linear_features(model).map(|(path, _)| {
        let is_chosen = chosen
            .iter()
            .any(|module| path.rsplit('.').next() == Some(module.as_str()));
        if is_chosen { config.lora.r } else { 0 }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The shape of DeepSeek-R1-Distill-Qwen-1.5B.
    fn model() -> QwenConfig {
        let json = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536,
            "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "vocab_size": 151936, "max_position_embeddings": 131072, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "torch_dtype": "bfloat16"}"#;
        QwenConfig::from_json(json, Path::new("config.json")).unwrap()
    }

    fn card(gib: u64) -> Machine {
        Machine {
            gpu_dtype: Some(DType::BF16),
            total: Some(gib << 30),
            free: Some(gib << 30),
        }
    }

    #[test]
    fn the_plan_is_what_a_card_showed() {
        // Documents, their tokens, and MiB that nvidia-smi showed for `bench_train` on an H200
        // (docs/benchmarks/2026-11-30-small-steps.md). One page is 149 MiB: with 4 x 1024 the card takes one more.
        let seen = [
            [1, 1024, 2350],
            [4, 1024, 2950],
            [1, 2048, 2500],
            [4, 2048, 3460],
        ];
        for [documents, tokens, mib] in seen {
            let config = Config::new("x");
            let plan = MemoryPlan::new(&config, &model(), &card(140), documents * tokens);
            assert!(plan.is_exact);
            let planned = plan.total() >> 20;
            let part = planned as f64 / mib as f64;
            assert!(
                (0.95..=1.01).contains(&part),
                "{documents} x {tokens}: {planned} MiB, seen {mib}"
            );
        }
    }

    #[test]
    fn the_plan_of_7b_is_near_what_a_card_showed() {
        // docs/benchmarks/2026-11-29-attention.md.
        let seen = 6535.0;
        let json = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584,
            "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "vocab_size": 152064, "max_position_embeddings": 131072, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "torch_dtype": "bfloat16"}"#;
        let model = QwenConfig::from_json(json, Path::new("config.json")).unwrap();
        let plan = MemoryPlan::new(&Config::new("x"), &model, &card(8), 997);
        let planned = plan.total() >> 20;
        let part = planned as f64 / seen;
        assert!((0.97..=1.01).contains(&part), "{planned} MiB, seen {seen}");
    }

    fn config(batch_size: usize, length: usize) -> Config {
        let mut config = Config::new("x");
        config.run.batch_size = batch_size;
        config.data.max_length = length;
        config
    }

    #[test]
    fn what_does_not_fit_is_refused_with_flags_that_fit() {
        let rows = RowLengths::any(usize::MAX, 1 << 20);
        let refused = |config: &Config| {
            let error = plan(config, &model(), &card(8), &rows, false)
                .unwrap()
                .accepted()
                .unwrap_err()
                .to_string();
            error.split_once("MiB; ").unwrap().1.to_owned()
        };
        let mut large = config(16, 4096);
        assert!(refused(&large).starts_with("--batch-size 4 --gradient-accumulation 4 would fit"));
        large.optimizer.gradient_checkpointing = GradientCheckpointing::False;
        assert!(refused(&large).starts_with("--gradient-checkpointing true --batch-size 4"));
        let longer = config(1, 36_000);
        assert!(refused(&longer).starts_with("--offload-activations true would fit"));
        let long = config(1, 100_000);
        let said = refused(&long);
        let length = said
            .strip_prefix("--offload-activations true --max-length ")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        let length = length.parse().unwrap();
        let fits = |length| {
            let mut config = config(1, length);
            config.optimizer.offload_activations = true;
            let planned = plan(&config, &model(), &card(8), &rows, false);
            planned.unwrap().accepted().is_ok()
        };
        assert!(fits(length) && !fits(length + 64));

        let mut small = config(1, 64);
        small.memory.device_memory = Some(1 << 30);
        let said = plan(&small, &model(), &card(8), &rows, false).unwrap();
        let said = said.to_string();
        let expected = "0.9 of --device-memory 1024 MiB allows 921 MiB; no batch or length fits";
        assert!(said.contains(expected), "{said}");
        assert!(said.contains("weights") && said.contains("1 at once, 1 times per step"));
    }

    #[test]
    fn inputs_of_layers_wait_on_the_host() {
        let (mut config, model) = (config(4, 1024), model());
        let kept = MemoryPlan::new(&config, &model, &card(8), 4096);
        config.optimizer.offload_activations = true;
        let offloads = MemoryPlan::new(&config, &model, &card(8), 4096);
        let input = 4096 * 1536 * 2;
        assert_eq!((kept.on_host, offloads.on_host), (0, 28 * input));
        assert!(offloads.is_exact && offloads.kept < 4 * input + (8 << 20));
        let saved = kept.kept - offloads.kept;
        assert!((24 * input..=27 * input).contains(&saved), "{saved}");
        // Pages of a fixed size have no use for a part of it.
        let saved = kept.total() - offloads.total();
        assert!(saved > 100 << 20, "{saved}");
        assert!(
            offloads
                .to_string()
                .contains("336 MiB of the host's memory")
        );
        config.method.method = Method::Dpo;
        let compared = MemoryPlan::new(&config, &model, &card(8), 4096);
        assert_eq!(
            (compared.kept, compared.on_host),
            (offloads.kept, 28 * input)
        );
    }

    #[test]
    fn masks_of_dropout_are_counted() {
        let (mut config, model) = (config(4, 1024), model());
        let cpu = Machine {
            gpu_dtype: None,
            ..card(64)
        };
        let plans = |config: &Config| {
            [card(64), cpu].map(|machine| MemoryPlan::new(config, &model, &machine, 4096))
        };
        let plain = plans(&config);
        config.lora.dropout = Some(0.1);
        let dropped = plans(&config);
        // The widest input is that of down, 8960 values in bf16.
        let mask = 2 * 4096 * 8960;
        assert!(dropped[0].total() >= plain[0].total() + mask / 2);
        assert!(!dropped[0].is_exact && plain[0].is_exact);
        // Six layers with 1536 inputs and one with 8960, in two copies.
        assert_eq!(
            dropped[1].layer - plain[1].layer,
            2 * 4 * 4096 * (6 * 1536 + 8960)
        );
    }

    #[test]
    fn answers_that_are_drawn_have_a_length_of_their_own() {
        let rows = RowLengths::known(vec![13, 9], 4096, 1);
        let mut config = config(8, 1024);
        config.method.method = Method::Grpo;
        config.grpo.max_completion_length = Some(256);
        config.memory.device_memory = Some(6 << 30);
        let planned = plan(&config, &model(), &card(8), &rows, false).unwrap();
        assert_eq!(planned.plan.tokens, 8 * (13 + 256));
        config.grpo.max_completion_length = Some(60_000);
        let refused = plan(&config, &model(), &card(8), &rows, false).unwrap();
        let said = refused.refusal.unwrap().to_string();
        assert!(
            said.contains("--max-completion-length") && !said.contains("--max-length"),
            "{said}"
        );
    }

    #[test]
    fn answers_have_room_of_the_card_that_is_named() {
        let rows = RowLengths::known(vec![13, 9], 4096, 1);
        let mut config = config(8, 1024);
        config.method.method = Method::Grpo;
        config.grpo.max_completion_length = Some(30_000);
        config.memory.device_memory = Some(8 << 30);
        let answers = |gib| {
            let planned = plan(&config, &model(), &card(gib), &rows, false).unwrap();
            planned.plan.answers
        };
        assert!(answers(8) > 0);
        assert_eq!(answers(140), answers(8));
    }

    #[test]
    fn auto_takes_the_most_rows_that_fit() {
        let rows = RowLengths::any(usize::MAX, 4096);
        let chosen = |gib: u64| {
            let mut config = config(4, 4096);
            config.run.gradient_accumulation = 4;
            config.run.batch_size_auto = true;
            config.memory.device_memory = Some(gib << 30);
            let planned = plan(&config, &model(), &card(140), &rows, false).unwrap();
            let (config, plan) = planned.accepted().unwrap();
            assert!(plan.total() <= gib << 30);
            (config.run.batch_size, config.run.gradient_accumulation)
        };
        assert_eq!(
            [chosen(4), chosen(8), chosen(80)],
            [(2, 8), (4, 4), (16, 1)]
        );
    }

    #[test]
    fn auto_needs_to_know_how_much_there_is() {
        let unknown = Machine {
            gpu_dtype: Some(DType::F32),
            total: None,
            free: None,
        };
        let rows = RowLengths::any(usize::MAX, 4096);
        let mut config = config(4, 1024);
        assert!(plan(&config, &model(), &unknown, &rows, false).is_ok());
        config.run.batch_size_auto = true;
        let refused = plan(&config, &model(), &unknown, &rows, false).unwrap_err();
        assert!(
            refused.to_string().contains("give --device-memory"),
            "{refused}"
        );
        config.memory.device_memory = Some(64 << 30);
        assert!(plan(&config, &model(), &unknown, &rows, false).is_ok());
    }

    #[test]
    fn activations_are_kept_in_the_memory_that_a_run_is_given() {
        let rows = RowLengths::any(usize::MAX, 1 << 20);
        let mut config = config(1, 1024);
        config.optimizer.gradient_checkpointing = GradientCheckpointing::Auto;
        let planned = |config: &Config| {
            let planned = plan(config, &model(), &card(8), &rows, false).unwrap();
            let how = planned.config.optimizer.gradient_checkpointing;
            (how, planned.accepted().unwrap().1.total())
        };
        // Nobody has said how much may be taken.
        let (how, least) = planned(&config);
        assert_eq!(how, GradientCheckpointing::Auto);
        let mut layers_before = model().num_hidden_layers;
        for megabytes in [300, 700, 1_100] {
            let bytes = least + (megabytes << 20);
            config.memory.device_memory = Some(bytes);
            config.memory.gpu_memory_utilization = Some(1.0);
            let (how, all) = planned(&config);
            let GradientCheckpointing::Layers(layers) = how else {
                panic!("{how:?}");
            };
            assert!(layers < layers_before, "{layers} of {layers_before}");
            assert!(all > least && all * 100 <= bytes * 95, "{all} of {bytes}");
            layers_before = layers;
        }
        config.memory.device_memory = Some(8 << 30);
        assert_eq!(planned(&config).0, GradientCheckpointing::False);
        config.memory.device_memory = Some(least + (8 << 20));
        assert_eq!(planned(&config), (GradientCheckpointing::True, least));
        config.optimizer.gradient_checkpointing = GradientCheckpointing::Layers(29);
        let refused = plan(&config, &model(), &card(8), &rows, false).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("at most the model's 28 layers")
        );
        // Who asks for something gets it.
        config.memory.device_memory = Some(8 << 30);
        for asked in [
            GradientCheckpointing::True,
            GradientCheckpointing::Layers(20),
        ] {
            config.optimizer.gradient_checkpointing = asked;
            assert_eq!(planned(&config).0, asked);
        }
    }

    #[test]
    fn a_cpu_is_asked_only_where_somebody_says_how_much() {
        let cpu = Machine {
            gpu_dtype: None,
            total: Some(1 << 30),
            free: Some(1 << 29),
        };
        let rows = RowLengths::any(usize::MAX, 4096);
        let mut config = config(4, 1024);
        assert!(plan(&config, &model(), &cpu, &rows, false).is_ok());
        config.run.batch_size_auto = true;
        // A half of what is free, and one answer takes more.
        let chosen = plan(&config, &model(), &cpu, &rows, false).unwrap().config;
        assert_eq!(
            (chosen.run.batch_size, chosen.run.gradient_accumulation),
            (1, 4)
        );
        config.memory.gpu_memory_utilization = Some(0.5);
        let refused = plan(&config, &model(), &cpu, &rows, false).unwrap();
        assert!(refused.accepted().is_err());
        config.memory.device_memory = Some(16 << 30);
        let small = plan(&config, &model(), &cpu, &rows, false).unwrap();
        assert_eq!(
            (small.config.run.batch_size, small.plan.is_exact),
            (4, false)
        );
        let keeps = |config: &Config| config.optimizer.gradient_checkpointing;
        assert_eq!(keeps(&small.config), GradientCheckpointing::True);
        config.memory.device_memory = Some(64 << 30);
        let large = plan(&config, &model(), &cpu, &rows, false).unwrap();
        assert_eq!(keeps(&large.config), GradientCheckpointing::False);
    }
}
