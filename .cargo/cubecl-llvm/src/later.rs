//! Kernels that are compiled beside the queue of the device, on all cores.
//!
//! In a dry run (`cubecl::dry_run`) no launch runs, so none has to wait for its kernel: the compiler only takes down what is wanted.
//! Threads of this module compile it and keep it on disk. A launch that runs waits for its own kernel.

use std::collections::{HashMap, VecDeque};
use std::panic::catch_unwind;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::cache::{Cache, Compiled, Key};
use crate::nvrtc::{self, Target};

/// A kernel to compile.
pub(crate) struct Wanted {
    pub(crate) cache: &'static Cache,
    pub(crate) key: Key,
    /// The entry point's name.
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) target: Target,
    /// All but the code.
    pub(crate) compiled: Compiled,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Wanted>,
    /// Those that wait or are being compiled, `None`, and those that were and could not be kept on disk.
    kernels: Option<HashMap<Key, Option<Compiled>>>,
    /// The names of those that wait or are being compiled.
    names: Vec<String>,
    threads: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    waiting: VecDeque::new(),
    kernels: None,
    names: Vec::new(),
    threads: 0,
});
static DONE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    fn kernels(&mut self) -> &mut HashMap<Key, Option<Compiled>> {
        self.kernels.get_or_insert_default()
    }

    fn is_under_way(&mut self, key: Key) -> bool {
        matches!(self.kernels().get(&key), Some(None))
    }
}

/// Compiles a kernel on another thread, if none does already.
pub(crate) fn compile(wanted: Wanted) {
    let mut queue = queue();
    if queue.kernels().contains_key(&wanted.key) {
        return;
    }
    queue.kernels().insert(wanted.key, None);
    queue.names.push(wanted.name.clone());
    queue.waiting.push_back(wanted);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if queue.threads < cores {
        queue.threads += 1;
        std::thread::spawn(work);
    }
}

/// Waits until no thread compiles this kernel. Gives what one has compiled and could not keep on disk.
pub(crate) fn wait_for(key: Key) -> Option<Compiled> {
    let mut queue = queue();
    while queue.is_under_way(key) {
        queue = DONE.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
    queue.kernels().remove(&key).flatten()
}

/// Whether a thread compiles this kernel, or has, and keeps it for the launch that runs.
pub(crate) fn is_known(key: Key) -> bool {
    queue().kernels().contains_key(&key)
}

/// Waits for a kernel of this name while other kernels wait for a thread: to ask again would only take their time. Then says whether it is
/// still under way. The name is known sooner than the key; few kernels share one, and one that does is asked for again.
pub(crate) fn wait_while_busy(name: &str) -> bool {
    let mut queue = queue();
    let is_named = |queue: &Queue| queue.names.iter().any(|other| other == name);
    while is_named(&queue) && !queue.waiting.is_empty() {
        queue = DONE.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
    is_named(&queue)
}

fn work() {
    loop {
        let wanted = {
            let mut queue = queue();
            match queue.waiting.pop_front() {
                Some(wanted) => wanted,
                None => {
                    // Under the lock: who adds a kernel now starts another thread.
                    queue.threads -= 1;
                    return;
                }
            }
        };
        let key = wanted.key;
        // cudarc panics without NVRTC. Who wants the kernel compiles it again where this fails, and says why.
        let compiled = catch_unwind(|| nvrtc::compile(&wanted.source, wanted.target));
        let mut unkept = None;
        match compiled {
            Ok(Ok(code)) => {
                let compiled = Compiled {
                    code,
                    ..wanted.compiled
                };
                if !wanted.cache.store(&key, &compiled) {
                    unkept = Some(compiled);
                }
            }
            Ok(Err(error)) => log::debug!("a kernel is not compiled ahead: {error}"),
            Err(_) => log::debug!("a kernel is not compiled ahead: NVRTC has failed"),
        }
        let mut queue = queue();
        if let Some(at) = queue.names.iter().position(|name| *name == wanted.name) {
            queue.names.swap_remove(at);
        }
        match unkept {
            Some(_) => queue.kernels().insert(key, unkept),
            None => queue.kernels().remove(&key),
        };
        drop(queue);
        DONE.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_be_compiled_is_not_waited_for_without_end() {
        let folder = std::env::temp_dir().join(format!("later-{}", std::process::id()));
        let cache: &'static Cache = Box::leak(Box::new(Cache::new(folder.clone())));
        let keys: Vec<Key> = (0..20).map(|i| Key::of(&i)).collect();
        for &key in &keys {
            // Refused by NVRTC, and more so where there is none.
            compile(Wanted {
                cache,
                key,
                name: "kernel".into(),
                source: "no CUDA C++".into(),
                target: Target::Card(90),
                compiled: Compiled {
                    shared_memory_size: 0,
                    io: Vec::new(),
                    code: Vec::new(),
                },
            });
        }
        for &key in &keys {
            assert!(wait_for(key).is_none());
            assert!(!is_known(key));
            assert!(cache.load(&key).is_none());
        }
        assert!(!wait_while_busy("kernel"));
        assert!(wait_for(Key::of(&"nobody compiles this one")).is_none());
        let _ = std::fs::remove_dir_all(folder);
    }
}
