//! The steps of one run on several devices, each of which holds a replica of the model.
//!
//! The micro-batches of a step are dealt out: of `n` devices, device `d` computes those with the indices `d`, `d + n`, …. The
//! gradients are then summed over the devices, and each replica takes the same step with the sum, so that the replicas stay equal
//! and no weight ever moves. A step on `n` devices is the step of one device on all of the micro-batches, up to the order of
//! sums.
//!
//! Invariant: no device begins a sum before every device has computed its share, so that none waits for one that has failed. But
//! waiting lets a card stand still until the next launches arrive. With NCCL, a step waits only if it is larger than every step
//! before, or one of the first (`Proven`). The next step, and whoever reads the numbers, asks every device for something from
//! before the sum (`await_all`): one that has failed is found there, before anybody waits for a sum.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{DType, Device, Tensor, TensorData};
use model_qwen::{QwenModel, catch_device_failure, device_name, has_nccl, is_gpu};
use rayon::prelude::*;
use tracing::info;

use crate::batch::Batch;
use crate::config::AllReduce;
use crate::error::TrainError;
use crate::flat::{ALIGNMENT, BUCKET_LEN, Flat, FlatLayout};
use crate::gate;
use crate::parameters::{GradientStore, Trainable, visit_model};

/// How long the first sum over the devices may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Stack of a device's thread.
const STACK: usize = 16 << 20;

/// How gradients are summed over the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GradientSum {
    /// In the host's memory, on every device that there is: the reference of the other one.
    #[default]
    Host,
    /// By NCCL, from card to card of NVIDIA.
    Nccl,
}

impl GradientSum {
    /// The way that `choice` means on these devices; [`AllReduce::Auto`] is NCCL where that works.
    ///
    /// # Errors
    /// Where NCCL is asked for and does not work, or does not answer, which leaves the devices of no use.
    pub fn choose(choice: AllReduce, devices: &[Device]) -> Result<Self, TrainError> {
        if devices.len() < 2 || choice == AllReduce::Host {
            return Ok(Self::Host);
        }
        match try_nccl(devices) {
            Ok(()) => {
                info!("gradients are summed by NCCL");
                Ok(Self::Nccl)
            }
            Err(reason @ NcclError::Silent) => Err(TrainError::AllReduce(reason.to_string())),
            Err(reason) if choice == AllReduce::Nccl => {
                Err(TrainError::AllReduce(reason.to_string()))
            }
            Err(reason) => {
                info!("gradients are summed in the host's memory: {reason}");
                Ok(Self::Host)
            }
        }
    }
}

/// Why NCCL does not sum.
#[derive(Debug, thiserror::Error)]
enum NcclError {
    #[error("NCCL is for cards of NVIDIA")]
    OtherDevice,
    #[error(
        "NCCL, which is faster, is not found: install libnccl2 (the package nvidia-nccl-cu13 of PyPI has it, too) and put the \
         folder of libnccl.so on LD_LIBRARY_PATH"
    )]
    Missing,
    #[error("NCCL has failed: {0}")]
    Failed(String),
    #[error("NCCL has not summed one number in {} s: NCCL_DEBUG=INFO says what it waits for, and --all-reduce host does without it", PATIENCE.as_secs())]
    Silent,
}

/// Sums a one of each device, which also makes the devices known to each other.
fn try_nccl(devices: &[Device]) -> Result<(), NcclError> {
    let is_cuda = |device: &Device| device_name(device).starts_with("cuda");
    if !devices.iter().all(is_cuda) {
        return Err(NcclError::OtherDevice);
    }
    if !has_nccl() {
        return Err(NcclError::Missing);
    }
    let (sender, receiver) = mpsc::channel();
    // A device that never answers keeps its thread.
    for device in devices {
        let (device, devices, sender) = (device.clone(), devices.to_vec(), sender.clone());
        thread::spawn(move || {
            let summed = catch_device_failure(|| {
                let one = Tensor::<1>::ones([1], (&device, DType::F32));
                sum_by_nccl(one, &devices).into_scalar::<f32>()
            });
            let _ = sender.send(summed);
        });
    }
    let answers: Vec<_> = (devices.iter())
        .map(|_| receiver.recv_timeout(PATIENCE))
        .collect();
    // A device that does not answer is of no use, whatever the others say.
    for answer in answers
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| NcclError::Silent)?
    {
        match answer {
            Ok(sum) if sum == devices.len() as f32 => {}
            Ok(sum) => {
                let text = format!("the sum of {} ones is {sum}", devices.len());
                return Err(NcclError::Failed(text));
            }
            Err(reason) => return Err(NcclError::Failed(reason)),
        }
    }
    Ok(())
}

