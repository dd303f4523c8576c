//! Decode steps on the first GPU that is compiled in: the tokens by the int8 copy of lm_head are those of all logits. Alone in its
//! process, since the capture of a CUDA graph takes what other threads start there for its own.

#![allow(clippy::unwrap_used)]

use burn::tensor::DType;
use kv_paging::{DecodeToken, KvShape, PagedKvCache, SchedulerConfig};
use model_qwen::{
    Choice, ChoiceRow, DecodeRow, Draw, GraphRunner, LoadOptions, QwenModel, Sampler,
    SamplingParams, Want, bundled_model_dir, parse_device,
};

/// The first rows' tokens; the others follow.
const FIRST: [u32; 8] = [5, 40, 70, 100, 150, 200, 250, 300];

#[test]
fn tokens_by_the_int8_copy_of_lm_head_are_those_of_all_logits() {
    let mut devices = ["cuda", "wgpu"].into_iter().map(parse_device);
    let device = devices.find_map(Result::ok).expect("a GPU");
    let dir = bundled_model_dir().unwrap();
    let mut model = QwenModel::load(&dir, &LoadOptions::default(), &device).unwrap();
    assert!(!model.int8_lm_head_takes(1));
    model.copy_lm_head_int8();
    assert!(model.int8_lm_head_takes(4) && !model.int8_lm_head_takes(5));
    let config = SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        block_size: 16,
        num_blocks: 4,
        max_model_len: 16,
        enable_prefix_caching: false,
    };
    let mut cache = PagedKvCache::new(
        &KvShape {
            num_layers: model.config.num_hidden_layers,
            num_kv_heads: model.config.num_key_value_heads,
            head_dim: model.config.head_dim,
            block_size: config.block_size,
            num_blocks: config.num_blocks,
            dtype: DType::F32,
        },
        &device,
    );
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let mut runner = GraphRunner::new(&model, &config);
    for num_rows in [1, 4] {
        let tables: Vec<[u32; 1]> = (0..num_rows as u32).map(|row| [row]).collect();
        let mut samplers = vec![Sampler::new(&greedy, &[], model.config.vocab_size); num_rows];
        // Where the device draws nothing, the graph leaves all logits.
        let found = [Some(Draw::default()), None].map(|draw| {
            FIRST.map(|first| {
                let rows = tables.iter().zip(first..).map(|(table, id)| DecodeRow {
                    follows: false,
                    token: DecodeToken::Id(id),
                    position: 0,
                    adapter_slot: None,
                    block_table: table,
                    draw: draw.clone(),
                    is_constrained: false,
                });
                let rows: Vec<DecodeRow<'_>> = rows.collect();
                let pending = runner.launch(&model, &mut cache, &rows);
                assert_eq!(pending.is_drawn(), draw.is_some());
                let mut wants: Vec<ChoiceRow<'_>> = (samplers.iter_mut().enumerate())
                    .map(|(row, sampler)| ChoiceRow {
                        row,
                        want: Want::Token {
                            sampler,
                            banned: &[],
                        },
                    })
                    .collect();
                let tokens = pending.tokens(&model, &mut wants).unwrap().into_iter();
                let id = |choice| match choice {
                    Choice::Token(token) => token.id,
                    other => panic!("{other:?}"),
                };
                tokens.map(id).collect::<Vec<u32>>()
            })
        });
        let [by_int8, by_logits] = found;
        let differ = by_logits.iter().any(|ids| *ids != by_logits[0]);
        assert!(differ, "always the same token");
        assert_eq!(by_int8, by_logits, "{num_rows} rows");
    }
}
