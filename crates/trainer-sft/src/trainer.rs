//! One optimizer step: gradients of all micro-batches, clipping, AdamW.

mod flat_parameters;
mod lay_flat;
mod output;
mod replicas;

use std::convert::Infallible;

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::compile_only::{compile_kernels_only, real_launches};
use lora_4bit::{AdapterSelection, Dropout};
use model_qwen::QwenModel;

use self::flat_parameters::{FlatParameters, is_faster};
use self::output::PendingNumbers;
pub use self::output::{StepNumbers, StepOutput};
use crate::batch::{Batch, StepShare};
use crate::config::LrSchedule;
use crate::gate::{self, WorkUnit};
use crate::optimizer::{AdamW, AdamWConfig, StepRate, clip_factor};
use crate::parameters::{GradientStore, Trainable, visit_model};
use crate::preference::{Baseline, Numbers, Preference, Tally};
use crate::replicas::{GradientBuckets, GradientSum, Proven, Witness};
use crate::schedule::{Schedule, Shape};
use crate::step::{self, Checkpointing, CompiledPart, Means, Noise, StepOptions};

/// How a [`Trainer`] trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainerOptions {
    /// What is trained.
    pub trainable: Trainable,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course over the run.
    pub schedule: Schedule,
    /// Constants of AdamW.
    pub optimizer: AdamWConfig,
    /// Largest global gradient norm; `None` does not clip.
    pub max_grad_norm: Option<f64>,
    /// Which layers are computed again in the backward pass.
    pub checkpointing: Checkpointing,
    /// Dropout of the adapter's inputs.
    pub dropout: f64,
    /// LoRA+: the rate of B (and of DoRA's magnitudes) over that of A.
    pub loraplus_lr_ratio: f64,
    /// NEFTune: the noise on the embeddings, see [`Noise`].
    pub neftune_noise_alpha: Option<f64>,
    /// Seed of dropout masks and noise.
    pub seed: u64,
}

impl TrainerOptions {
    /// A constant learning rate without warm-up, gradients clipped to a norm of 1, and nothing else that is not a default.
    #[must_use]
    pub fn constant(trainable: Trainable, learning_rate: f64, total_steps: usize) -> Self {
        Self {
            trainable,
            learning_rate,
            schedule: Schedule {
                kind: LrSchedule::Constant,
                warmup_steps: 0,
                total_steps,
                shape: Shape::default(),
            },
            optimizer: AdamWConfig::default(),
            max_grad_norm: Some(1.0),
            checkpointing: Checkpointing::default(),
            dropout: 0.0,
            loraplus_lr_ratio: 1.0,
            neftune_noise_alpha: None,
            seed: 0,
        }
    }
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) model: QwenModel,
    options: TrainerOptions,
    optimizer: AdamW,
    /// The adapter in buffers; `None` before the first step, and where tensors are trained one by one.
    flat: Option<FlatParameters>,
    /// Whether the kernels of a step have been asked for.
    is_compiled: bool,
    /// How answers are compared; `None` where they are only learnt.
    preference: Option<Preference>,
    /// The replicas on further devices; none where one device takes the steps.
    replicas: Vec<Trainer>,
    /// How gradients are summed over the devices.
    sum: GradientSum,
    /// Where gradients lie in sums; known after the first step on several devices.
    gradient_buckets: Option<GradientBuckets>,
    /// What this one has computed already.
    proven: Proven,
    /// What shows that all have computed their shares of the last step.
    witnesses: Vec<Witness>,
}

impl Trainer {
    /// A trainer that has taken no step. An adapter to train must be in its slot already.
    #[must_use]
    pub fn new(model: QwenModel, options: TrainerOptions) -> Self {
        Self::resume(model, options, AdamW::new(options.optimizer))
    }

    /// A trainer that goes on with the optimizer of an earlier one.
    #[must_use]
    pub fn resume(model: QwenModel, options: TrainerOptions, optimizer: AdamW) -> Self {
        Self {
            model,
            options,
            optimizer,
            flat: None,
            is_compiled: false,
            preference: None,
            replicas: Vec::new(),
            sum: GradientSum::default(),
            gradient_buckets: None,
            proven: Proven::default(),
            witnesses: Vec::new(),
        }
    }

    /// Optimizer steps taken so far.
    #[must_use]
    pub fn num_steps(&self) -> usize {
        self.optimizer.step()
    }

    /// Number of values that are trained.
    #[must_use]
    pub fn num_trainable(&mut self) -> usize {
        let (mut count, trainable) = (0, self.options.trainable);
        visit_model(&mut self.model, trainable, &mut |_, parameter| {
            count += parameter.num_values();
        });
        count
    }

    /// How it trains.
    #[must_use]
    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    /// The optimizer and its state.
    #[must_use]
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// The slot of the adapter that is trained; `None` where every weight is.
    #[must_use]
    pub fn slot(&self) -> Option<usize> {
        self.options.trainable.slot()
    }

