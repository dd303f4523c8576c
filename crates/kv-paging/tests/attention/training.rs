//! Attention without a graph: its twins against Burn's autodiff over plain tensor operations, and the kernels of a GPU
//! against the twins.

use burn::tensor::Bool;
use burn::tensor::activation::softmax;
use kv_paging::{HeadNormInput, HeadNorms, HeadShape, TrainingAttention};

use super::*;

/// Heads, lengths of the documents, rows behind them.
const BATCHES: [(Dims, &[usize], usize); 6] = [
    ([4, 2, 16], &[5, 5, 5], 0),
    ([6, 1, 8], &[7, 1, 12], 3),
    ([2, 2, 20], &[9], 1),
    ([3, 3, 64], &[0, 33, 2], 0),
    ([12, 2, 32], &[17, 3, 17], 7),
    ([4, 4, 16], &[], 2),
];

struct Batch {
    dims: Dims,
    lengths: &'static [usize],
    rows: usize,
}

impl Batch {
    fn columns(&self) -> [usize; 2] {
        let [heads, kv_heads, head_dim] = self.dims;
        [(heads + 2 * kv_heads) * head_dim, heads * head_dim]
    }

    fn attention(&self, device: &Device) -> TrainingAttention {
        let [heads, kv_heads, head_dim] = self.dims;
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        TrainingAttention::new(self.lengths, shape, device)
    }

    fn random(&self, rng: &mut Rng, columns: usize, device: &Device) -> Tensor<2> {
        matrix(&rng.values(self.rows * columns), columns, device)
    }

    /// Angles between -2 and 2.
    fn rotary(&self, rng: &mut Rng, device: &Device) -> Rotary {
        let half = self.dims[2] / 2;
        let angles = rng.values(self.rows * half);
        let angles = tensor(&angles, [self.rows, 1, half], device);
        Rotary {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        }
    }
}

fn batches() -> impl Iterator<Item = Batch> {
    BATCHES.into_iter().map(|(dims, lengths, behind)| Batch {
        dims,
        lengths,
        rows: lengths.iter().sum::<usize>() + behind,
    })
}

pub(super) fn matrix(values: &[f32], columns: usize, device: &Device) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / columns, columns]);
    Tensor::from_data(data, (device, DType::F32))
}

pub(super) fn flat(tensor: Tensor<2>) -> Vec<f32> {
    let [rows, columns] = tensor.dims();
    values(tensor.reshape([rows, 1, columns]))
}

/// Attention and log-sum-exp of one document after the other and one head after the other.
fn plain_forward(qkv: &Tensor<2>, batch: &Batch) -> (Tensor<2>, Tensor<2>) {
    let [heads, kv_heads, head_dim] = batch.dims;
    let (mut outs, mut sums, mut start) = (Vec::new(), Vec::new(), 0);
    for &len in batch.lengths.iter().filter(|&&len| len > 0) {
        let rows = qkv.clone().narrow(0, start, len);
        let head = |i: usize| rows.clone().narrow(1, i * head_dim, head_dim);
        let hidden = Tensor::<2, Bool>::tril_mask([len, len], 0, &qkv.device());
        for h in 0..heads {
            let kv = heads + h / (heads / kv_heads);
            let scores = head(h).matmul(head(kv).transpose()) / (head_dim as f64).sqrt();
            let scores = scores.mask_fill(hidden.clone(), -1e30);
            sums.push(scores.clone().exp().sum_dim(1).log()); // [len, 1]
            outs.push(softmax(scores, 1).matmul(head(kv + kv_heads))); // [len, head_dim]
        }
        start += len;
    }
    let joined = |parts: Vec<Tensor<2>>, columns: usize| {
        let documents = parts
            .chunks(heads)
            .map(|heads| Tensor::cat(heads.to_vec(), 1));
        let behind = Tensor::zeros([batch.rows - start, columns], &qkv.device());
        let rows = documents.chain(std::iter::once(behind));
        Tensor::cat(rows.filter(|rows| rows.dims()[0] > 0).collect(), 0)
    };
    (joined(outs, heads * head_dim), joined(sums, heads))
}

