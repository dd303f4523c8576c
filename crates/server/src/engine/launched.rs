//! A step that the device has been given to compute, until its tokens are read.

use kv_paging::Chunk;
use model_qwen::Pending;

/// A step, or a part of one, that the device computes.
pub(super) struct Launched<'a> {
    pub(super) chunks: Vec<LaunchedChunk<'a>>,
    pub(super) pending: Pending,
}

/// A chunk of such a step.
#[derive(Clone, Copy)]
pub(super) struct LaunchedChunk<'a> {
    pub(super) chunk: &'a Chunk,
    /// The row of its first token in the step.
    pub(super) first_row: usize,
}

impl<'a> LaunchedChunk<'a> {
    /// Chunks with their first rows.
    pub(super) fn all(chunks: Vec<&'a Chunk>, first_rows: Vec<usize>) -> Vec<Self> {
        let chunks = chunks.into_iter().zip(first_rows);
        let launched = chunks.map(|(chunk, first_row)| Self { chunk, first_row });
        launched.collect()
    }
}
