//! What a dry run of the device leaves behind: nothing. Alone in its process, since launches of other threads would be dropped, too.

#![allow(clippy::unwrap_used)]

use burn::tensor::{DType, Device, Tensor};
use kv_paging::{DecodeToken, KvShape, PagedKvCache, SchedulerConfig};
use model_qwen::{
    DecodeRow, GraphRunner, LoadOptions, PackedStep, QwenModel, bundled_model_dir, parse_device,
};

/// Logits of three prompts of different lengths and of one more token of each, `[6, vocab]`.
fn logits(model: &QwenModel, runner: &mut GraphRunner, cache: &mut PagedKvCache) -> Vec<f32> {
    let tables = [[0, 1], [2, 3], [4, 5]];
    let prompts: [Vec<u32>; 3] = [3, 20, 9].map(|len| (0..len).map(|id| 37 * id + len).collect());
    let mut packed = PackedStep::default();
    for (prompt, table) in prompts.iter().zip(&tables) {
        packed.push(prompt, 0, None, table);
    }
    let hidden = packed.forward(model, cache); // [tokens, hidden]
    let of_prompts = model.logits(hidden); // [tokens, vocab]
    let rows = prompts
        .iter()
        .zip(&tables)
        .map(|(prompt, table)| DecodeRow {
            follows: false,
            token: DecodeToken::Id(7),
            position: prompt.len(),
            adapter_slot: None,
            block_table: table,
            draw: None,
            is_constrained: false,
        });
    let rows: Vec<DecodeRow<'_>> = rows.collect();
    runner.compile(model, cache, &rows);
    let mut packed = PackedStep::default();
    for row in &rows {
        packed.push(&[7], row.position, None, row.block_table);
    }
    let of_tokens = model.logits(packed.forward(model, cache)); // [3, vocab]
    let all: Tensor<2> = Tensor::cat(vec![of_prompts, of_tokens], 0);
    all.into_data().iter::<f32>().collect()
}

fn run(device: &Device, before: impl FnOnce(&mut dyn FnMut())) -> Vec<f32> {
    let model = QwenModel::load(
        &bundled_model_dir().unwrap(),
        &LoadOptions::default(),
        device,
    );
    let model = model.unwrap();
    let config = SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        block_size: 16,
        num_blocks: 6,
        max_model_len: 32,
        enable_prefix_caching: false,
    };
    let shape = KvShape {
        num_layers: model.config.num_hidden_layers,
        num_kv_heads: model.config.num_key_value_heads,
        head_dim: model.config.head_dim,
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        dtype: DType::F32,
    };
    let mut cache = PagedKvCache::new(&shape, device);
    let mut runner = GraphRunner::new(&model, &config);
    before(&mut || drop(logits(&model, &mut runner, &mut cache)));
    logits(&model, &mut runner, &mut cache)
}

#[test]
fn steps_after_a_dry_run_are_those_of_the_cpu() {
    let mut devices = ["cuda", "wgpu"].into_iter().map(parse_device);
    let device = devices.find_map(Result::ok).expect("a GPU");
    // Memory that is taken again should not be zero by chance.
    let used: Vec<Tensor<2>> = (0..64)
        .map(|_| Tensor::full([64, 4096], 3.0, &device))
        .collect();
    device.sync().unwrap();
    drop(used);
    let found = run(&device, |steps| {
        let dry_run = cubecl::dry_run::DryRun::new();
        steps();
        device.sync().unwrap();
        drop(dry_run);
    });
    let expected = run(&Device::flex(), |_| ());
    assert_eq!(found.len(), expected.len());
    let largest = expected
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // bf16 products of a card, where it has them.
        let is_close = (found - expected).abs() <= 2e-2 * largest;
        assert!(is_close, "{i}: {found}, not {expected}");
    }
}