fn sum_by_nccl(values: Tensor<1>, devices: &[Device]) -> Tensor<1> {
    all_reduce(values, ReduceOperation::Sum, devices.to_vec()).resolve()
}

/// Calls `work` with each replica and its rank, all at the same time, each on a thread of its own; `devices` are where they are.
///
/// # Panics
/// As the first replica whose `work` does, when all have ended; of a GPU with its name.
pub(crate) fn at_once<C: Send, T: Send>(
    devices: &[Device],
    replicas: &mut [&mut C],
    work: impl Fn(usize, &mut C) -> T + Sync,
) -> Vec<T> {
    // Threads of a pool must not wait for threads that need the pool.
    if rayon::current_thread_index().is_some() {
        let replicas = replicas.iter_mut().enumerate();
        return replicas
            .map(|(rank, replica)| work(rank, replica))
            .collect();
    }
    let gate = &gate::here();
    let work = &work;
    let ended: Vec<thread::Result<T>> = thread::scope(|scope| {
        let threads: Vec<_> = devices
            .iter()
            .zip(replicas)
            .enumerate()
            .map(|(rank, (device, replica))| {
                let on_thread = move || {
                    let _behind = gate::behind(gate.clone());
                    named(device, || gate::on_worker(device, || work(rank, replica)))
                };
                let thread = thread::Builder::new().stack_size(STACK);
                thread.spawn_scoped(scope, on_thread)
            })
            .collect();
        let ended = threads.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().flatten(),
            Err(error) => Err(Box::new(format!("no thread: {error}")) as _),
        });
        ended.collect()
    });
    let ended = ended.into_iter();
    ended
        .map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic)))
        .collect()
}

/// What `work` gives. A GPU that fails in it gives its name and the causes instead.
fn named<T>(device: &Device, work: impl FnOnce() -> T) -> thread::Result<T> {
    if !is_gpu(device) {
        return Ok(work());
    }
    catch_device_failure(work)
        .map_err(|reason| Box::new(format!("{}: {reason}", device_name(device))) as _)
}

/// Where the gradients of a model lie in the buckets that are summed.
#[derive(Debug)]
pub(crate) struct GradientBuckets {
    /// Names and numbers of values, bucket by bucket, of what has no place in `flat`.
    buckets: Vec<Vec<(String, usize)>>,
    /// Where an adapter lies in buffers of its own, which come behind.
    flat: Option<Arc<FlatLayout>>,
}

impl GradientBuckets {
    /// Of all that is trained of `model`; the same for each replica.
    pub(crate) fn of(
        model: &mut QwenModel,
        trainable: Trainable,
        flat: Option<Arc<FlatLayout>>,
    ) -> Self {
        let mut buckets = vec![Vec::new()];
        let mut filled = 0;
        visit_model(model, trainable, &mut |name, parameter| {
            if flat.as_ref().is_some_and(|layout| layout.has(name)) {
                return;
            }
            let size = parameter.num_values();
            if filled > 0 && filled + size > BUCKET_LEN {
                buckets.push(Vec::new());
                filled = 0;
            }
            filled += size;
            if let Some(bucket) = buckets.last_mut() {
                bucket.push((name.to_owned(), size));
            }
        });
        Self { buckets, flat }
    }

    /// The gradients in `store` and `means [3]` in one tensor for each bucket, and the names of the gradients that there were.
    /// A missing gradient counts as zeros. Zeros fill each bucket up to a multiple of [`ALIGNMENT`], so that a slice of it is a view,
    /// not a copy.
    pub(crate) fn pack(
        &self,
        mut store: GradientStore,
        means: Tensor<1>,
    ) -> (Vec<Tensor<1>>, BTreeSet<String>) {
        let names = store.names().map(str::to_owned).collect();
        let like = (&means.device(), DType::F32);
        let mut means = Some(means);
        let buckets = self.buckets.iter().map(|bucket| {
            let gradients = bucket.iter().map(|(name, size)| {
                let gradient = store.remove(name);
                gradient.unwrap_or_else(|| Tensor::zeros([*size], like))
            });
            let filled: usize = bucket.iter().map(|(_, size)| size).sum();
            let behind = Tensor::zeros([filled.next_multiple_of(ALIGNMENT) - filled], like);
            let end = means.take().into_iter().flat_map(|means| {
                let behind = Tensor::zeros([ALIGNMENT - means.dims()[0]], like);
                [means, behind]
            });
            let all = gradients.chain([behind]).chain(end);
            let all = all.filter(|part| part.dims()[0] > 0);
            Tensor::cat(all.collect(), 0) // [values of the bucket]
        });
        let mut buckets: Vec<_> = buckets.collect();
        if let Some(layout) = &self.flat {
            buckets.extend(store.into_flat(layout, like.0).buckets().to_vec());
        }
        (buckets, names)
    }

