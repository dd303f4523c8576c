//! PEFT adapter folders against data/golden/peft, made by PEFT (`xtask/golden/peft_adapter.py`), and damaged ones.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod refused;

use std::fs;
use std::path::{Path, PathBuf};

use lora_4bit::peft::{
    CONFIG_FILE, LoraAdapter, LoraConfig, LoraMatrices, OneOrMany, PatternMap, PeftError,
    SavedModule, TargetModules, WEIGHTS_FILE,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/peft")
}

fn matrices(r: usize, in_features: usize, out_features: usize) -> LoraMatrices {
    LoraMatrices {
        a: (0..r * in_features).map(|i| i as f32 * 0.5 - 3.0).collect(),
        b: (0..out_features * r)
            .map(|i| 1.0 / (i as f32 + 1.0))
            .collect(),
        r,
        in_features,
        out_features,
        magnitude: None,
    }
}

fn adapter() -> LoraAdapter {
    LoraAdapter {
        config: LoraConfig {
            r: 4,
            lora_alpha: 6.0,
            target_modules: TargetModules::List(vec!["q_proj".to_owned(), "down_proj".to_owned()]),
            rank_pattern: PatternMap(vec![("down_proj".to_owned(), 2)]),
            base_model_name_or_path: Some("base".to_owned()),
            ..LoraConfig::default()
        },
        modules: [
            (Q_PROJ.to_owned(), matrices(4, 6, 8)),
            (
                "model.layers.0.mlp.down_proj".to_owned(),
                matrices(2, 12, 6),
            ),
        ]
        .into(),
        saved: Default::default(),
    }
}

/// The configuration of [`adapter`] with one field changed.
fn with_field(field: &str, value: Value) -> Result<LoraAdapter, PeftError> {
    let (config, weights) = adapter().to_bytes().unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config[field] = value;
    LoraAdapter::from_bytes(config.to_string().as_bytes(), &weights)
}

/// The matrices of [`adapter`] as a file, changed by `edit`.
fn with_tensors(
    edit: impl Fn(&mut Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>),
) -> PeftError {
    let (config, weights) = adapter().to_bytes().unwrap();
    let file = SafeTensors::deserialize(&weights).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, t)| {
            (
                name.to_owned(),
                t.dtype(),
                t.shape().to_vec(),
                t.data().to_vec(),
            )
        })
        .collect();
    tensors.sort_by(|x, y| x.0.cmp(&y.0));
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.clone(), view)
    });
    let weights = safetensors::serialize(views, None).unwrap();
    LoraAdapter::from_bytes(&config, &weights).unwrap_err()
}

#[track_caller]
fn assert_says(error: PeftError, parts: &[&str]) {
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    }
}

#[test]
fn adapter_made_by_peft_is_read() {
    let dir = golden_dir();
    let adapter = LoraAdapter::load(&dir.join("adapter")).unwrap();
    let meta: Value = serde_json::from_slice(&fs::read(dir.join("meta.json")).unwrap()).unwrap();
    assert!(adapter.config.use_rslora);
    let modules = meta["modules"].as_object().unwrap();
    assert_eq!(adapter.modules.len(), modules.len());
    for (name, expected) in modules {
        let matrices = &adapter.modules[name];
        assert_eq!(json!(matrices.r), expected["r"], "{name}");
        assert_eq!(
            json!(matrices.in_features),
            expected["in_features"],
            "{name}"
        );
        assert_eq!(
            json!(matrices.out_features),
            expected["out_features"],
            "{name}"
        );
        let scaling = adapter.config.scaling_for(name);
        assert!(
            (scaling - expected["scaling"].as_f64().unwrap()).abs() < 1e-12,
            "{name}: {scaling}"
        );
        let matcher = adapter.config.matcher().unwrap();
        assert_eq!(
            (matcher.rank(name), matcher.scaling(name)),
            (matrices.r, scaling),
            "{name}"
        );
    }
}

