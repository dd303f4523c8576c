//! How a job lets requests come first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use model_qwen::is_gpu;
use model_qwen::sys::{Background, stand_back};
use trainer_sft::WorkUnit;

use crate::config::JobPriority;
use crate::engine::EngineHandle;

/// How often a waiting job looks.
const LOOK: Duration = Duration::from_millis(10);
/// The longest that a job on a GPU waits for requests that go on and on, between two units of its work.
const MOST: Duration = Duration::from_secs(2);
/// The shortest wait. A layer of a small model takes less time than one of its tokens, which would hardly get ahead.
const LEAST: Duration = Duration::from_millis(2);
/// Layers that a device may be behind before a job waits for it. With two the 99th percentile of the time between tokens of a model
/// whose token takes 0.2 ms grew by 2.8 times.
const LAYERS_AHEAD: usize = 1;

/// Before which units of its work a job waits.
pub(super) struct WorkUnits {
    priority: JobPriority,
    /// Whether requests need the GPU that it computes on.
    shares_gpu: bool,
    /// Layers launched since the device was waited for.
    layers: AtomicUsize,
}

impl WorkUnits {
    pub(super) fn new(priority: JobPriority, shares_gpu: bool) -> Self {
        Self {
            priority,
            shares_gpu,
            layers: AtomicUsize::new(0),
        }
    }

    /// Whether a job waits before this unit, which comes now. A micro-batch may take many seconds: a job that takes what is left
    /// stops before each layer, and one of normal priority where a GPU would compute all of it before the next token.
    pub(super) fn waits_before(&self, unit: WorkUnit) -> bool {
        match (unit, self.priority) {
            (WorkUnit::Batch, _) | (WorkUnit::Layer, JobPriority::Low) => true,
            (WorkUnit::Layer, JobPriority::Normal) => self.shares_gpu && self.is_far(),
        }
    }

    /// Counts a unit that is launched now.
    pub(super) fn launch(&self, unit: WorkUnit) {
        if unit == WorkUnit::Layer {
            self.layers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether so many layers are launched that the device is waited for before the next one.
    pub(super) fn is_far(&self) -> bool {
        self.layers.load(Ordering::Relaxed) >= LAYERS_AHEAD
    }

    /// Counts from 0 again: the device has done what was launched.
    pub(super) fn restart(&self) {
        self.layers.store(0, Ordering::Relaxed);
    }
}

/// What a job passes before each unit of its work.
pub(super) struct Gate {
    engine: EngineHandle,
    units: WorkUnits,
    /// The GPU that requests need, too.
    gpu: Option<Device>,
    /// Whether the job is to end.
    stop: Arc<AtomicBool>,
    /// When it was passed last.
    passed: Mutex<Instant>,
}

impl Gate {
    /// For a job beside an engine on this device.
    pub(super) fn new(
        engine: EngineHandle,
        priority: JobPriority,
        device: Device,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let gpu = Some(device).filter(is_gpu);
        Self {
            engine,
            units: WorkUnits::new(priority, gpu.is_some()),
            gpu,
            stop,
            passed: Mutex::new(Instant::now()),
        }
    }

    /// Returns when a job of this process may go on.
    pub(super) fn pass(&self, unit: WorkUnit) {
        // Between layers a GPU is waited for only where somebody else wants it.
        let is_idle = unit == WorkUnit::Layer && !self.engine.is_busy();
        if !is_idle && self.units.waits_before(unit) {
            if let Some(gpu) = &self.gpu {
                // What was launched would otherwise be counted as none.
                let _ = gpu.sync();
                self.units.restart();
            }
            self.wait_for_turn();
        }
        // Also while the engine is idle: the next request waits for all of them.
        self.units.launch(unit);
    }

    /// Returns when a job may go on whose work is done so far; whether requests run then, too.
    pub(super) fn wait_for_turn(&self) -> bool {
        match self.units.priority {
            JobPriority::Low => self.wait(Duration::MAX),
            // A processor gives a thread that stands back what is left. A GPU computes what came first: requests get as much time
            // as the job has just had.
            JobPriority::Normal if self.gpu.is_some() => {
                let last = self.passed.lock().map_or(MOST, |passed| passed.elapsed());
                self.wait(last.clamp(LEAST, MOST));
            }
            JobPriority::Normal => {}
        }
        if let Ok(mut passed) = self.passed.lock() {
            *passed = Instant::now();
        }
        self.engine.is_busy()
    }

    /// Waits while requests run, at most for this time.
    fn wait(&self, most: Duration) {
        let start = Instant::now();
        while self.engine.is_busy() && !self.stop.load(Ordering::Relaxed) {
            let left = most.saturating_sub(start.elapsed());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(LOOK));
        }
    }
}

/// Threads for a job, which stand back behind those of the engine. The trainer's kernels compute on the pool that it runs in.
pub(super) fn pool(
    priority: JobPriority,
) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    let how = match priority {
        JobPriority::Normal => Background::Low,
        JobPriority::Low => Background::Idle,
    };
    rayon::ThreadPoolBuilder::new()
        .thread_name(|index| format!("train-{index}"))
        .start_handler(move |_| stand_back(how))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_waits_before_each_batch_and_every_few_layers_on_the_gpu_of_requests() {
        let waits = |priority, shares_gpu| {
            let units = WorkUnits::new(priority, shares_gpu);
            let passes = |unit| {
                let waits = units.waits_before(unit);
                if waits {
                    units.restart();
                }
                units.launch(unit);
                waits
            };
            let batch = || -> Vec<usize> {
                assert!(passes(WorkUnit::Batch));
                let layers = 0..2 * LAYERS_AHEAD + 2;
                layers.filter(|_| passes(WorkUnit::Layer)).collect()
            };
            // The second batch is as the first.
            let layers = batch();
            assert_eq!(batch(), layers);
            layers
        };
        let far = (LAYERS_AHEAD..2 * LAYERS_AHEAD + 2).step_by(LAYERS_AHEAD);
        assert_eq!(waits(JobPriority::Normal, true), far.collect::<Vec<_>>());
        assert!(waits(JobPriority::Normal, false).is_empty());
        for shares_gpu in [false, true] {
            let all: Vec<usize> = (0..2 * LAYERS_AHEAD + 2).collect();
            assert_eq!(waits(JobPriority::Low, shares_gpu), all);
        }
    }

    #[test]
    fn a_job_waits_before_the_first_layer_after_those_launched_while_the_engine_was_idle() {
        let units = WorkUnits::new(JobPriority::Normal, true);
        units.launch(WorkUnit::Batch);
        assert!(!units.waits_before(WorkUnit::Layer));
        for _ in 0..LAYERS_AHEAD + 3 {
            units.launch(WorkUnit::Layer);
        }
        assert!(units.waits_before(WorkUnit::Layer));
        units.restart();
        assert!(!units.waits_before(WorkUnit::Layer));
    }
}
