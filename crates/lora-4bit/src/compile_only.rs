//! Launches that only compile their kernels.
//!
//! A card of NVIDIA compiles a kernel at its first launch, and what was launched after it waits. In [`compile_kernels_only`]
//! no launch runs, so that all cores compile at the same time. That holds for the whole process: nobody else may need a launch.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use burn::tensor::Device;

use crate::kernels::training as ops;

/// Held by who needs its launches to run.
static REAL: RwLock<()> = RwLock::new(());

/// As long as it lives, [`compile_kernels_only`] calls nothing.
#[derive(Debug)]
#[must_use]
pub struct RealLaunches {
    _held: RwLockReadGuard<'static, ()>,
}

/// Says that launches of this process have to run, such as those of an engine that answers requests. It waits for the end of a
/// [`compile_kernels_only`] of another thread.
pub fn real_launches() -> RealLaunches {
    RealLaunches {
        _held: REAL.read().unwrap_or_else(PoisonError::into_inner),
    }
}

/// Calls `work`, and runs no launch of this process on a card of NVIDIA meanwhile: all cores compile the kernels that are needed, and
/// those that are on disk are loaded. Tensors that `work` makes hold nothing. Elsewhere `work` is not called, and neither is it while
/// there are [`real_launches`] or another thread is in here.
pub fn compile_kernels_only(device: &Device, work: impl FnOnce()) {
    if let Some(_alone) = alone() {
        ops::compile_kernels_only(device, work);
    }
}

fn alone() -> Option<RwLockWriteGuard<'static, ()>> {
    match REAL.try_write() {
        Ok(alone) => Some(alone),
        Err(TryLockError::Poisoned(alone)) => Some(alone.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiling_only_is_alone() {
        let real = [real_launches(), real_launches()];
        assert!(alone().is_none());
        drop(real);
        {
            let _alone = alone().unwrap();
            assert!(alone().is_none());
        }
        assert!(alone().is_some());
    }
}