    /// The gradients of these `names`, and the means, `[3]`, of what [`GradientBuckets::pack`] has made.
    pub(crate) fn unpack(
        &self,
        mut packed: Vec<Tensor<1>>,
        names: &BTreeSet<String>,
    ) -> (GradientStore, Tensor<1>) {
        let behind = packed.split_off(self.buckets.len());
        let mut store = match &self.flat {
            Some(layout) => GradientStore::of_flat(Flat::of(layout.clone(), behind), names),
            None => GradientStore::default(),
        };
        let mut means = None;
        let filled = |bucket: &[(String, usize)]| {
            let values = bucket.iter().map(|(_, size)| size).sum::<usize>();
            values.next_multiple_of(ALIGNMENT)
        };
        // Where all lies in buffers, the only bucket has nothing but the means.
        let whole = (self.buckets.iter().zip(&packed)).filter(|(bucket, _)| !bucket.is_empty());
        store.lie_in(whole.map(|(bucket, all)| all.clone().narrow(0, 0, filled(bucket))));
        for (bucket, all) in self.buckets.iter().zip(packed) {
            let mut start = 0;
            for (name, size) in bucket {
                if names.contains(name) {
                    store.add(name, Some(all.clone().narrow(0, start, *size)));
                }
                start += size;
            }
            means.get_or_insert_with(|| all.narrow(0, filled(bucket), 3));
        }
        let means = means.unwrap_or_else(|| unreachable!("there is a first bucket"));
        (store, means)
    }
}

/// What a device has computed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Proven {
    steps: usize,
    /// Of its largest micro-batch.
    tokens: usize,
    targets: usize,
}

/// Steps after which everything that a step keeps is there: moments, and pages of the memory.
const FIRST_STEPS: usize = 3;

impl Proven {
    /// Whether a share of a step may fail for want of memory where none before it has.
    pub(crate) fn may_fail<'a>(&mut self, share: impl Iterator<Item = &'a Batch>) -> bool {
        let of = |batch: &Batch| (batch.num_tokens(), batch.num_targets());
        let largest = |a: (usize, usize), b: (usize, usize)| (a.0.max(b.0), a.1.max(b.1));
        let Some((tokens, targets)) = share.map(of).reduce(largest) else {
            return false;
        };
        let is_new = self.steps < FIRST_STEPS || tokens > self.tokens || targets > self.targets;
        self.steps += 1;
        (self.tokens, self.targets) = largest((self.tokens, self.targets), (tokens, targets));
        is_new
    }
}

/// What a device has to add to a sum.
#[derive(Debug)]
pub(crate) enum Addend {
    /// Read into the host's memory.
    Host(Vec<Vec<f32>>),
    /// On the device.
    Device(Vec<Tensor<1>>),
}

impl Addend {
    /// `packed`; what is summed in the host's memory is computed then, and so is what has to be with `waits`.
    pub(crate) fn new(packed: Vec<Tensor<1>>, how: GradientSum, waits: bool) -> Self {
        match how {
            GradientSum::Host => Self::Host(packed.into_iter().map(read).collect()),
            GradientSum::Nccl => {
                for bucket in packed.iter().filter(|_| waits) {
                    // A bucket that could not be computed must not be summed: others would wait for it.
                    read(bucket.clone().narrow(0, 0, 1));
                }
                Self::Device(packed)
            }
        }
    }

    /// The sums of what is in the host's memory, for each of the devices; what is on a device stays to be summed there.
    pub(crate) fn summed(all: Vec<Self>) -> Vec<Self> {
        let count = all.len();
        let mut on_host = Vec::new();
        let mut on_device = Vec::new();
        for addend in all {
            match addend {
                Self::Host(buckets) => on_host.push(buckets),
                Self::Device(buckets) => on_device.push(Self::Device(buckets)),
            }
        }
        let mut on_host = on_host.into_iter();
        let Some(mut sum) = on_host.next() else {
            return on_device;
        };
        for buckets in on_host {
            for (sum, bucket) in sum.iter_mut().zip(buckets) {
                let chunks = sum.par_chunks_mut(1 << 16).zip(bucket.par_chunks(1 << 16));
                chunks.for_each(|(sum, bucket)| {
                    let values = sum.iter_mut().zip(bucket);
                    values.for_each(|(sum, value)| *sum += value);
                });
            }
        }
        let mut copies: Vec<Self> = (1..count).map(|_| Self::Host(sum.clone())).collect();
        copies.push(Self::Host(sum));
        copies
    }

