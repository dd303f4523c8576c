//! Contexts that are cut into parts, each with a cube of its own: the cube that ends last merges what all have left.

use std::cell::RefCell;

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;

/// Cubes that keep a large GPU busy.
pub(super) const WANTED_CUBES: usize = 264;
/// More parts cost more to merge than they save.
pub(super) const MAX_SPLITS: usize = 64;

/// Heads whose parts are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Merged {
    pub(super) kv_heads: usize,
    /// Query heads per key/value head.
    pub(super) group: usize,
    /// Vectors of a head.
    pub(super) vectors: usize,
}

thread_local! {
    /// See [`arrival_counters`].
    static COUNTERS: RefCell<Vec<CubeTensor>> = const { RefCell::new(Vec::new()) };
}

/// Forgets this thread's counters: after a failed launch they may not be zero.
pub(in crate::kernels) fn forget_counters() {
    COUNTERS.with_borrow_mut(Vec::clear);
}

/// Counts of the cubes of a token and head that have ended, all zero between launches.
///
/// For each thread, since each may have a queue of its own on the device.
pub(super) fn arrival_counters(like: &CubeTensor) -> CubeTensor {
    COUNTERS.with_borrow_mut(|all| {
        if let Some(counters) = all.iter().find(|counters| counters.device == like.device) {
            return counters.clone();
        }
        let (client, device) = (like.client.clone(), like.device.clone());
        let counters = zeros_client(client, device, Shape::new([WANTED_CUBES]), DType::U32);
        // In a dry run nothing makes them zero.
        if !cubecl::dry_run::dry_run() {
            all.push(counters.clone());
        }
        counters
    })
}
