//! The operations on a GPU, outside of autodiff graphs, where a step is described by a tensor: [`indices::indices`].

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor};

use super::cube::{self, hopper, indices};
use super::device_ops::{Context, DeviceOps, NewTokens, Tiles};
use super::plan::{BatchPlan, RecordedStep};
use super::training::heads::HeadShape;
use crate::rotary::Rotary;

/// A device of a CubeCL backend, outside of autodiff graphs.
pub(super) struct Gpu {
    device: Device,
}

impl Gpu {
    pub(super) fn of(device: &Device) -> Option<Self> {
        let is_gpu = matches!(device.as_dispatch(), DispatchDevice::Cube(_));
        is_gpu.then(|| Self {
            device: device.clone(),
        })
    }

    /// Whether the kernels over a cache can run, with heads of this length; otherwise the twins do.
    pub(super) fn attends(&self, head_dim: usize) -> bool {
        cube::supports(&self.device, head_dim)
    }

    pub(super) fn apply_rope(
        &self,
        q: Tensor<3>,
        k: Tensor<3>,
        rotary: &Rotary,
    ) -> (Tensor<3>, Tensor<3>) {
        let [q, k] = [q, k].map(Tensor::into_dispatch);
        let [cos, sin] = [&rotary.cos, &rotary.sin].map(|angles| angles.clone().into_dispatch());
        let (q, k) = Dispatch::device_apply_rope(q, k, cos, sin);
        (Tensor::from_dispatch(q), Tensor::from_dispatch(k))
    }

    pub(super) fn kv_write(
        &self,
        caches: [Tensor<3>; 2],
        new: [Tensor<3>; 2],
        plan: &BatchPlan,
    ) -> [Tensor<3>; 2] {
        let indices = self.indices(plan).into_dispatch();
        let ([keys, values], [k, v]) = (caches, new);
        let [keys, values, k, v] = [keys, values, k, v].map(Tensor::into_dispatch);
        let (keys, values) = Dispatch::device_kv_write(keys, values, k, v, indices);
        [keys, values].map(Tensor::from_dispatch)
    }

    pub(super) fn paged_attention(
        &self,
        q: Tensor<3>,
        [keys, values]: [Tensor<3>; 2],
        plan: &BatchPlan,
        dtype: DType,
    ) -> Tensor<3> {
        let layout = plan.layout();
        let lens = layout.sequences.iter().map(|s| s.context_len);
        let tiles = indices::tiles_of(layout);
        let ([_, heads, head_dim], [_, kv_heads, _]) = (q.dims(), keys.dims());
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        let is_wide = !tiles.is_empty()
            && keys.dtype() == DType::BF16
            && hopper::attends(&self.device, shape);
        let indices = self.indices(plan);
        let wide_tiles = match is_wide {
            true => plan.tiles(|layout| hopper::tiles_of_step(layout, shape, &self.device)),
            false => indices.clone(),
        };
        let context = Context {
            keys: keys.into_dispatch(),
            values: values.into_dispatch(),
            indices: indices.into_dispatch(),
            block_size: layout.block_size,
            max_len: lens.max().unwrap_or_default(),
            tiles,
            wide_tiles: wide_tiles.into_dispatch(),
            is_wide,
        };
        let q = q.into_dispatch();
        Tensor::from_dispatch(Dispatch::device_paged_attention(q, context, dtype)) // [tokens, heads, head_dim]
    }

    pub(super) fn step_attention(
        &self,
        [q, k, v]: [Tensor<3>; 3],
        rotary: &Rotary,
        step: RecordedStep<'_>,
        dtype: DType,
    ) -> Tensor<3> {
        let [keys, values] = step.caches;
        let [slots, ..] = keys.dims();
        let [keys, values] = [keys, values].map(|cache| cache.clone().into_dispatch());
        let indices = step.indices.clone().into_dispatch();
        let no_tiles = step.indices.clone().into_dispatch();
        let context = |keys, values, indices| -> Context<Dispatch> {
            Context {
                keys,
                values,
                indices,
                block_size: step.block_size,
                // A recording serves contexts of any length.
                max_len: slots,
                tiles: Tiles::default(),
                wide_tiles: no_tiles,
                is_wide: false,
            }
        };
        if step.writes_first {
            let (q, k) = self.apply_rope(q, k, rotary);
            let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
            let (keys, values) = Dispatch::device_kv_write(keys, values, k, v, indices.clone());
            let context = context(keys, values, indices);
            return Tensor::from_dispatch(Dispatch::device_paged_attention(q, context, dtype)); // [rows, heads, head_dim]
        }
        let new = NewTokens {
            keys: k.into_dispatch(),
            values: v.into_dispatch(),
            cos: rotary.cos.clone().into_dispatch(),
            sin: rotary.sin.clone().into_dispatch(),
        };
        let context = context(keys, values, indices);
        let q = q.into_dispatch();
        Tensor::from_dispatch(Dispatch::device_step_attention(q, new, context, dtype)) // [rows, heads, head_dim]
    }

    pub(super) fn overwrite(&self, old: &Tensor<1, Int>, new: Tensor<1, Int>) {
        // The handle that comes back is another one of the same memory.
        let _ = Dispatch::device_overwrite(old.clone().into_dispatch(), new.into_dispatch());
    }

    /// The step as the kernels read it.
    fn indices(&self, plan: &BatchPlan) -> Tensor<1, Int> {
        plan.indices(|layout| indices::indices(layout, &self.device))
    }
}

/// Forgets what this thread's kernels keep on devices between launches.
pub(super) fn forget_state() {
    cube::splits::forget_counters();
}