#[test]
fn update_computed_by_peft_is_ours() {
    let dir = golden_dir();
    let adapter = LoraAdapter::load(&dir.join("adapter")).unwrap();
    let file = fs::read(dir.join("outputs.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let f32s = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap();
        tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|x| f32::from_le_bytes(*x))
            .collect()
    };
    for (name, m) in &adapter.modules {
        let scaling = adapter.config.scaling_for(name);
        let (x, delta) = (
            f32s(&format!("{name}.input")),
            f32s(&format!("{name}.delta")),
        );
        for (x, delta) in x.chunks(m.in_features).zip(delta.chunks(m.out_features)) {
            let dot = |row: &[f32], x: &[f64]| -> f64 {
                row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
            };
            let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
            let ax: Vec<f64> = m.a.chunks(m.in_features).map(|row| dot(row, &x)).collect();
            for (row, delta) in m.b.chunks(m.r).zip(delta) {
                let ours = scaling * dot(row, &ax);
                assert!(
                    (ours - f64::from(*delta)).abs() < 1e-5,
                    "{name}: {ours} instead of {delta}"
                );
            }
        }
    }
}

#[test]
fn written_adapters_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out/adapter");
    let mut adapter = adapter();
    adapter.save(&path).unwrap();
    assert_eq!(LoraAdapter::load(&path).unwrap(), adapter);
    adapter.modules.get_mut(Q_PROJ).unwrap().a[0] = 42.0;
    adapter.save(&path).unwrap();
    assert_eq!(LoraAdapter::load(&path).unwrap(), adapter);
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "temporary files are left over: {names:?}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
}

#[test]
fn all_fields_are_read_back() {
    let config = LoraConfig {
        r: 3,
        lora_alpha: 2.5,
        lora_dropout: 0.1,
        target_modules: TargetModules::Pattern(r".*\.(q|v)_proj".to_owned()),
        exclude_modules: Some(TargetModules::List(vec!["lm_head".to_owned()])),
        layers_to_transform: Some(OneOrMany::Many(vec![0, 2])),
        layers_pattern: Some(OneOrMany::One("layers".to_owned())),
        rank_pattern: PatternMap(vec![("z".to_owned(), 4), ("a".to_owned(), 5)]),
        alpha_pattern: PatternMap(vec![("b".to_owned(), 1.5)]),
        use_rslora: true,
        use_dora: true,
        modules_to_save: vec!["embed_tokens".to_owned(), "lm_head".to_owned()],
        ensure_weight_tying: true,
        base_model_name_or_path: None,
        revision: Some("main".to_owned()),
        task_type: None,
    };
    let text = config.to_json().to_string();
    assert_eq!(LoraConfig::from_json(text.as_bytes()).unwrap(), config);
}

/// PEFT writes the full name beside the short one where weights are tied, and the tied weight without a name.
#[test]
fn saved_modules_have_the_names_of_the_weights_that_are_read() {
    let table = SavedModule {
        weight: vec![0.5; 6],
        shape: [3, 2],
    };
    let (embedding, head) = ("model.embed_tokens", "lm_head");
    for (listed, tied, saved, expected) in [
        (
            &["embed_tokens", embedding][..],
            true,
            &[embedding, head][..],
            &["embed_tokens", "lm_head"][..],
        ),
        (&[head], true, &[embedding, head], &["embed_tokens", head]),
        (
            &["embed_tokens", embedding],
            false,
            &[embedding],
            &["embed_tokens"],
        ),
        (
            &[head, embedding, head],
            false,
            &[embedding, head],
            &["embed_tokens", head],
        ),
        // A model whose head is a weight of its own.
        (&[embedding], true, &[embedding], &["embed_tokens"]),
    ] {
        let mut adapter = adapter();
        adapter.config.modules_to_save = listed.iter().map(|&name| name.to_owned()).collect();
        adapter.config.ensure_weight_tying = tied;
        let tables = saved.iter().map(|&name| (name.to_owned(), table.clone()));
        adapter.saved = tables.collect();
        let (config, weights) = adapter.to_bytes().unwrap();
        let read = LoraAdapter::from_bytes(&config, &weights).unwrap();
        assert_eq!(read.config.modules_to_save, expected, "{listed:?}");
        assert_eq!(read.saved, adapter.saved, "{listed:?}");
        // Without the weights, a name that stands twice is one name, too.
        let alone = LoraConfig::from_json(&config).unwrap();
        let mut names = alone.modules_to_save.clone();
        names.dedup();
        assert_eq!(alone.modules_to_save, names);
        assert!(names.iter().all(|name| !name.contains('.')), "{names:?}");
    }
}

