//! The documents of a training step as the kernels take them: their lengths, and what is made of them at its first use.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, Device, Tensor};

use super::device::Tables;
use super::heads::HeadShape;
use crate::kernels::gather::{Fill, PaddedRows};
use crate::rotary::Rotary;

/// Documents of a packed batch, and heads, as the kernels take them. A plan serves one device.
#[derive(Clone, Debug)]
pub struct TrainingPlan {
    lengths: Arc<[usize]>,
    shape: HeadShape,
    /// For the kernels of a GPU; `None` where the twins run.
    tables: Arc<OnceLock<Option<Tables>>>,
    /// For the twins; the rows are `None` if all documents have the same length.
    padding: Arc<OnceLock<Option<PaddedRows>>>,
    hidden: Arc<OnceLock<Tensor<3, Bool>>>,
}

impl TrainingPlan {
    /// Documents of these lengths, in tokens. Empty documents are skipped.
    ///
    /// # Panics
    ///
    /// If `heads` is not a multiple of `kv_heads` or `head_dim` is odd.
    pub fn new(lengths: &[usize], shape: HeadShape) -> Self {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
        } = shape;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads are no multiple of {kv_heads} key/value heads"
        );
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(2),
            "head_dim {head_dim} is odd or 0"
        );
        Self {
            lengths: lengths.iter().copied().filter(|&len| len > 0).collect(),
            shape,
            tables: Arc::default(),
            padding: Arc::default(),
            hidden: Arc::default(),
        }
    }

    /// Lengths of the documents, in tokens; none is zero.
    pub fn lengths(&self) -> &Arc<[usize]> {
        &self.lengths
    }

    /// Tokens of all documents.
    pub fn num_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.shape.heads
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// Query and key/value heads.
    pub(super) fn shape(&self) -> HeadShape {
        self.shape
    }

    /// Uploads what the kernels of a GPU read, where they run.
    pub(crate) fn upload(&self, device: &Device) {
        self.tables(device);
    }

    /// For the kernels of a GPU, where they run.
    pub(super) fn tables(&self, device: &Device) -> Option<&Tables> {
        let tables = || Tables::new(&self.lengths, self.shape, &plain(device));
        self.tables.get_or_init(tables).as_ref()
    }

    pub(in crate::kernels) fn max_len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    pub(in crate::kernels) fn padding(&self, device: &Device) -> Option<&PaddedRows> {
        // Sums over the rows of a document need zeros behind it: the twins put a row of zeros behind all documents.
        let rows = || PaddedRows::new(&self.lengths, Fill::RowBehind, &plain(device));
        self.padding.get_or_init(rows).as_ref()
    }

    /// True above the diagonal, `[1, max_len, max_len]`.
    pub(in crate::kernels) fn hidden(&self, device: &Device) -> &Tensor<3, Bool> {
        self.hidden.get_or_init(|| {
            let len = self.max_len();
            let hidden = Tensor::<2, Bool>::tril_mask([len, len], 0, &plain(device)); // [max_len, max_len]
            hidden.reshape([1, len, len]) // [1, max_len, max_len]
        })
    }

    /// Elements of a row of queries, keys and values.
    fn row(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    pub(super) fn assert_rows(&self, qkv: &Tensor<2>) {
        let ([tokens, row], num_tokens) = (qkv.dims(), self.num_tokens());
        assert_eq!(row, self.row(), "elements of queries, keys and values");
        assert!(
            num_tokens <= tokens,
            "documents of {num_tokens} tokens in {tokens} rows"
        );
    }

    pub(super) fn assert_angles(&self, tokens: usize, rotary: &Rotary) {
        let angles = [tokens, 1, self.shape.head_dim / 2];
        assert_eq!(rotary.cos.dims(), angles, "cosines");
        assert_eq!(rotary.sin.dims(), angles, "sines");
    }
}

/// `device` outside of autodiff graphs.
fn plain(device: &Device) -> Device {
    device.clone().without_autodiff()
}
