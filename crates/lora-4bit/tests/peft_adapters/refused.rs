//! Folders that are refused, with the reason.

use super::*;

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("modules_to_save", json!(["lm_head", "norm"])),
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
    assert!(with_field("fan_in_fan_out", Value::Null).is_ok());
    assert!(with_field("init_lora_weights", json!("gaussian")).is_ok());
}

/// A pipe that nobody writes into would never end.
#[cfg(unix)]
#[test]
fn a_pipe_is_no_file() {
    let (config, _) = adapter().to_bytes().unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG_FILE), &config).unwrap();
        let pipe = folder.path().join(file);
        let _ = fs::remove_file(&pipe);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = LoraAdapter::load(folder.path()).unwrap_err();
        assert_says(error, &[file, "expected a plain file"]);
    }
}

#[test]
fn adapters_of_the_head_are_named() {
    for name in [
        "base_model.model.lm_head.base_layer.weight",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
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
    for (field, value) in [
        ("r", json!("16")),
        ("r", json!(1.5)),
        ("lora_alpha", json!("32")),
        ("lora_dropout", json!([0.1])),
        ("target_modules", json!(5)),
        ("target_modules", json!(["q_proj", 5])),
        ("exclude_modules", json!(true)),
        ("layers_to_transform", json!("all")),
        ("layers_pattern", json!(5)),
        ("rank_pattern", json!([1])),
        ("rank_pattern", json!({"q_proj": "8"})),
        ("alpha_pattern", json!({"q_proj": "8"})),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(1)),
        ("ensure_weight_tying", json!("no")),
        ("base_model_name_or_path", json!(5)),
        ("revision", json!(5)),
    ] {
        let says = format!("field `{field}` is {value}, expected");
        assert_says(with_field(field, value).unwrap_err(), &[CONFIG_FILE, &says]);
    }
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
