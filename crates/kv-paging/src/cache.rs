//! The tensors that hold keys and values, cut into blocks of token slots.
//!
//! All memory is allocated once. A step writes its rows in place. A write on the CPU is in place only
//! while the cache holds the only handle of a tensor; the cache therefore lends its tensors by value.
//! The kernels of a GPU write in place whoever holds a handle;
//! [`RecordedAttention`](crate::RecordedAttention) relies on that.

use burn::backend::DispatchDevice;
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};

use crate::batch::AttentionBatch;
use crate::kernels;

/// Size and element type of a [`PagedKvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers, each with its own keys and values.
    pub num_layers: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks shared by all sequences.
    pub num_blocks: usize,
    /// Element type: `F32` or `BF16` have fast paths, other float types work.
    pub dtype: DType,
}

impl KvShape {
    /// Bytes of one block over all layers, keys and values together.
    pub fn bytes_per_block(&self) -> usize {
        let row = self.num_kv_heads * self.head_dim * self.dtype.size();
        2 * self.num_layers * self.block_size * row
    }

    /// Token slots: `num_blocks * block_size`.
    pub fn num_slots(&self) -> usize {
        self.num_blocks * self.block_size
    }
}

/// Keys and values of all sequences, addressed by slot: `block * block_size + offset`.
#[derive(Debug)]
pub struct PagedKvCache {
    shape: KvShape,
    layers: Vec<LayerKv>,
}

/// One layer's tensors, each `[num_slots, num_kv_heads, head_dim]`. `None` only while a write
/// holds the tensor.
#[derive(Debug)]
struct LayerKv {
    k: Option<Tensor<3>>,
    v: Option<Tensor<3>>,
}

impl PagedKvCache {
    /// Allocates a zeroed cache on `device`. An autodiff device is stripped of its graph: a cache
    /// holds values only.
    pub fn new(shape: &KvShape, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let dims = [shape.num_slots(), shape.num_kv_heads, shape.head_dim];
        let dtype = shape.dtype;
        // Exact sizes outside of the pools: GPU pools refuse a buffer this large.
        let layers = device.memory_persistent_allocations(shape.num_layers, |num_layers| {
            let zeros = || Some(zeros(dims, dtype, &device)); // [slots, kv_heads, head_dim]
            let layer = |_| LayerKv {
                k: zeros(),
                v: zeros(),
            };
            (0..num_layers).map(layer).collect()
        });
        Self {
            shape: *shape,
            layers,
        }
    }

    /// The shape it was built with.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Writes this step's keys and values of `layer` to the batch's slots, in place, converted to
    /// the cache's element type.
    ///
    /// # Shapes
    ///
    /// - `k`, `v`: `[tokens, num_kv_heads, head_dim]`
    ///
    /// # Panics
    ///
    /// If `layer` does not exist, if the number of tokens is not the batch's, or if the batch
    /// names a block that the cache does not have.
    pub fn write(&mut self, layer: usize, k: Tensor<3>, v: Tensor<3>, batch: &AttentionBatch) {
        let kv = &mut self.layers[layer];
        // By value, so that the write has the only handle: with a second one the CPU copies the layer.
        let (Some(keys), Some(values)) = (kv.k.take(), kv.v.take()) else {
            unreachable!("a write puts back the tensors it took");
        };
        let new = [k, v].map(Tensor::without_autodiff);
        let [keys, values] = kernels::kv_write([keys, values], new, batch.plan());
        (kv.k, kv.v) = (Some(keys), Some(values));
    }

    /// Handles to the keys and values of `layer`, each `[num_slots, num_kv_heads, head_dim]`.
    /// On a CPU, drop them before the next [`write`](Self::write), which copies the layer while they live.
    ///
    /// # Panics
    ///
    /// If `layer` does not exist.
    pub fn layer(&self, layer: usize) -> (Tensor<3>, Tensor<3>) {
        let kv = &self.layers[layer];
        match (&kv.k, &kv.v) {
            (Some(k), Some(v)) => (k.clone(), v.clone()),
            _ => unreachable!("a write puts back the tensor it took"),
        }
    }
}

/// A zeroed tensor `[slots, kv_heads, head_dim]`.
///
/// On the CPU the system hands out zeroed pages at their first touch, so that an unused cache takes no memory; burn's own
/// `zeros` writes all pages.
fn zeros(dims: [usize; 3], dtype: DType, device: &Device) -> Tensor<3> {
    let num_bytes = dims.iter().product::<usize>() * dtype.size();
    let is_cpu = matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    if !is_cpu || !num_bytes.is_multiple_of(size_of::<u32>()) {
        // From one dimension, so that no row is padded: the kernels know nothing of strides.
        let len: usize = dims.iter().product();
        return Tensor::<1>::zeros([len], (device, dtype)).reshape(dims);
    }
    // Words, because a buffer of bytes has no alignment and would be copied into one that has.
    let bytes = Bytes::from_elems(vec![0u32; num_bytes / size_of::<u32>()]);
    let data = TensorData::from_bytes(bytes, dims, dtype);
    Tensor::from_data(data, (device, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_block_counts_keys_and_values_of_all_layers() {
        let shape = KvShape {
            num_layers: 24,
            num_kv_heads: 2,
            head_dim: 64,
            block_size: 16,
            num_blocks: 10,
            dtype: DType::BF16,
        };
        // 12,288 bytes per token for Qwen2.5-0.5B in bf16.
        assert_eq!(shape.bytes_per_block(), 16 * 12_288);
        assert_eq!(shape.num_slots(), 160);
    }
}
