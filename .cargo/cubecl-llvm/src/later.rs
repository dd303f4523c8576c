//! Kernels that are compiled beside the queue of the device, on all cores.
//!
//! In a dry run (`cubecl::dry_run`) no launch runs, so none has to wait for its kernel: the compiler only takes down what is wanted.
//! Threads of this module compile it and keep it on disk. A launch that runs waits for its own kernel.

use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::cache::{Cache, Compiled, Key};
use crate::nvrtc::{self, Target};

/// A kernel to compile.
pub(crate) struct Wanted {
    pub(crate) cache: &'static Cache,
    pub(crate) key: Key,
    pub(crate) source: String,
    pub(crate) target: Target,
    /// All but the code.
    pub(crate) compiled: Compiled,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Wanted>,
    /// Those that wait, and those that are being compiled.
    under_way: Option<HashSet<Key>>,
    threads: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    waiting: VecDeque::new(),
    under_way: None,
    threads: 0,
});
static DONE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    fn under_way(&mut self) -> &mut HashSet<Key> {
        self.under_way.get_or_insert_default()
    }
}

/// Compiles a kernel on another thread, if none does already.
pub(crate) fn compile(wanted: Wanted) {
    let mut queue = queue();
    if !queue.under_way().insert(wanted.key) {
        return;
    }
    queue.waiting.push_back(wanted);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if queue.threads < cores {
        queue.threads += 1;
        std::thread::spawn(work);
    }
}

/// Waits until no thread compiles this kernel.
pub(crate) fn wait_for(key: Key) {
    let mut queue = queue();
    while queue.under_way().contains(&key) {
        queue = DONE.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Whether a thread compiles this kernel.
pub(crate) fn is_under_way(key: Key) -> bool {
    queue().under_way().contains(&key)
}

fn work() {
    loop {
        let wanted = {
            let mut queue = queue();
            match queue.waiting.pop_front() {
                Some(wanted) => wanted,
                None => {
                    queue.threads -= 1;
                    return;
                }
            }
        };
        let key = wanted.key;
        // Who wants it compiles it again where this fails, and says why.
        let done = Done(key);
        match nvrtc::compile(&wanted.source, wanted.target) {
            Ok(code) => wanted.cache.store(
                &key,
                &Compiled {
                    code,
                    ..wanted.compiled
                },
            ),
            Err(error) => log::debug!("a kernel is not compiled ahead: {error}"),
        }
        drop(done);
    }
}

/// Says that a kernel is no longer under way, also after a panic.
struct Done(Key);

impl Drop for Done {
    fn drop(&mut self) {
        queue().under_way().remove(&self.0);
        DONE.notify_all();
    }
}