    /// Where the model lives.
    #[must_use]
    pub fn device(&self) -> Device {
        self.model.device()
    }

    /// One optimizer step on the micro-batches `batches`.
    ///
    /// The loss is the mean over the target tokens of all of them, so that splitting a batch changes nothing. Without any
    /// target the parameters stay as they are.
    pub fn step(&mut self, batches: &[Batch]) -> StepOutput {
        if !self.replicas.is_empty() {
            return self.step_replicas(batches);
        }
        gate::on_worker(&self.device(), || {
            let share = StepShare::whole(batches);
            self.compile(share);
            let _real = real_launches();
            self.prepare();
            self.step_here(share)
        })
    }

    /// Compiles on all cores what a step needs, before the first one would ask for one kernel after the other.
    fn compile(&mut self, share: StepShare<'_>) {
        if self.is_compiled {
            return;
        }
        self.is_compiled = true;
        let device = self.device();
        compile_kernels_only(&device, || {
            let CompiledPart {
                num_layers,
                checkpointing,
            } = self.options.checkpointing.for_compiling();
            let mut model = self.model.clone();
            model.layers.truncate(num_layers);
            let options = TrainerOptions {
                checkpointing,
                ..self.options
            };
            let mut trainer = Self::new(model, options);
            trainer.lay_flat();
            drop(trainer.step_here(share));
        });
    }

    fn step_here(&mut self, share: StepShare<'_>) -> StepOutput {
        gate::pass(WorkUnit::Batch);
        let baseline = self.baseline(share).mean();
        let (means, gradients, tally) = self.gradients_of(share, baseline);
        let (means, method_metrics) = self.counted(means, &tally);
        let (grad_norm, learning_rate) = self.update(gradients);
        let pending = PendingNumbers::new(means, grad_norm, Vec::new());
        StepOutput::pending(pending, method_metrics, learning_rate)
    }

    fn has_baseline(&self) -> bool {
        self.preference
            .as_ref()
            .is_some_and(Preference::has_baseline)
    }

    /// What a share of a step's answers adds to the baseline of their comparison.
    fn baseline(&self, share: StepShare<'_>) -> Baseline {
        match &self.preference {
            Some(preference) => preference.baseline(&self.model, &self.adapters(None), share),
            None => Baseline::default(),
        }
    }

    /// A share's part of the means, `[3]`, of the gradients, and of the numbers of a comparison.
    fn gradients_of(
        &self,
        share: StepShare<'_>,
        baseline: f64,
    ) -> (Tensor<1>, GradientStore, Tally) {
        let Some(preference) = &self.preference else {
            let (means, gradients) = self.measured_gradients(share, self.gradient_store());
            return (means, gradients, Tally::default());
        };
        let mut store = self.gradient_store();
        let adapters = self.adapters(None);
        let options = self.step_options(&adapters, None);
        let tally = preference.gradients(&self.model, share, baseline, options, &mut store);
        let none = Tensor::zeros([3], (&self.device(), DType::F32));
        (none, store, tally)
    }

    /// The means, `[3]`, and the further numbers of a whole step. Of answers that are compared, the tally knows them.
    fn counted(&self, means: Tensor<1>, tally: &Tally) -> (Tensor<1>, Numbers) {
        if self.preference.is_none() {
            return (means, Numbers::new());
        }
        let nothing = Means {
            loss: 0.0,
            token_accuracy: 0.0,
            entropy: 0.0,
        };
        let (means, numbers) = tally.means().unwrap_or((nothing, Numbers::new()));
        let means = [means.loss, means.token_accuracy, means.entropy].map(|mean| mean as f32);
        let means = Tensor::from_data(means, (&self.device(), DType::F32)); // [3]
        (means, numbers)
    }

    /// Takes one step of the optimizer. Gives the norm of the gradients before clipping, `[1]`, and the learning rate.
    pub(crate) fn update(&mut self, mut gradients: GradientStore) -> (Tensor<1>, f64) {
        let norm = gradients.norm(&self.device()); // [1]
        let learning_rate =
            self.options.learning_rate * self.options.schedule.factor(self.optimizer.step());
        let clip = self
            .options
            .max_grad_norm
            .map(|max_norm| clip_factor(norm.clone(), max_norm)); // [1]
        let ratio = self.options.loraplus_lr_ratio;
        let rate = |is_faster: bool, decay: bool| StepRate {
            learning_rate: match is_faster {
                true => learning_rate * ratio,
                false => learning_rate,
            },
            decay,
        };
        let optimizer = &mut self.optimizer;
        optimizer.begin_step();
        let flat = self.flat.as_ref();
        if let Some((flat, summed)) = flat.and_then(|flat| flat.summed(&mut gradients)) {
            // Of an adapter, everything decays.
            let rate = |is_faster| rate(is_faster, true);
            optimizer.update_flat(&flat.values, &summed, clip.as_ref(), rate);
        }
        visit_model(
            &mut self.model,
            self.options.trainable,
            &mut |name, parameter| {
                let Some(gradient) = gradients.remove(name) else {
                    return;
                };
                let rate = rate(is_faster(name), parameter.decays());
                parameter
                    .replace(|value| optimizer.update(name, value, gradient, clip.as_ref(), rate));
            },
        );
        if let Some(slot) = self.options.trainable.slot() {
            self.model
                .linears_mut()
                .for_each(|linear| linear.update_norm(slot));
        }
        (norm, learning_rate)
    }

