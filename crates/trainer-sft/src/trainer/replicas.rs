//! Steps on several devices at the same time.

use std::collections::BTreeSet;
use std::sync::Mutex;

use burn::tensor::Device;
use lora_4bit::compile_only::real_launches;

use super::output::PendingNumbers;
use super::{StepOutput, Trainer};
use crate::batch::{Batch, StepShare};
use crate::gate::{self, WorkUnit};
use crate::preference::{Baseline, Tally};
use crate::replicas::{Addend, GradientBuckets, GradientSum, at_once, await_all, witness};

impl Trainer {
    /// Where gradients lie in sums.
    fn new_gradient_buckets(&mut self) -> GradientBuckets {
        let layout = self.flat.as_ref().map(|flat| flat.gradients.layout());
        let layout = layout.cloned();
        GradientBuckets::of(&mut self.model, self.options.trainable, layout)
    }

    /// Takes each step together with `replicas`, trainers on further devices, which have to have the same values: each computes a
    /// part of the micro-batches, and all at the same time. They compare answers as this trainer does. What else a trainer does
    /// it does alone.
    ///
    /// # Panics
    /// When a replica has other options, or has taken another number of steps.
    #[must_use]
    pub fn with_replicas(self, mut replicas: Vec<Self>, sum: GradientSum) -> Self {
        for replica in &mut replicas {
            assert_eq!(replica.options, self.options, "the options of a replica");
            assert_eq!(
                replica.num_steps(),
                self.num_steps(),
                "the steps that a replica has taken"
            );
            replica.preference.clone_from(&self.preference);
        }
        Self {
            replicas,
            sum,
            ..self
        }
    }

    /// Where the steps are computed: this trainer's device first, and those of its replicas.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        let replicas = self.replicas.iter().map(Self::device);
        std::iter::once(self.device()).chain(replicas).collect()
    }

    /// The replicas on further devices.
    #[must_use]
    pub fn replicas(&self) -> &[Self] {
        &self.replicas
    }

    /// One step of all replicas, each on a thread of its own.
    pub(super) fn step_replicas(&mut self, batches: &[Batch]) -> StepOutput {
        let (devices, how) = (self.devices(), self.sum);
        await_all(&std::mem::take(&mut self.witnesses));
        let mut replicas = std::mem::take(&mut self.replicas);
        let mut all: Vec<&mut Self> = std::iter::once(&mut *self).chain(&mut replicas).collect();
        let share = |rank: usize| StepShare::new(batches, rank, devices.len());

        let may_fail = all.iter_mut().enumerate().map(|(rank, replica)| {
            replica
                .proven
                .may_fail(share(rank).own().map(|(_, batch)| batch))
        });
        let waits = may_fail.fold(false, |waits, may_fail| waits | may_fail);
        // While kernels are only compiled, no device runs any.
        for (rank, replica) in all.iter_mut().enumerate() {
            replica.compile(share(rank));
        }
        let _real = real_launches();
        at_once(&devices, &mut all, |_, replica| replica.prepare());
        let buckets = all[0].gradient_buckets.take();
        let buckets = buckets.unwrap_or_else(|| all[0].new_gradient_buckets());
        let baselines = match all[0].has_baseline() {
            true => at_once(&devices, &mut all, |rank, replica| {
                replica.baseline(share(rank))
            }),
            false => Vec::new(),
        };
        let baseline = Baseline::of_all(baselines).mean();
        let computed = at_once(&devices, &mut all, |rank, replica| {
            gate::pass(WorkUnit::Batch);
            let (means, gradients, tally) = replica.gradients_of(share(rank), baseline);
            let (packed, names) = buckets.pack(gradients, means);
            let is_left = how == GradientSum::Nccl && !waits;
            let witness = is_left.then(|| witness(&devices[rank], &packed)).flatten();
            (Addend::new(packed, how, waits), names, tally, witness)
        });

        let (mut addends, mut names, mut tally) = (Vec::new(), BTreeSet::new(), Tally::default());
        let mut witnesses = Vec::new();
        for (addend, own_names, own_tally, witness) in computed {
            addends.push(addend);
            witnesses.extend(witness);
            names.extend(own_names);
            tally.merge(&own_tally);
        }
        let sums = Addend::summed(addends).into_iter();
        let sums: Vec<_> = sums.map(|sum| Mutex::new(Some(sum))).collect();
        let outputs = at_once(&devices, &mut all, |rank, replica| {
            let sum = sums[rank].lock().ok().and_then(|mut sum| sum.take())?;
            let sum = sum.on_device(&devices[rank], &devices);
            let (gradients, means) = buckets.unpack(sum, &names);
            let (means, method_metrics) = replica.counted(means, &tally);
            let (grad_norm, learning_rate) = replica.update(gradients);
            let pending = PendingNumbers::new(means, grad_norm, witnesses.clone());
            Some(StepOutput::pending(pending, method_metrics, learning_rate))
        });
        self.replicas = replicas;
        self.gradient_buckets = Some(buckets);
        self.witnesses = witnesses;
        let output = outputs.into_iter().flatten().next();
        output.unwrap_or_else(|| unreachable!("each device takes its sum once"))
    }
}
