//! Training methods against PEFT: same start, same batches, same losses and the same adapter after the last step.
//!
//! The files come from `xtask/golden/methods.py`; `data/golden/methods/meta.json` records versions and tolerances.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use kv_paging::CausalAttention;
use lora_4bit::AdapterSelection;
use lora_4bit::peft::{LoraAdapter, LoraConfig};
use model_qwen::{Dtype, MergedWeights, Quantization, QwenModel};
use safetensors::SafeTensors;
use trainer_sft::config::{InitLora, LoraOptions};
use trainer_sft::lora::{
    AdapterForm, SLOT, new_adapter, put_adapter, read_adapter, split, take_out, trainable,
};
use trainer_sft::trainer::Trainer;

use super::{
    ADAPTER_TOLERANCE, Log, base, batches, check_log, cosine, golden, largest_difference, load,
    read_json,
};

const STEPS: usize = 30;
const LOGIT_TOLERANCE: f32 = 1e-3;

fn trainer(model: QwenModel, adapter: &LoraConfig) -> Trainer {
    let trainable = trainable(SLOT, &adapter.modules_to_save);
    Trainer::new(model, cosine(trainable, 1e-3, 5, STEPS))
}

/// Trains the golden batches, and compares each step.
fn check_steps(trainer: &mut Trainer, name: &str) {
    let log: Log = read_json(&format!("methods/{name}.json"));
    check_log(trainer, &batches()[..STEPS], &log);
}

fn of_folder(folder: &Path) -> QwenModel {
    load(folder, Quantization::None, &Device::flex())
}

/// All values of an adapter, in one order.
fn values(adapter: &LoraAdapter) -> Vec<f32> {
    let modules = adapter.modules.values();
    let matrices = modules.flat_map(|m| {
        let magnitude = m.magnitude.iter().flatten();
        m.a.iter().chain(&m.b).chain(magnitude)
    });
    let saved = adapter.saved.values().flat_map(|saved| &saved.weight);
    matrices.chain(saved).copied().collect()
}

fn logits(model: &QwenModel, adapters: &AdapterSelection, tokens: &[u32]) -> Vec<f32> {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut attention = CausalAttention::new(&[tokens.len()]);
    let hidden = model.forward(tokens, &positions, adapters, &mut attention);
    model.logits(hidden).into_data().iter::<f32>().collect()
}

