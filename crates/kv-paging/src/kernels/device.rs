//! The operations on a GPU, outside of autodiff graphs, where a step is described by a tensor: [`cube::indices`].

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, ExtensionType, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};

use super::training::HeadShape;
use super::{BatchPlan, RecordedStep, cube};
use crate::rotary::Rotary;

/// Operations of a backend made of CubeCL kernels.
#[backend_extension(Cube)]
pub(super) trait DeviceOps: Backend {
    /// See [`RopeOps::rope`](super::RopeOps::rope), for queries and keys.
    fn device_apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`PagedOps::kv_write`](super::PagedOps::kv_write), for keys and values; always in place.
    fn device_kv_write(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        new_keys: FloatTensor<Self>,
        new_values: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`PagedOps::paged_attention`](super::PagedOps::paged_attention).
    fn device_paged_attention(
        q: FloatTensor<Self>,
        #[extension_type] context: Context<Self>,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// See [`step_attention`](super::step_attention).
    fn device_step_attention(
        q: FloatTensor<Self>,
        #[extension_type] new: NewTokens<Self>,
        #[extension_type] context: Context<Self>,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// Writes `new` over the beginning of `old`, in place: all handles of `old` see it.
    fn device_overwrite(old: IntTensor<Self>, new: IntTensor<Self>) -> IntTensor<Self>;
}

/// The keys and values that the tokens of a step see.
#[derive(ExtensionType)]
pub(super) struct Context<B: Backend> {
    /// `[slots, kv_heads, head_dim]`.
    pub(super) keys: FloatTensor<B>,
    /// `[slots, kv_heads, head_dim]`.
    pub(super) values: FloatTensor<B>,
    /// The description of the step: [`cube::indices`] or a [`crate::DecodeStep`].
    pub(super) indices: IntTensor<B>,
    /// Tokens per block.
    pub(super) block_size: usize,
    /// Keys that a token sees, at most.
    pub(super) max_len: usize,
    /// Tiles of queries in the indices.
    pub(super) tiles: cube::Tiles,
    /// Tiles of more queries, for [`cube::attends_wide`]; where that is not so, the indices.
    pub(super) wide_tiles: IntTensor<B>,
    /// Whether `wide_tiles` are such tiles.
    pub(super) is_wide: bool,
}

/// What a step of one token per sequence brings along besides its queries.
#[derive(ExtensionType)]
pub(super) struct NewTokens<B: Backend> {
    /// Not rotated yet: `[tokens, kv_heads, head_dim]`.
    pub(super) keys: FloatTensor<B>,
    /// `[tokens, kv_heads, head_dim]`.
    pub(super) values: FloatTensor<B>,
    /// `[tokens, 1, head_dim / 2]`.
    pub(super) cos: FloatTensor<B>,
    /// `[tokens, 1, head_dim / 2]`.
    pub(super) sin: FloatTensor<B>,
}

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
        let tiles = cube::Tiles::of(layout);
        let ([_, heads, head_dim], [_, kv_heads, _]) = (q.dims(), keys.dims());
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        let is_wide = !tiles.is_empty()
            && keys.dtype() == DType::BF16
            && cube::attends_wide(&self.device, shape);
        let indices = self.indices(plan);
        let wide_tiles = match is_wide {
            true => plan.tiles(|layout| cube::wide_tiles(layout, shape, &self.device)),
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
                tiles: cube::Tiles::default(),
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
        plan.indices(|layout| cube::indices(layout, &self.device))
    }
}

/// Forgets what this thread's kernels keep on devices between launches.
pub(super) fn forget_state() {
    cube::forget_counters();
}
