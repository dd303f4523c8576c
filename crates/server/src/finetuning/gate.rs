//! How a job lets requests come first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use model_qwen::is_gpu;
use model_qwen::sys::{Background, stand_back};
use trainer_sft::Piece;

use crate::config::JobPriority;
use crate::engine::EngineHandle;

/// How often a waiting job looks.
const LOOK: Duration = Duration::from_millis(10);
/// The longest that a job on a GPU waits for requests that go on and on, between two pieces of its work.
const MOST: Duration = Duration::from_secs(2);

/// What a job passes before each piece of its work.
pub(super) struct Gate {
    pub(super) engine: EngineHandle,
    pub(super) priority: JobPriority,
    pub(super) device: Device,
    /// Whether the job is to end.
    pub(super) stop: Arc<AtomicBool>,
    /// When it was passed last.
    pub(super) passed: std::sync::Mutex<Instant>,
}

impl Gate {
    /// Returns when a job of this process may go on.
    pub(super) fn pass(&self, piece: Piece) {
        // Between layers a GPU is waited for only where somebody else wants it.
        let is_idle = piece == Piece::Layer && !self.engine.is_busy();
        if is_idle || !waits_before(piece, self.priority) {
            return;
        }
        if is_gpu(&self.device) {
            // What was launched would otherwise be counted as none.
            let _ = self.device.sync();
        }
        self.wait_for_turn();
    }

    /// Returns when a job may go on whose work is done so far.
    pub(super) fn wait_for_turn(&self) {
        match self.priority {
            JobPriority::Low => self.wait(Duration::MAX),
            // A processor gives a thread that stands back what is left. A GPU computes what came first: requests get as much time
            // as the job has just had.
            JobPriority::Normal if is_gpu(&self.device) => {
                let last = self.passed.lock().map_or(MOST, |passed| passed.elapsed());
                self.wait(last.min(MOST));
            }
            JobPriority::Normal => {}
        }
        if let Ok(mut passed) = self.passed.lock() {
            *passed = Instant::now();
        }
    }

    /// Waits while requests run, at most for this time.
    fn wait(&self, most: Duration) {
        let start = Instant::now();
        while self.engine.is_busy() && !self.stop.load(Ordering::Relaxed) && start.elapsed() < most
        {
            thread::sleep(LOOK);
        }
    }
}

/// Whether a job waits before a piece of its work: one that takes what is left stops within a micro-batch, too, which may take many
/// seconds.
pub(super) fn waits_before(piece: Piece, priority: JobPriority) -> bool {
    piece == Piece::Batch || priority == JobPriority::Low
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
