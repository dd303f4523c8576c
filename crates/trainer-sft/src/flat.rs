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

/// Values of a buffer, at most, 128 MiB. Gradients are summed over devices in such pieces, too: the memory that a sum takes besides them is
/// that of one.
pub(crate) const PIECE: usize = 32 << 20;

/// Where the tensors of an adapter lie.
#[derive(Debug, PartialEq)]
pub(crate) struct Places {
    by_name: BTreeMap<String, Place>,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    piece: usize,
    start: usize,
    dims: [usize; 2],
}

impl Place {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

/// A buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    /// Values.
    len: usize,
    is_faster: bool,
}

impl Places {
    /// Places for those tensors of these names and dimensions that can be parts of a buffer. Those with a learning rate of their own,
    /// which `is_faster` names, come after the others.
    pub(crate) fn of(tensors: &[(String, [usize; 2])], is_faster: impl Fn(&str) -> bool) -> Self {
        let mut places = Self {
            by_name: BTreeMap::new(),
            pieces: Vec::new(),
        };
        for group in [false, true] {
            let mut room = 0;
            for (name, dims) in tensors.iter().filter(|(name, _)| is_faster(name) == group) {
                let len = dims.iter().product::<usize>();
                if !len.is_multiple_of(ALIGNMENT) {
                    continue;
                }
                if room < len {
                    places.pieces.push(Piece {
                        len: 0,
                        is_faster: group,
                    });
                    room = PIECE.max(len);
                }
                room -= len;
                let piece = places.pieces.len() - 1;
                let start = places.pieces[piece].len;
                places.pieces[piece].len += len;
                let place = Place {
                    piece,
                    start,
                    dims: *dims,
                };
                places.by_name.insert(name.clone(), place);
            }
        }
        places
    }

    /// Whether it has a place for a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Values of each buffer, and whether they have the learning rate of the faster ones.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (usize, bool)> {
        self.pieces.iter().map(|piece| (piece.len, piece.is_faster))
    }
}

/// A value for each value of an adapter.
#[derive(Debug)]
pub(crate) struct Flat {
    places: Arc<Places>,
    /// f32, `[len]` of each piece.
    pieces: Vec<Tensor<1>>,
    /// The tensors: parts of the pieces.
    views: Arc<BTreeMap<String, Tensor<2>>>,
}

impl Flat {
    /// Zeros, in memory of their own: no page of a pool stays for them.
    pub(crate) fn zeros(places: &Arc<Places>, device: &Device) -> Self {
        let pieces = device.memory_persistent_allocations(&places.pieces, |pieces| {
            let pieces = pieces.iter();
            pieces
                .map(|piece| Tensor::zeros([piece.len], (device, DType::F32)))
                .collect()
        });
        Self::of(places.clone(), pieces)
    }

    /// Of these buffers.
    pub(crate) fn of(places: Arc<Places>, pieces: Vec<Tensor<1>>) -> Self {
        let views = places.by_name.iter().map(|(name, place)| {
            let all = pieces[place.piece].clone();
            let view = all.narrow(0, place.start, place.len()).reshape(place.dims);
            (name.clone(), view)
        });
        let views = Arc::new(views.collect());
        Self {
            places,
            pieces,
            views,
        }
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// The buffers.
    pub(crate) fn pieces(&self) -> &[Tensor<1>] {
        &self.pieces
    }

    /// A second handle of the same buffers.
    pub(crate) fn share(&self) -> Self {
        Self {
            places: self.places.clone(),
            pieces: self.pieces.clone(),
            views: self.views.clone(),
        }
    }

    /// The same values in buffers that nobody else holds.
    pub(crate) fn copy(&self) -> Self {
        let copy = self.pieces.first().map(|first| {
            let copy = Self::zeros(&self.places, &first.device());
            let both = copy.pieces.iter().zip(&self.pieces);
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
        self.pieces.iter().for_each(clear);
    }
}
