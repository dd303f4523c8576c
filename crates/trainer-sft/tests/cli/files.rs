//! The settings of a file, beside flags.

use super::*;

#[test]
fn flags_that_a_setting_of_the_file_makes_ineffective_are_refused() {
    for (file, flags, flag) in [
        ("full = true\n", "--lora-r 8", "--lora-r"),
        ("full = true\n", "--lora-dropout 0.1", "--lora-dropout"),
        ("full = true\n", "--dtype bf16", "--dtype"),
        ("full = true\n", "--double-quant", "--double-quant"),
        (
            "adapter = \"a\"\n",
            "--target-modules q_proj",
            "--target-modules",
        ),
        (
            "quantization = \"none\"\n",
            "--no-double-quant",
            "--no-double-quant",
        ),
        // And the other way round: a flag that makes another one ineffective, whatever the file says.
        ("full = false\n", "--full --use-rslora", "--use-rslora"),
        ("full = false\n", "--full --use-dora", "--use-dora"),
        (
            "full = false\n",
            "--full --modules-to-save lm_head",
            "--modules-to-save",
        ),
        (
            "full = false\n",
            "--full --init-lora-weights gaussian",
            "--init-lora-weights",
        ),
    ] {
        let (_folder, path) = config_file(file);
        let message = error(&format!("--data d --config {path} {flags}"));
        let expected = format!("{flag} would have no effect");
        assert!(message.starts_with(&expected), "{file}{flags}: {message}");
    }
    // A flag that takes the setting of the file back.
    let (_folder, path) = config_file("full = true\nquantization = \"none\"\n");
    let config = parse(&format!("--data d --config {path} --full=false --lora-r 8"));
    assert_eq!(config.unwrap().lora.r, 8);
    // Settings of a file may be without effect: `run.toml` has all of them.
    let (_folder, path) = config_file("full = true\nlora_r = 8\ncompute_dtype = \"bfloat16\"\n");
    parse(&format!("--data d --config {path}")).unwrap();
}

#[test]
fn flags_win_over_the_file() {
    let (_folder, path) = config_file(
        "data = \"f.jsonl\"\nlora_r = 4\nlearning_rate = 1e-3\nquantization = \"none\"\ndtype = \"f32\"\nepochs = 2\n",
    );
    let config = parse(&format!("--config {path} --lora-r 8")).unwrap();
    assert_eq!(
        (
            config.lora.r,
            config.optimizer.learning_rate,
            config.run.epochs
        ),
        (8, Some(1e-3), Some(2.0))
    );
    assert_eq!(
        (config.model.quantization, config.model.dtype),
        (Some(Quantization::None), Dtype::F32)
    );
    assert_eq!(config.data.train, [Path::new("f.jsonl")]);
    assert_eq!(
        parse(&format!("--config {path} --data g.jsonl"))
            .unwrap()
            .data
            .train,
        [Path::new("g.jsonl")]
    );
}

#[test]
fn a_flag_takes_the_settings_of_what_it_replaces_back() {
    let (_folder, path) = config_file(
        "report_to = [\"tensorboard\"]\nlogging_dir = \"l\"\nlr_schedule = \"warmup_stable_decay\"\nlr_decay_steps = 2\nmin_lr_rate = 0.1\n",
    );
    let with = |flags: &str| parse(&format!("--data d --config {path} {flags}")).unwrap();
    let config = with("--report-to none");
    assert_eq!(
        (config.run.logging_dir, config.run.report_to),
        (None, vec!["none".to_owned()])
    );
    assert!(with("--report-to tensorboard").run.logging_dir.is_some());
    let shape = |flags: &str| {
        let optimizer = with(flags).optimizer;
        (optimizer.lr_decay_steps, optimizer.min_lr_rate)
    };
    assert_eq!(shape("--lr-schedule cosine"), (None, None));
    // Other schedules have this setting, too.
    assert_eq!(shape("--lr-schedule polynomial"), (None, Some(0.1)));
    assert_eq!(
        shape("--lr-schedule warmup_stable_decay"),
        (Some(2), Some(0.1))
    );
}