/// PEFT saves embedding and head whole where the vocabulary has grown, and its configuration does not say so.
#[test]
fn weights_that_no_list_names_are_saved_ones() {
    let table = |first: f32| SavedModule {
        weight: (0..6).map(|i| first + i as f32).collect(),
        shape: [3, 2],
    };
    let read = |listed: &[&str], saved: &[&str]| {
        let mut adapter = adapter();
        let tables = saved.iter().zip([0.5, 9.5]);
        let tables = tables.map(|(name, first)| ((*name).to_owned(), table(first)));
        adapter.saved = tables.collect();
        let (config, weights) = adapter.to_bytes().unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["modules_to_save"] = json!(listed);
        LoraAdapter::from_bytes(config.to_string().as_bytes(), &weights).unwrap()
    };
    let (embedding, head) = ("model.embed_tokens", "lm_head");
    for module in [embedding, head] {
        let mut adapter = read(&[], &[module]);
        assert_eq!(adapter.saved[module], table(0.5));
        assert_eq!(adapter.modules.len(), 2);
        // Of a model whose head is its embedding it is the weight of both; otherwise the other one stays the model's.
        adapter.share_saved(false);
        assert_eq!(adapter.saved.len(), 1);
        adapter.share_saved(true);
        assert_eq!(adapter.saved[embedding], adapter.saved[head]);
        assert_eq!(adapter.config.modules_to_save, ["embed_tokens", head]);
    }
    // Both may be there, and one of them listed.
    for listed in [&[][..], &["embed_tokens"]] {
        let mut adapter = read(listed, &[embedding, head]);
        adapter.share_saved(true);
        assert_eq!(adapter.saved[embedding], table(0.5));
        assert_eq!(adapter.saved[head], table(9.5));
        assert_eq!(adapter.config.modules_to_save, ["embed_tokens", head]);
    }
    // A listed one has a weight of its own.
    let mut adapter = read(&["embed_tokens"], &[embedding]);
    adapter.share_saved(true);
    assert_eq!(adapter.saved.len(), 1);
}

#[test]
fn keys_are_those_of_peft_and_sorted() {
    let ours = adapter().config.to_json();
    let keys: Vec<_> = ours.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted(), "{keys:?}");
    let theirs = fs::read(golden_dir().join("adapter").join(CONFIG_FILE)).unwrap();
    let theirs: Value = serde_json::from_slice(&theirs).unwrap();
    for key in keys {
        assert!(theirs.get(key).is_some(), "PEFT does not write `{key}`");
    }
}

#[test]
fn targets_follow_the_rules_of_peft() {
    let config = |targets: TargetModules| LoraConfig {
        target_modules: targets,
        ..LoraConfig::default()
    };
    let list = config(TargetModules::List(vec![
        "q_proj".to_owned(),
        "model.layers.1.mlp.up_proj".to_owned(),
    ]));
    let matcher = list.matcher().unwrap();
    assert!(matcher.targets(Q_PROJ) && matcher.targets("model.layers.1.mlp.up_proj"));
    assert!(!matcher.targets("model.layers.0.self_attn.kq_proj"));

    let regex = config(TargetModules::Pattern(
        r".*\.layers\.0\.(?!mlp).*_proj".to_owned(),
    ));
    let matcher = regex.matcher().unwrap();
    assert!(matcher.targets(Q_PROJ) && !matcher.targets("model.layers.0.mlp.up_proj"));
    assert!(!matcher.targets("model.layers.1.self_attn.q_proj"));

    let all = config(TargetModules::Pattern("All-Linear".to_owned()));
    assert!(all.matcher().unwrap().targets(Q_PROJ) && !all.matcher().unwrap().targets("lm_head"));

    let mut layers = config(TargetModules::List(vec!["q_proj".to_owned()]));
    layers.layers_to_transform = Some(OneOrMany::One(1));
    assert!(
        layers
            .matcher()
            .unwrap()
            .targets("model.layers.1.self_attn.q_proj")
    );
    assert!(
        !layers
            .matcher()
            .unwrap()
            .targets("model.layers.11.self_attn.q_proj")
    );
    layers.layers_pattern = Some(OneOrMany::One("blocks".to_owned()));
    assert!(
        !layers
            .matcher()
            .unwrap()
            .targets("model.layers.1.self_attn.q_proj")
    );

    let mut excluded = config(TargetModules::default());
    excluded.exclude_modules = Some(TargetModules::Pattern(r".*mlp.*".to_owned()));
    assert!(
        !excluded
            .matcher()
            .unwrap()
            .targets("model.layers.0.mlp.up_proj")
    );
    assert!(excluded.matcher().unwrap().targets(Q_PROJ));
}

