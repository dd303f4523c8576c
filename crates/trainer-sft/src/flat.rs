//! The tensors of an adapter that a GPU trains, one after the other in a few buffers.
//!
//! An adapter has hundreds of small tensors. As tensors of their own each would take a launch for its sum of squares and one for
//! AdamW, and CubeCL would look through all of them, their gradients and their moments for each allocation of a step, which took half
//! of the time of small steps (docs/benchmarks/2026-11-30-small-steps.md).
//!
//! The buffers are written whoever holds them: a model's tensors are views of them and see each step.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::training::{VIEW_ALIGNMENT, add_in_place, clear};

/// Values at whose multiples a tensor begins and ends, so that it is a view of its buffer. A tensor of another length stays one of its
/// own.
pub(crate) const ALIGNMENT: usize = VIEW_ALIGNMENT / size_of::<f32>();

/// Values of a buffer, at most, 128 MiB. Gradients are summed over devices in such buckets, too: besides the gradients, a sum takes
/// the memory of one bucket.
pub(crate) const BUCKET_LEN: usize = 32 << 20;

/// Where the tensors of an adapter lie.
#[derive(Debug, PartialEq)]
pub(crate) struct FlatLayout {
    places: BTreeMap<String, Place>,
    buckets: Vec<Bucket>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    bucket: usize,
    start: usize,
    dims: [usize; 2],
}

impl Place {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

/// One buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    /// Values.
    len: usize,
    is_faster: bool,
}

impl FlatLayout {
    /// Lays out the tensors of these names and dimensions that can be parts of a buffer. Tensors with a learning rate of their own,
    /// which `is_faster` names, come after the rest.
    pub(crate) fn of(tensors: &[(String, [usize; 2])], is_faster: impl Fn(&str) -> bool) -> Self {
        let mut layout = Self {
            places: BTreeMap::new(),
            buckets: Vec::new(),
        };
        for group in [false, true] {
            let mut room = 0;
            for (name, dims) in tensors.iter().filter(|(name, _)| is_faster(name) == group) {
                let len = dims.iter().product::<usize>();
                if !len.is_multiple_of(ALIGNMENT) {
                    continue;
                }
                if room < len {
                    layout.buckets.push(Bucket {
                        len: 0,
                        is_faster: group,
                    });
                    room = BUCKET_LEN.max(len);
                }
                room -= len;
                let bucket = layout.buckets.len() - 1;
                let start = layout.buckets[bucket].len;
                layout.buckets[bucket].len += len;
                let place = Place {
                    bucket,
                    start,
                    dims: *dims,
                };
                layout.places.insert(name.clone(), place);
            }
        }
        layout
    }

    /// Whether it has a place for a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Values of each buffer, and whether they have the learning rate of the faster ones.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (usize, bool)> {
        self.buckets
            .iter()
            .map(|bucket| (bucket.len, bucket.is_faster))
    }
}

/// A value for each value of an adapter.
#[derive(Debug)]
pub(crate) struct Flat {
    layout: Arc<FlatLayout>,
    /// f32, `[len]` of each bucket.
    buckets: Vec<Tensor<1>>,
    /// The tensors: parts of the buckets.
    views: Arc<BTreeMap<String, Tensor<2>>>,
}

impl Flat {
    /// Zeros, in memory of their own: no page of a pool stays for them.
    pub(crate) fn zeros(layout: &Arc<FlatLayout>, device: &Device) -> Self {
        let buckets = device.memory_persistent_allocations(&layout.buckets, |buckets| {
            let buckets = buckets.iter();
            buckets
                .map(|bucket| Tensor::zeros([bucket.len], (device, DType::F32)))
                .collect()
        });
        Self::of(layout.clone(), buckets)
    }

    /// Of these buffers.
    pub(crate) fn of(layout: Arc<FlatLayout>, buckets: Vec<Tensor<1>>) -> Self {
        let views = layout.places.iter().map(|(name, place)| {
            let all = buckets[place.bucket].clone();
            let view = all.narrow(0, place.start, place.len()).reshape(place.dims);
            (name.clone(), view)
        });
        let views = Arc::new(views.collect());
        Self {
            layout,
            buckets,
            views,
        }
    }

    pub(crate) fn layout(&self) -> &Arc<FlatLayout> {
        &self.layout
    }

    /// The buffers.
    pub(crate) fn buckets(&self) -> &[Tensor<1>] {
        &self.buckets
    }

    /// A second handle of the same buffers.
    pub(crate) fn share(&self) -> Self {
        Self {
            layout: self.layout.clone(),
            buckets: self.buckets.clone(),
            views: self.views.clone(),
        }
    }

    /// The same values in buffers that nobody else holds.
    pub(crate) fn copy(&self) -> Self {
        let copy = self.buckets.first().map(|first| {
            let copy = Self::zeros(&self.layout, &first.device());
            let both = copy.buckets.iter().zip(&self.buckets);
            both.for_each(|(to, from)| add_in_place(to, from.clone()));
            copy
        });
        copy.unwrap_or_else(|| self.share())
    }

    /// A tensor's values, `[numel]`: a view.
    pub(crate) fn view(&self, name: &str) -> Option<Tensor<1>> {
        let matrix = self.matrix(name)?;
        let [rows, columns] = matrix.dims();
        Some(matrix.reshape([rows * columns]))
    }

    /// The same of a matrix.
    pub(crate) fn matrix(&self, name: &str) -> Option<Tensor<2>> {
        self.views.get(name).cloned()
    }

    /// Sets all to zero.
    pub(crate) fn clear(&self) {
        self.buckets.iter().for_each(clear);
    }
}