#[test]
fn errors_in_the_file_name_the_line() {
    for (text, expected) in [
        (
            "data = \"f\"\nlora_rr = 4\n",
            "line 2: unknown setting `lora_rr`; the nearest one is `lora_r`",
        ),
        (
            "learning-rate = 4\n",
            "line 1: unknown setting `learning-rate`; the nearest one is `learning_rate`",
        ),
        (
            "data = \"f\"\n\nlora_r = \"many\"\n",
            "line 3: `lora_r`: expected a whole number, 0 or more, found string \"many\"",
        ),
        ("data = ", "line 1: "),
    ] {
        let (_folder, path) = config_file(text);
        let message = error(&format!("--config {path}"));
        assert!(
            message.contains(&path) && message.contains(expected),
            "{message}"
        );
    }
    assert!(error("--config no/such.toml").starts_with("--config no/such.toml: "));
    for (text, found) in [
        ("# axolotl\nbase_model: x\nlora_r: 8\n", "YAML"),
        ("---\nstage: sft\n", "YAML"),
        ("{\"lora_r\": 8}", "JSON"),
    ] {
        let (_folder, path) = config_file(text);
        let message = error(&format!("--config {path}"));
        let expected = format!(
            "--config {path}: expected TOML, with lines such as `lora_r = 8`; found {found}"
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn two_lengths_of_a_warm_up_are_one_too_many() {
    let (_folder, path) = config_file("warmup_ratio = 0.5\nwarmup_steps = 0\n");
    let message = error(&format!("--data d --config {path}"));
    assert!(
        message.starts_with(&format!(
            "{path}: --warmup-ratio and --warmup-steps say the same"
        )),
        "{message}"
    );
    // A flag wins over the file's other way of saying it.
    let (_folder, path) = config_file("warmup_ratio = 0.5\n");
    let optimizer = parse(&format!("--data d --config {path} --warmup-steps 4"));
    assert_eq!(optimizer.unwrap().optimizer.warmup_steps, Some(4));
    // A run writes the default of the one that it does not use.
    let config = parse("--data d --warmup-steps 4 --output /tmp/none/x").unwrap();
    let (_folder, path) = config_file(&config.to_toml());
    let read = parse(&format!("--config {path} --output /tmp/none/x"));
    assert_eq!(read.unwrap(), config);
}

#[test]
fn a_written_configuration_gives_the_same_run() {
    let config = parse("--data a.jsonl --eval-data e.jsonl --lr-schedule warmup_stable_decay --lr-decay-steps 2 --min-lr-rate 0.1 --eval-steps 2 --load-best --early-stopping-patience 3 --report-to tensorboard --logging-dir l --packing --full --max-steps 5 --weight-decay 0.1 --output /tmp/none/x").unwrap();
    let (_folder, path) = config_file(&config.to_toml());
    assert_eq!(
        parse(&format!("--config {path} --output /tmp/none/x")).unwrap(),
        config,
        "{}",
        config.to_toml()
    );
}

#[test]
fn lists_of_a_file_may_be_texts_with_commas() {
    for (text, columns, modules) in [
        (
            "columns = \"prompt=a, completion=b\"\ntarget_modules = \"q_proj,v_proj\"\n",
            &["prompt=a", "completion=b"][..],
            &["q_proj", "v_proj"][..],
        ),
        (
            "columns = [\"prompt=a,completion=b\", \"system=c\"]\ntarget_modules = [\"q_proj,v_proj\", \"k_proj\"]\n",
            &["prompt=a", "completion=b", "system=c"],
            &["q_proj", "v_proj", "k_proj"],
        ),
        (
            "columns = [\"prompt=Question (short, English)\", \"completion=A\"]\ntarget_modules = \"q_proj\"\n",
            &["prompt=Question (short, English)", "completion=A"],
            &["q_proj"],
        ),
    ] {
        let (_folder, path) = config_file(text);
        let config = parse(&format!("--data d --config {path}")).unwrap();
        assert_eq!(config.data.columns, columns);
        assert_eq!(config.lora.target_modules, modules);
    }
    let (_folder, path) =
        config_file("modules_to_save = \"embed_tokens,lm_head\"\nreport_to = \"none\"\n");
    let config = parse(&format!("--data d --config {path} --device cpu")).unwrap();
    assert_eq!(config.lora.modules_to_save, ["embed_tokens", "lm_head"]);
}

#[test]
fn flags_of_devices_win_over_those_of_a_file() {
    let two = ["cuda:0", "cuda:1"];
    let (_folder, path) = config_file("device = \"auto\"\ndevices = [\"cuda:0\", \"cuda:1\"]\n");
    let config = parse(&format!("--data d --config {path}")).unwrap();
    assert_eq!(config.model.devices, two);
    let config = parse(&format!("--data d --config {path} --device cpu")).unwrap();
    assert_eq!(
        (config.model.device.as_str(), config.num_devices()),
        ("cpu", 1)
    );

    let (_folder, path) = config_file("device = \"cuda:2\"\n");
    let config = parse(&format!("--data d --config {path} --devices cuda:0,cuda:1")).unwrap();
    assert_eq!(config.model.devices, two);
    let again = toml::from_str::<toml::Table>(&config.to_toml()).unwrap();
    assert_eq!(again["devices"].as_array().unwrap().len(), 2);

    let (_folder, path) = config_file("device = \"cuda:2\"\ndevices = \"cuda:0\"\n");
    let message = error(&format!("--data d --config {path}"));
    assert!(
        message.contains("--device cuda:2 and --devices cuda:0"),
        "{message}"
    );
}

#[test]
fn what_is_wrong_with_a_value_of_a_file_names_the_file() {
    let (_folder, path) = config_file("columns = \"a\"\nlora_dropout = 2\n");
    let message = error(&format!("--data d --config {path}"));
    let expected = format!("{path}: --columns: expected PART=FIELD");
    assert!(message.starts_with(&expected), "{message}");
    let message = error(&format!("--data d --config {path} --columns b"));
    assert!(message.starts_with("--columns: expected"), "{message}");
    let message = error(&format!("--data d --config {path} --columns prompt=a"));
    let expected = format!("{path}: --lora-dropout: expected");
    assert!(message.starts_with(&expected), "{message}");
}
