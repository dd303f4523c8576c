//! Full-parameter training: every weight in f32, embeddings included.

use burn::tensor::{DType, Tensor};

use crate::loss::indices;

/// Gradient of an embedding lookup: row `v` is the sum of `dx` over the places where `tokens` is `v`.
///
/// Computed as rounds of pairwise sums between rows of the same token, planned on the host: about log₂ of the highest
/// count rounds of three operations. A scatter-add would run one token after the other on GPUs.
///
/// # Shapes
///
/// `dx` is `[tokens, hidden]`, the result `[vocab, hidden]`.
#[must_use]
pub fn embedding_gradient(tokens: &[u32], dx: Tensor<2>, vocab: usize) -> Tensor<2> {
    let device = dx.device();
    let [_, hidden] = dx.dims();
    let zero = Tensor::zeros([1, hidden], (&device, DType::F32)); // [1, hidden]
    let mut rows: Vec<(u32, i32)> = tokens.iter().copied().zip(0..).collect();
    rows.sort_unstable();
    let mut sums = dx; // one row per entry of `rows`
    loop {
        let (owners, left, right) = pair_up(&rows);
        if owners.len() == rows.len() {
            break;
        }
        let num_rows = rows.len() as i32;
        let right: Vec<i32> = right
            .into_iter()
            .map(|row| row.unwrap_or(num_rows))
            .collect();
        let padded = Tensor::cat(vec![sums, zero.clone()], 0); // [rows + 1, hidden]
        sums = padded.clone().select(0, indices(&left, &device))
            + padded.select(0, indices(&right, &device));
        rows = owners.into_iter().zip(0..).collect();
    }
    let mut source = vec![rows.len() as i32; vocab];
    for &(token, row) in &rows {
        source[token as usize] = row;
    }
    Tensor::cat(vec![sums, zero], 0).select(0, indices(&source, &device)) // [vocab, hidden]
}

/// Pairs neighbours with the same token: per pair its token, its first row, and its second row if there is one.
fn pair_up(rows: &[(u32, i32)]) -> (Vec<u32>, Vec<i32>, Vec<Option<i32>>) {
    let (mut owners, mut left, mut right) = (Vec::new(), Vec::new(), Vec::new());
    let mut rows = rows.iter().peekable();
    while let Some(&(token, row)) = rows.next() {
        owners.push(token);
        left.push(row);
        right.push(
            rows.next_if(|&&(next, _)| next == token)
                .map(|&(_, row)| row),
        );
    }
    (owners, left, right)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn embedding_gradient_sums_rows_by_token() {
        let device = Device::flex();
        let tokens = [3u32, 0, 3, 3, 5, 0, 3, 3];
        let values: Vec<f32> = (0..16).map(|i| (i * i) as f32).collect();
        let dx = Tensor::<2>::from_data(
            TensorData::new(values.clone(), [8, 2]),
            (&device, DType::F32),
        );
        let found: Vec<f32> = embedding_gradient(&tokens, dx, 6)
            .into_data()
            .iter::<f32>()
            .collect();
        let mut expected = vec![0f32; 12];
        for (row, &token) in tokens.iter().enumerate() {
            for column in 0..2 {
                expected[token as usize * 2 + column] += values[row * 2 + column];
            }
        }
        assert_eq!(found, expected);
    }
}
