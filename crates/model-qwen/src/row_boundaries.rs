//! Which numbers of rows the same loops compute.

use lora_4bit::kernels::plan::{Features, Operation, Plan, Product, WeightFormat};
use lora_4bit::{Linear, RowBounds, Weight};

use crate::device::is_gpu;
use crate::model::{Int8LmHead, QwenModel};

impl QwenModel {
    /// The boundaries up to `max_rows`: a step with so many rows is computed by other loops than a step with one row less. On a
    /// CPU the bits of a row are the same in all steps whose numbers of rows lie between two boundaries. For a GPU no boundary is
    /// known, and the list is empty.
    ///
    /// Call it when weights and compute dtype are set.
    pub fn row_boundaries(&self, max_rows: usize) -> Vec<usize> {
        if is_gpu(&self.device()) {
            return Vec::new();
        }
        let features = Features::of(&self.device());
        let layers = self.linears().into_iter().map(|(_, layer)| layer);
        let layers: Vec<&Linear> = layers.chain([&self.lm_head]).collect();
        let changes = |rows: usize| {
            layers.iter().any(|layer| {
                [Operation::Forward, Operation::SwiGlu]
                    .map(|operation| {
                        [rows - 1, rows].map(|rows| plan(layer, operation, rows, &features))
                    })
                    .iter()
                    .any(|[before, after]| before != after)
            })
        };
        // The int8 copy of lm_head answers as the loops for one row do.
        let all = RowBounds::max_rows() + 1;
        let [one, many] =
            [1, all].map(|rows| plan(&self.lm_head, Operation::Forward, rows, &features));
        let has_copy = matches!(self.int8_lm_head, Some(Int8LmHead::Cpu(_)));
        let reads_all = (has_copy && one != many).then_some(all);
        (2..=max_rows)
            .filter(|&rows| changes(rows) || reads_all == Some(rows))
            .collect()
    }
}

fn plan(layer: &Linear, operation: Operation, rows: usize, features: &Features) -> Plan {
    let [n, k] = layer.weight.shape();
    let product = Product {
        operation,
        rows,
        n,
        k,
        weight: match &layer.weight {
            Weight::Dense(weight) => WeightFormat::dense(weight.dtype(), k),
            Weight::Nf4(_) => WeightFormat::Nf4,
        },
        input: burn::tensor::DType::F32,
        compute: layer.compute,
    };
    Plan::choose(&product, features)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, Device, Distribution, Tensor};
    use lora_4bit::{AdapterSelection, ComputeDtype};

    use super::*;
    use crate::load::LoadOptions;

    /// Products of the rows between two boundaries are those of each row by itself, and all boundaries are named.
    #[test]
    fn rows_between_boundaries_have_the_same_bits() {
        let dir = crate::bundled_model_dir().unwrap();
        for compute in [ComputeDtype::Auto, ComputeDtype::F32] {
            let mut model =
                QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
            model.set_compute_dtype(compute);
            let boundaries = model.row_boundaries(64);
            assert!(
                compute == ComputeDtype::Auto || boundaries.is_empty(),
                "{boundaries:?}"
            );
            assert!(boundaries.iter().all(|rows| (2..=64).contains(rows)));
            let mut starts = vec![1];
            starts.extend(boundaries);
            for (i, &start) in starts.iter().enumerate() {
                let end = starts.get(i + 1).map_or(65, |end| *end);
                let layer = &model.layers[0].mlp.down_proj;
                let x = Tensor::<2>::random(
                    [end - 1, layer.in_features()],
                    Distribution::Normal(0.0, 1.0),
                    (&Device::flex(), DType::F32),
                );
                let rows = |num: usize| -> Vec<f32> {
                    let y = layer.forward(x.clone().narrow(0, 0, num), &AdapterSelection::Base);
                    y.into_data().try_into_vec().unwrap()
                };
                let few = rows(start);
                assert_eq!(
                    few,
                    rows(end - 1)[..few.len()],
                    "{compute:?}, {start} to {end}"
                );
            }
        }
    }
}