#[test]
fn first_matching_pattern_decides() {
    let text = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
        "rank_pattern": {"q_proj": 4, r"layers\.0\..*": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}});
    let config = LoraConfig::from_json(text.to_string().as_bytes()).unwrap();
    assert_eq!(config.rank_for(Q_PROJ), 4);
    assert_eq!(config.scaling_for(Q_PROJ), 0.75);
    assert_eq!(config.rank_for("model.layers.0.self_attn.k_proj"), 2);
    assert_eq!(config.scaling_for("model.layers.1.self_attn.k_proj"), 2.0);
}

#[test]
fn what_says_nothing_is_read_as_absent() {
    for (field, value) in [
        ("lora_dropout", Value::Null),
        ("rank_pattern", json!({"down_proj": 2.0})),
        ("alpha_pattern", Value::Null),
        ("use_rslora", Value::Null),
        ("r", json!(4.0)),
        ("task_type", Value::Null),
        ("megatron_core", json!("megatron.core")),
        ("loftq_config", json!({})),
        ("trainable_token_indices", Value::Null),
    ] {
        let read = with_field(field, value).unwrap();
        assert_eq!(read.modules, adapter().modules, "{field}");
    }
    let (config, weights) = adapter().to_bytes().unwrap();
    let marked = ["\u{feff}".as_bytes(), &config].concat();
    assert!(LoraAdapter::from_bytes(&marked, &weights).is_ok());
}

#[test]
fn sixteen_bit_matrices_are_read() {
    let (config, weights) = adapter().to_bytes().unwrap();
    let file = SafeTensors::deserialize(&weights).unwrap();
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, tensor)| {
            let values = tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|x| f32::from_le_bytes(*x));
            let data: Vec<u8> = values
                .flat_map(|x| half::bf16::from_f32(x).to_le_bytes())
                .collect();
            (name.to_owned(), tensor.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), data)
                .unwrap();
        (name.clone(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let read = LoraAdapter::from_bytes(&config, &bytes).unwrap();
    let rounded: Vec<f32> = adapter().modules[Q_PROJ]
        .b
        .iter()
        .map(|x| half::bf16::from_f32(*x).to_f32())
        .collect();
    assert_eq!(read.modules[Q_PROJ].b, rounded);
}

#[test]
fn magnitudes_of_dora_are_written_and_read() {
    let mut adapter = adapter();
    adapter.config.use_dora = true;
    assert_says(
        adapter.to_bytes().unwrap_err(),
        &["lora_magnitude_vector", "0 values", "expected 6"],
    );
    for matrices in adapter.modules.values_mut() {
        matrices.magnitude = Some((0..matrices.out_features).map(|i| i as f32).collect());
    }
    let (config, weights) = adapter.to_bytes().unwrap();
    assert_eq!(LoraAdapter::from_bytes(&config, &weights).unwrap(), adapter);
    let file = SafeTensors::deserialize(&weights).unwrap();
    let name = format!("base_model.model.{Q_PROJ}.lora_magnitude_vector");
    assert_eq!(file.tensor(&name).unwrap().shape(), [8]);

    let (_, plain) = self::adapter().to_bytes().unwrap();
    let error = LoraAdapter::from_bytes(&config, &plain).unwrap_err();
    assert_says(error, &["lora_A", "no partner", "lora_magnitude_vector"]);

    let mut tensors: Vec<_> = file.iter().map(|(n, view)| (n.to_owned(), view)).collect();
    let short = file.tensor(&name).unwrap();
    let short =
        safetensors::tensor::TensorView::new(short.dtype(), vec![7], &short.data()[..28]).unwrap();
    tensors.iter_mut().find(|(n, _)| *n == name).unwrap().1 = short;
    let weights = safetensors::serialize(tensors, None).unwrap();
    let error = LoraAdapter::from_bytes(&config, &weights).unwrap_err();
    assert_says(error, &["lora_magnitude_vector", "[7]", "expected [8]"]);
}
