//! A recorded step on the first GPU that is compiled in: its tokens with the bounds of the head are those of all logits. Alone in
//! its process, since a recording on a GPU takes what other threads start there for its own.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used)]

use burn::tensor::{DType, Int, Tensor};
use kv_paging::{DecodeRow, DecodeStep, DecodeToken, KvShape, PagedKvCache};
use model_qwen::{
    DecodeKind, Draw, LoadOptions, QwenModel, StepChoice, bundled_model_dir, parse_device,
};

/// The first rows' tokens; the others follow.
const FIRST: [u32; 8] = [5, 40, 70, 100, 150, 200, 250, 300];

#[test]
fn tokens_by_the_bounds_of_the_head_are_those_of_all_logits() {
    let mut devices = ["cuda", "wgpu"].into_iter().map(parse_device);
    let device = devices.find_map(Result::ok).expect("a GPU");
    let dir = bundled_model_dir().unwrap();
    let mut model = QwenModel::load(&dir, &LoadOptions::default(), &device).unwrap();
    assert!(!model.chooses_from_bounds(1));
    model.bound_head();
    assert!(model.chooses_from_bounds(4) && !model.chooses_from_bounds(5));
    let cache = PagedKvCache::new(
        &KvShape {
            num_layers: model.config.num_hidden_layers,
            num_kv_heads: model.config.num_key_value_heads,
            head_dim: model.config.head_dim,
            block_size: 16,
            num_blocks: 4,
            dtype: DType::F32,
        },
        &device,
    );
    for num_rows in [1, 4] {
        let chosen = Tensor::<1, Int>::zeros([num_rows], (&device, DType::I32));
        let steps = [StepChoice::Argmax, StepChoice::Logits].map(|choice| {
            let step = DecodeStep::new(num_rows, 1, 16, &device);
            let kind = DecodeKind {
                has_adapters: false,
                choice,
            };
            let recorded = model.capture_decode(&step, &cache, &chosen, kind);
            (step, recorded)
        });
        let mut found = Vec::new();
        for (step, mut recorded) in steps {
            for first in FIRST {
                let tables: Vec<[u32; 1]> = (0..num_rows as u32).map(|row| [row]).collect();
                let rows = tables.iter().zip(first..).map(|(table, id)| DecodeRow {
                    token: DecodeToken::Id(id),
                    position: 0,
                    slot: None,
                    block_table: table,
                    choice: Draw::default().words(),
                });
                step.upload(&rows.collect::<Vec<_>>());
                let (tokens, logits) = recorded.replay();
                let tokens: Vec<i32> = tokens.clone().into_data().iter().collect();
                found.push((tokens, logits.is_some()));
            }
        }
        let (by_bounds, by_logits) = found.split_at(FIRST.len());
        assert!(by_bounds.iter().all(|(_, has_logits)| !has_logits));
        assert!(by_logits.iter().all(|(_, has_logits)| *has_logits));
        let differ = by_logits.iter().any(|(ids, _)| *ids != by_logits[0].0);
        assert!(differ, "always the same token");
        for (a, b) in by_bounds.iter().zip(by_logits) {
            assert_eq!(a.0, b.0, "{num_rows} rows");
        }
    }
}