/// The logits of `model` for the golden tokens, against those of PEFT.
fn check_logits(model: &QwenModel, adapters: &AdapterSelection, name: &str) {
    let bytes = std::fs::read(golden(&format!("methods/{name}/logits.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("input_ids").unwrap();
    let tokens: Vec<u32> = (tokens.data().chunks(8))
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
        .collect();
    let expected = file.tensor("logits").unwrap();
    let expected: Vec<f32> = (expected.data().chunks(4))
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    let found = logits(model, adapters, &tokens);
    assert_eq!(found.len(), expected.len());
    let worst = largest_difference(&found, &expected);
    assert!(worst < LOGIT_TOLERANCE, "logits: {worst}");
}

/// Trains from the start that PEFT saved, and compares the steps and the result.
fn check_run(name: &str) {
    let folder = |part: &str| golden(&format!("methods/{name}/{part}"));
    let start = LoraAdapter::load(&folder("start")).unwrap();
    let end = LoraAdapter::load(&folder("end")).unwrap();
    let mut model = base();
    put_adapter(&mut model, SLOT, start.clone()).unwrap();
    let mut trainer = trainer(model, &start.config);
    check_steps(&mut trainer, name);
    let found = read_adapter(trainer.model(), SLOT, &start.config);
    assert!(found.modules.keys().eq(end.modules.keys()));
    assert!(found.saved.keys().eq(end.saved.keys()));
    let moved = largest_difference(&values(&start), &values(&end));
    assert!(moved > 10.0 * ADAPTER_TOLERANCE, "too short a run: {moved}");
    let worst = largest_difference(&values(&found), &values(&end));
    assert!(worst < ADAPTER_TOLERANCE, "largest difference {worst}");
}

/// What the adapter that PEFT saved computes, on the base model and merged into it.
fn check_result(name: &str) {
    let adapter = LoraAdapter::load(&golden(&format!("methods/{name}/end"))).unwrap();
    let mut model = base();
    put_adapter(&mut model, SLOT, adapter.clone()).unwrap();
    check_logits(&model, &AdapterSelection::all(SLOT), name);

    let folder = tempfile::tempdir().unwrap();
    let merged = MergedWeights::open(&golden("training/model"), Some(adapter)).unwrap();
    merged
        .write(folder.path(), Dtype::F32, |_| ControlFlow::Continue(()))
        .unwrap();
    check_logits(&of_folder(folder.path()), &AdapterSelection::Base, name);
}

#[test]
fn dora_trains_as_peft() {
    check_run("dora");
}

#[test]
fn dora_of_peft_computes_what_it_does_there() {
    check_result("dora");
}

#[test]
fn saved_modules_train_as_in_peft() {
    check_run("modules_to_save");
}

#[test]
fn saved_modules_of_peft_compute_what_they_do_there() {
    check_result("modules_to_save");
}

/// The base has one weight for embedding and head; an adapter may bring either.
#[test]
fn an_adapter_may_bring_one_of_two_tied_weights() {
    for module in ["model.embed_tokens", "lm_head"] {
        let folder = golden("methods/modules_to_save/end");
        let mut adapter = LoraAdapter::load(&folder).unwrap();
        adapter.saved.retain(|name, _| name == module);
        let mut model = base();
        put_adapter(&mut model, SLOT, adapter.clone()).unwrap();
        let expected = logits(&model, &AdapterSelection::all(SLOT), &[5, 9, 200]);

        let folder = tempfile::tempdir().unwrap();
        let merged = MergedWeights::open(&golden("training/model"), Some(adapter)).unwrap();
        merged
            .write(folder.path(), Dtype::F32, |_| ControlFlow::Continue(()))
            .unwrap();
        let model = of_folder(folder.path());
        assert!(!model.config.tie_word_embeddings);
        let found = logits(&model, &AdapterSelection::Base, &[5, 9, 200]);
        let worst = largest_difference(&found, &expected);
        assert!(worst < LOGIT_TOLERANCE, "{module}: {worst}");
    }
}

/// `s·B·A` of each module.
fn changes(adapter: &LoraAdapter) -> Vec<f32> {
    let mut changes = Vec::new();
    for (name, m) in &adapter.modules {
        let scaling = adapter.config.scaling_for(name) as f32;
        for b in m.b.chunks(m.r) {
            for column in 0..m.in_features {
                let a = m.a.iter().skip(column).step_by(m.in_features);
                changes.push(scaling * b.iter().zip(a).map(|(b, a)| b * a).sum::<f32>());
            }
        }
    }
    changes
}

/// Trains an adapter that starts as a part of the weights, here and in PEFT.
fn check_decomposed(name: &str, init: InitLora) {
    let options = LoraOptions {
        r: 4,
        alpha: 8.0,
        init,
        ..LoraOptions::default()
    };
    let mut model = base();
    let before = logits(&model, &AdapterSelection::Base, &[5, 9, 200]);
    let adapter = new_adapter(&options, None, &model, 7);
    let form = AdapterForm {
        config: adapter.config.clone(),
        start: Some(adapter.modules.clone()),
    };
    take_out(&mut model, &adapter.modules, &adapter.config).unwrap();
    model.add_adapter(SLOT, &adapter).unwrap();
    // The adapter gives back what the weights have lost.
    let after = logits(&model, &AdapterSelection::all(SLOT), &[5, 9, 200]);
    let worst = largest_difference(&before, &after);
    assert!(worst < LOGIT_TOLERANCE, "at the start: {worst}");
    let alone = logits(&model, &AdapterSelection::Base, &[5, 9, 200]);
    assert!(largest_difference(&before, &alone) > 0.1);

    let mut trainer = trainer(model, &adapter.config);
    check_steps(&mut trainer, name);
    let found = form.read(trainer.model(), SLOT);
    let expected = LoraAdapter::load(&golden(&format!("methods/{name}/end"))).unwrap();
    assert_eq!(found.config.r, expected.config.r);
    assert_eq!(found.config.lora_alpha, expected.config.lora_alpha);
    let expected_changes = changes(&expected);
    let moved = largest_difference(&expected_changes, &vec![0.0; expected_changes.len()]);
    assert!(moved > 10.0 * ADAPTER_TOLERANCE, "too short a run: {moved}");
    let worst = largest_difference(&changes(&found), &expected_changes);
    assert!(worst < ADAPTER_TOLERANCE, "largest difference {worst}");

    // A plain adapter: anything loads it, and a run goes on from its halves.
    let mut fresh = base();
    fresh.add_adapter(SLOT, &found).unwrap();
    check_logits(&fresh, &AdapterSelection::all(SLOT), name);
    let (half, start) = split(found, &adapter.config).unwrap();
    assert_eq!(Some(start), form.start);
    let current = read_adapter(trainer.model(), SLOT, &adapter.config);
    assert_eq!(half.modules, current.modules);
}

#[test]
fn pissa_trains_as_in_peft() {
    check_decomposed("pissa", InitLora::Pissa { iterations: None });
}

#[test]
fn olora_trains_as_in_peft() {
    check_decomposed("olora", InitLora::Olora);
}

/// Many iterations are as good as iterating until nothing changes; one is not.
#[test]
fn pissa_by_iterations_becomes_pissa() {
    let start = |iterations| {
        let options = LoraOptions {
            r: 4,
            alpha: 8.0,
            init: InitLora::Pissa { iterations },
            ..LoraOptions::default()
        };
        changes(&new_adapter(&options, None, &base(), 7))
    };
    let exact = start(None);
    let largest = largest_difference(&exact, &vec![0.0; exact.len()]);
    let [one, many] = [1, 64].map(|count| largest_difference(&start(Some(count)), &exact));
    assert!(many < 1e-4 * largest, "{many} of {largest}");
    assert!(one > 10.0 * many, "{one}, {many}");
}
