//! PEFT adapter folders against data/golden/peft, made by PEFT (`xtask/golden/peft_adapter.py`), and damaged ones.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

use lora_4bit::peft::{
    CONFIG_FILE, LoraAdapter, LoraConfig, LoraMatrices, OneOrMany, PatternMap, PeftError,
    TargetModules, WEIGHTS_FILE,
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
        base_model_name_or_path: None,
        revision: Some("main".to_owned()),
        task_type: None,
    };
    let text = config.to_json().to_string();
    assert_eq!(LoraConfig::from_json(text.as_bytes()).unwrap(), config);
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
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 2], [1, 2]])),
        ("lora_bias", json!(true)),
        ("peft_type", json!("LOHA")),
        ("megatron_config", json!({"tp": 2})),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["experts.gate"])),
        ("alora_invocation_tokens", json!([5])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 0.1})),
        ("monteclora_config", json!({"num_samples": 4})),
        ("velora_config", json!({"num_groups": 2})),
        ("num_virtual_tokens", json!(8)),
        ("task_type", json!("SEQ_CLS")),
    ];
    for (field, value) in cases {
        let error = with_field(field, value.clone()).unwrap_err();
        assert!(matches!(error, PeftError::Unsupported { .. }), "{error}");
        assert_says(error, &[field, CONFIG_FILE]);
    }
    assert!(with_field("some_new_field", json!({"x": 1})).is_ok());
    assert!(with_field("use_dora", Value::Null).is_ok());
    assert!(with_field("init_lora_weights", json!("gaussian")).is_ok());
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
fn adapters_of_the_head_are_named() {
    for name in [
        "base_model.model.lm_head.base_layer.weight",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.norm.weight",
        "base_model.model.model.layers.0.self_attn.q_norm.weight",
    ] {
        let error = with_tensors(|tensors| {
            tensors.push((
                name.to_owned(),
                safetensors::Dtype::F32,
                vec![1],
                vec![0; 4],
            ));
        });
        assert!(matches!(error, PeftError::UnsupportedModule(_)), "{error}");
        assert_says(error, &[name, "lm_head", "not supported"]);
    }
}

#[test]
fn git_lfs_pointers_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    adapter().save(&path).unwrap();
    for file in [WEIGHTS_FILE, CONFIG_FILE] {
        fs::write(path.join(file), pointer).unwrap();
        let error = LoraAdapter::load(&path).unwrap_err();
        assert_says(error, &[file, "Git LFS pointer", "git lfs pull"]);
    }
}

#[test]
fn impossible_values_are_named() {
    assert_says(with_field("r", json!(0)).unwrap_err(), &["`r`", "0"]);
    assert_says(with_field("r", json!("x")).unwrap_err(), &[CONFIG_FILE]);
    assert_says(
        with_field("lora_dropout", json!(1.0)).unwrap_err(),
        &["lora_dropout", "1"],
    );
    assert_says(
        with_field("target_modules", json!("(")).unwrap_err(),
        &["target_modules", "`(`"],
    );
    assert_says(
        with_field("rank_pattern", json!({"[": 1})).unwrap_err(),
        &["rank_pattern", "`[`"],
    );
}

#[test]
fn ranks_of_config_and_file_must_agree() {
    let error = with_field("rank_pattern", json!({})).unwrap_err();
    assert_says(error, &["down_proj.lora_A.weight", "[2, 12]", "rank 4"]);
}

#[test]
fn untargeted_modules_are_named() {
    let error = with_field("target_modules", json!(["q_proj"])).unwrap_err();
    assert_says(error, &["mlp.down_proj.lora_", "target_modules"]);
}

#[test]
fn damaged_matrices_are_named() {
    assert_says(
        with_tensors(|tensors| tensors.retain(|t| !t.0.ends_with("down_proj.lora_B.weight"))),
        &[
            "down_proj.lora_A.weight",
            "no partner",
            "down_proj.lora_B.weight",
        ],
    );
    assert_says(
        with_tensors(|tensors| tensors.retain(|t| !t.0.ends_with("down_proj.lora_A.weight"))),
        &["no partner `base_model.model.model.layers.0.mlp.down_proj.lora_A.weight`"],
    );
    assert_says(
        with_tensors(|tensors| tensors[1].2 = vec![2, 6]),
        &["down_proj.lora_B.weight", "[2, 6]", "[out, r]"],
    );
    assert_says(
        with_tensors(|tensors| tensors[0].2 = vec![24]),
        &["down_proj.lora_A.weight", "[24]", "[r, in]"],
    );
    assert_says(
        with_tensors(|tensors| tensors[0].1 = safetensors::Dtype::I32),
        &["down_proj.lora_A.weight", "I32", "BF16"],
    );
    assert_says(
        with_tensors(|tensors| tensors[0].3[4..8].copy_from_slice(&f32::NAN.to_le_bytes())),
        &["down_proj.lora_A.weight", "value 1 is NaN", "finite"],
    );
    assert_says(
        with_tensors(|tensors| {
            tensors[0].0 = "base_model.model.x.lora_magnitude_vector".to_owned()
        }),
        &["lora_magnitude_vector", "not a LoRA matrix"],
    );
    assert_says(with_tensors(Vec::clear), &["no LoRA matrix"]);
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
fn missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nothing");
    assert_says(
        LoraAdapter::load(&missing).unwrap_err(),
        &["nothing", "does not exist"],
    );

    assert_says(
        LoraAdapter::load(dir.path()).unwrap_err(),
        &["has no adapter_config.json"],
    );
    let (config, _) = adapter().to_bytes().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), &config).unwrap();
    assert_says(
        LoraAdapter::load(dir.path()).unwrap_err(),
        &["has no adapter_model.safetensors"],
    );
    fs::write(dir.path().join("adapter_model.bin"), b"").unwrap();
    assert_says(
        LoraAdapter::load(dir.path()).unwrap_err(),
        &["adapter_model.bin", "safe_serialization"],
    );
    let file = dir.path().join(CONFIG_FILE);
    assert_says(LoraAdapter::load(&file).unwrap_err(), &["is not a folder"]);
    fs::write(dir.path().join(WEIGHTS_FILE), b"not safetensors").unwrap();
    assert_says(LoraAdapter::load(dir.path()).unwrap_err(), &[WEIGHTS_FILE]);
}

#[test]
fn inconsistent_adapters_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    let mut adapter = adapter();
    adapter.modules.get_mut(Q_PROJ).unwrap().b.pop();
    assert_says(
        adapter.save(&path).unwrap_err(),
        &[Q_PROJ, "matrix B", "31 values", "expected 32"],
    );
    assert!(!path.exists());
}