    /// Mean cross-entropy per target token of `batches` together, `[1]`, and its gradients, in tensors of their own.
    #[must_use]
    pub fn gradients(&self, batches: &[Batch]) -> (Tensor<1>, GradientStore) {
        let share = StepShare::whole(batches);
        let (means, store) = self.measured_gradients(share, GradientStore::default());
        (means.narrow(0, 0, 1), store)
    }

    /// Compares the answers of the batches from now on, and does not only learn them.
    #[must_use]
    pub fn comparing(self, preference: Option<Preference>) -> Self {
        let replicas = self.replicas.into_iter();
        let comparing = |replica: Self| replica.comparing(preference.clone());
        Self {
            replicas: replicas.map(comparing).collect(),
            preference: preference.clone(),
            ..self
        }
    }

    /// A share's part of [`Self::gradients`], with all [`Means`], `[3]`.
    fn measured_gradients(
        &self,
        share: StepShare<'_>,
        mut store: GradientStore,
    ) -> (Tensor<1>, GradientStore) {
        let num_targets: usize = share.batches.iter().map(Batch::num_targets).sum();
        let scale = 1.0 / num_targets.max(1) as f64;
        let mut sums = Tensor::zeros([3], (&self.device(), DType::F32));
        for (index, batch) in share.own().filter(|(_, batch)| batch.num_targets() > 0) {
            gate::pass(WorkUnit::Batch);
            let adapters = self.adapters(Some(index));
            let noise = self.options.neftune_noise_alpha.map(|alpha| Noise {
                alpha,
                seed: self.seed_of(index),
            });
            let options = self.step_options(&adapters, noise);
            sums = sums + step::forward_backward(&self.model, batch, options, scale, &mut store);
        }
        (sums.mul_scalar(scale), store)
    }

    /// Mean cross-entropy per target token of `batches` together, without dropout; `None` when they have no target.
    #[must_use]
    pub fn evaluate(&self, batches: impl IntoIterator<Item = Batch>) -> Option<f64> {
        let batches = batches.into_iter().map(Ok::<_, Infallible>);
        let Ok(means) = self.measure(batches);
        means.map(|means| means.loss)
    }

    /// All means over the target tokens of `batches` together, without dropout; `None` when they have no target.
    ///
    /// # Errors
    /// The first error among the batches.
    pub fn measure<E>(
        &self,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<Option<Means>, E> {
        let batches = batches.into_iter().inspect(|_| gate::pass(WorkUnit::Batch));
        let measured = step::measure(&self.model, &self.adapters(None), batches)?;
        Ok(measured.map(|(means, _)| means))
    }

    /// [`Self::measure`] with further numbers by TRL's names, of answers that are compared. Their loss is that of the
    /// comparison.
    ///
    /// # Errors
    /// The first error among the batches.
    pub fn measure_compared<E>(
        &self,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<Option<(Means, Numbers)>, E> {
        match &self.preference {
            Some(preference) => {
                let batches = batches.into_iter().inspect(|_| gate::pass(WorkUnit::Batch));
                preference.measure(&self.model, &self.adapters(None), batches)
            }
            None => {
                let means = self.measure(batches)?;
                Ok(means.map(|means| (means, Numbers::new())))
            }
        }
    }

    /// The adapters in use, with the dropout of one micro-batch of the coming step.
    pub(crate) fn adapters(&self, micro_batch: Option<usize>) -> AdapterSelection {
        let Some(slot) = self.options.trainable.slot() else {
            return AdapterSelection::Base;
        };
        let dropout = micro_batch
            .filter(|_| self.options.dropout > 0.0)
            .map(|index| Dropout {
                p: self.options.dropout as f32,
                seed: self.seed_of(index),
            });
        AdapterSelection::All { slot, dropout }
    }

    /// How a step of this run computes gradients.
    pub(crate) fn step_options<'a>(
        &self,
        adapters: &'a AdapterSelection,
        noise: Option<Noise>,
    ) -> StepOptions<'a> {
        StepOptions {
            trainable: self.options.trainable,
            adapters,
            checkpointing: self.options.checkpointing,
            noise,
        }
    }

    /// The seed of a micro-batch of the coming step.
    fn seed_of(&self, micro_batch: usize) -> u64 {
        self.options.seed ^ ((self.optimizer.step() as u64) << 24) ^ micro_batch as u64
    }
}