    /// The sums on `device`, one of `devices`. With NCCL every one of them has to come here.
    pub(crate) fn on_device(self, device: &Device, devices: &[Device]) -> Vec<Tensor<1>> {
        match self {
            Self::Host(buckets) => {
                let buckets = buckets.into_iter().map(|bucket| {
                    let len = bucket.len();
                    Tensor::from_data(TensorData::new(bucket, [len]), (device, DType::F32))
                });
                buckets.collect()
            }
            Self::Device(buckets) => {
                let buckets = buckets.into_iter();
                buckets.map(|bucket| sum_by_nccl(bucket, devices)).collect()
            }
        }
    }
}

/// A device, and a value that it computes before it begins a sum.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    device: Device,
    /// `[1]`.
    value: Tensor<1>,
}

/// The last value of a device's share, `[1]`: what is not computed before it is not computed at all.
pub(crate) fn witness(device: &Device, packed: &[Tensor<1>]) -> Option<Witness> {
    let last = packed.last()?;
    let [len] = last.dims();
    // A tensor of its own: the sum may overwrite the bucket.
    let value = last.clone().narrow(0, len - 1, 1) + 0.0;
    Some(Witness {
        device: device.clone(),
        value,
    })
}

/// Waits until every device has computed its share of a step.
///
/// # Panics
/// With the name of a device that has failed. None of the others is kept waiting for it: their shares come before the sum.
pub(crate) fn await_all(witnesses: &[Witness]) {
    for Witness { device, value } in witnesses {
        if let Err(panic) = named(device, || read(value.clone())) {
            resume_unwind(panic);
        }
    }
}

fn read(values: Tensor<1>) -> Vec<f32> {
    match values.into_data().try_into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("f32 values: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shares_that_are_larger_than_any_before_are_waited_for() {
        let batch = |tokens: usize, targets: usize| Batch {
            tokens: vec![0; tokens],
            targets: (0..tokens).map(|at| (at < targets).then_some(1)).collect(),
            ..Batch::default()
        };
        let mut proven = Proven::default();
        // No micro-batch proves nothing.
        assert!(!proven.may_fail([].into_iter()));
        for (tokens, targets, expected) in [
            (8, 4, true),
            (8, 4, true),
            (8, 4, true),
            (8, 4, false),
            (9, 4, true),
            (9, 4, false),
            (9, 5, true),
            (4, 4, false),
        ] {
            let share = [batch(tokens, targets)];
            assert_eq!(
                proven.may_fail(share.iter()),
                expected,
                "{tokens}, {targets}"
            );
        }
    }

    #[test]
    fn a_share_witnesses_its_last_value() {
        let device = Device::flex();
        let bucket = |values: &[f32]| Tensor::<1>::from_data(values, (&device, DType::F32));
        let packed = [bucket(&[1.0, 2.0]), bucket(&[3.0, 4.0, 5.0])];
        let last = witness(&device, &packed).unwrap();
        assert_eq!(read(last.value.clone()), [5.0]);
        await_all(&[last]);
        assert!(witness(&device, &[]).is_none());
    }

    #[test]
    fn sums_in_the_host_are_those_of_all() {
        let addends =
            [1.0f32, 2.0, 4.0].map(|value| Addend::Host(vec![vec![value; 3], vec![-value]]));
        let summed = Addend::summed(addends.into());
        assert_eq!(summed.len(), 3);
        for addend in summed {
            let sums = addend.on_device(&Device::flex(), &[]);
            let sums = sums.into_iter().map(read).collect::<Vec<_>>();
            assert_eq!(sums, [vec![7.0; 3], vec![-7.0]]);
        }
    }

    #[test]
    fn a_cpu_sums_in_its_memory() {
        let two = [Device::flex(), Device::flex()];
        assert_eq!(
            GradientSum::choose(AllReduce::Auto, &two).unwrap(),
            GradientSum::Host
        );
        assert_eq!(
            GradientSum::choose(AllReduce::Host, &two).unwrap(),
            GradientSum::Host
        );
        let refused = GradientSum::choose(AllReduce::Nccl, &two).unwrap_err();
        assert!(refused.to_string().contains("--all-reduce"), "{refused}");
    }
}