#[test]
fn training_attention_and_its_gradient_match_autodiff_of_plain_operations() {
    let mut rng = Rng(31);
    for batch in batches() {
        let what = format!("{:?} {:?}", batch.dims, batch.lengths);
        let device = Device::flex();
        let [row, out_row] = batch.columns();
        let qkv = batch.random(&mut rng, row, &device);
        let d_out = batch.random(&mut rng, out_row, &device);
        let tracked = qkv.clone().autodiff().require_grad();
        let (expected_out, expected_lse) = plain_forward(&tracked, &batch);
        let expected = if batch.lengths.is_empty() {
            flat(qkv.zeros_like())
        } else {
            let loss = (expected_out.clone() * d_out.clone().autodiff()).sum();
            flat(tracked.grad(&loss.backward()).unwrap())
        };
        let (expected_out, expected_lse) = (flat(expected_out.inner()), flat(expected_lse.inner()));

        let attention = batch.attention(&device);
        for is_twin in [false, true] {
            let what = format!("{what}, twin: {is_twin}");
            let plan = attention.plan();
            let (out, lse) = match is_twin {
                true => naive::training::forward(qkv.clone(), plan),
                false => attention.forward(qkv.clone()),
            };
            assert_close(&flat(out.clone()), &expected_out, 1e-5, &what);
            assert_close(&flat(lse.clone()), &expected_lse, 1e-5, &what);
            let d_qkv = match is_twin {
                true => naive::training::backward(qkv.clone(), [out, lse, d_out.clone()], plan),
                false => attention.backward(qkv.clone(), out, lse, d_out.clone()),
            };
            assert_close(&flat(d_qkv), &expected, 1e-5, &what);
        }
    }
}

/// [`TrainingAttention::rotate`] in plain operations.
fn plain_rotate(
    qkv: &Tensor<2>,
    norms: Option<HeadNorms<'_>>,
    rotary: &Rotary,
    batch: &Batch,
) -> Tensor<2> {
    let [heads, kv_heads, head_dim] = batch.dims;
    let (cos, sin) = (rotary.cos.clone(), rotary.sin.clone());
    let [cos, sin] = [cos, sin].map(|angles| angles.reshape([batch.rows, head_dim / 2]));
    let parts = (0..heads + 2 * kv_heads).map(|i| {
        let mut x = qkv.clone().narrow(1, i * head_dim, head_dim);
        if i >= heads + kv_heads {
            return x;
        }
        if let Some(norms) = norms {
            let weight = if i < heads { norms.q } else { norms.k };
            let rms = ((x.clone() * x.clone()).mean_dim(1) + norms.eps).sqrt();
            x = x / rms * weight.clone().reshape([1, head_dim]);
        }
        let (a, b) = (
            x.clone().narrow(1, 0, head_dim / 2),
            x.narrow(1, head_dim / 2, head_dim / 2),
        );
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![first, b * cos.clone() + a * sin.clone()], 1)
    });
    Tensor::cat(parts.collect(), 1)
}

#[test]
fn training_rotation_and_its_gradient_match_autodiff_of_plain_operations() {
    let mut rng = Rng(32);
    for batch in batches() {
        let device = Device::flex();
        let tracking = device.clone().autodiff();
        let [row, _] = batch.columns();
        let qkv = batch.random(&mut rng, row, &device);
        let d = batch.random(&mut rng, row, &device);
        let rotary = batch.rotary(&mut rng, &device);
        let weights = [(); 2].map(|()| rng.values(batch.dims[2]));
        for has_norms in [false, true] {
            let what = format!("{:?} {:?}, norms {has_norms}", batch.dims, batch.lengths);
            let weights = |device: &Device| {
                weights
                    .clone()
                    .map(|w| Tensor::<1>::from_data(w.as_slice(), device))
            };
            let [q, k] = &weights(&tracking);
            let norms = has_norms.then_some(HeadNorms { q, k, eps: 1e-6 });
            let tracked = qkv.clone().autodiff().require_grad();
            let angles = Rotary {
                cos: rotary.cos.clone().autodiff(),
                sin: rotary.sin.clone().autodiff(),
            };
            let expected = plain_rotate(&tracked, norms, &angles, &batch);
            let loss = (expected.clone() * d.clone().autodiff()).sum();
            let gradient = tracked.grad(&loss.backward()).unwrap();

            let [q, k] = &weights(&device);
            let norms = has_norms.then_some(HeadNorms { q, k, eps: 1e-6 });
            let attention = batch.attention(&device);
            let got = attention.rotate(qkv.clone(), norms, &rotary);
            assert_close(&flat(got), &flat(expected.inner()), 1e-5, &what);
            let input = norms.map(|norms| HeadNormInput {
                qkv: qkv.clone(),
                norms,
            });
            let got = attention.rotate_backward(d.clone(), input, &rotary);
            assert_close(&flat(got), &flat(gradient), 1e-5, &what);
        }
    }
}
