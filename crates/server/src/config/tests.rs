use std::io::Write as _;

use clap::CommandFactory as _;

use super::*;

fn config(args: &[&str]) -> Result<Config, ConfigError> {
    Config::from_command_line(std::iter::once(&"server").chain(args))
}

fn with_file(toml: &str, args: &[&str]) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    config(&[&["--config", path], args].concat())
}

#[test]
fn the_default_is_a_command_line_without_flags() {
    let without_flags = format!("{:?}", config(&[]).unwrap());
    assert_eq!(without_flags, format!("{:?}", Config::default()));
    let lora = config(&["--enable-lora"]).unwrap().lora;
    assert_eq!(lora, Some(LoraOptions::default()));
}

#[test]
fn settings_that_no_flag_can_have_are_refused_too() {
    for (config, flag) in [
        (
            Config {
                max_model_len: MaxModelLen::Tokens(0),
                ..Config::default()
            },
            "--max-model-len",
        ),
        (
            Config {
                kv_cache_dtype: Dtype::F16,
                ..Config::default()
            },
            "--kv-cache-dtype",
        ),
    ] {
        let error = config.check().unwrap_err().to_string();
        assert!(error.starts_with(flag), "{error}");
    }
}

#[test]
fn defaults_are_vllms() {
    let config = config(&[]).unwrap();
    assert_eq!(
        config.listen,
        Listen::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 8000
        }
    );
    assert_eq!(
        (
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.block_size
        ),
        (256, None, 16)
    );
    assert_eq!(
        (config.max_model_len, config.max_num_queued_reqs),
        (MaxModelLen::Auto, 1024)
    );
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    assert!(config.enable_prefix_caching && config.lora.is_none() && config.model.is_none());
}

#[test]
fn every_flag_is_documented() {
    for arg in Args::command().get_arguments() {
        assert!(
            arg.get_help()
                .is_some_and(|help| help.to_string().len() > 15),
            "{}",
            arg.get_id()
        );
    }
    Args::command().debug_assert();
}

#[test]
fn spellings_and_repetitions() {
    let config = config(&[
        "--max_model_len=8k",
        "--enable_lora",
        "--lora_modules",
        "a=/x",
        r#"{"name": "b", "path": "/y"}"#,
        "--lora-modules",
        "c=/z_z",
        "--no-enable-prefix-caching",
        "--api-key",
        "k1",
        "k2",
        "--dtype",
        "half",
        "--model",
        "m",
    ])
    .unwrap();
    assert_eq!(config.max_model_len, MaxModelLen::Tokens(8000));
    let lora = config.lora.unwrap();
    assert_eq!(
        lora.modules
            .iter()
            .map(|m| m.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(lora.modules[2].path, PathBuf::from("/z_z"));
    assert!(!config.enable_prefix_caching);
    assert_eq!(
        (config.api_keys.len(), config.dtype, config.model.as_deref()),
        (2, Dtype::F16, Some("m"))
    );
    assert!(config.api_keys[1].matches("k2") && !config.api_keys[1].matches("k"));
    assert!(!config.api_keys[1].matches("k2k2") && !config.api_keys[1].matches(""));
    assert!(!format!("{:?}", config.api_keys).contains("k1"));
    assert_eq!(config.api_keys[0], ApiKey::new("k1"));
    assert!(!ApiKey::new("").matches(""));
}

#[test]
fn keys_come_from_a_file_and_are_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let keys = write("keys", "\u{feff}sk-first\r\n\n  sk-second \n");
    let flags = ["server", "--api-key", "sk-third", "--api-key-file", &keys];
    let config = Config::from_command_line(flags).unwrap();
    for key in ["sk-first", "sk-second", "sk-third"] {
        assert!(config.api_keys.iter().any(|known| known.matches(key)));
    }
    assert_eq!(config.api_keys.len(), 3);
    let args = <Args as clap::Parser>::try_parse_from(flags).unwrap();
    for shown in [format!("{config:?}"), format!("{args:?}")] {
        assert!(!shown.contains("sk-"), "{shown}");
    }
    for (name, text) in [
        ("a.toml", "api-key = [\"sk-first\", \nport = 3"),
        ("b.toml", "api_key = \"sk-first\" 3"),
        ("c.toml", "api-key = [[\"sk-first\"]]"),
        ("d.toml", "api-key = { a = \"sk-first\" }\nport = true"),
    ] {
        let file = write(name, text);
        let error = Config::from_command_line(["server", "--config", &file]).unwrap_err();
        assert!(!error.to_string().contains("sk-"), "{error}");
    }
    for (name, text) in [("empty", "\n \n"), ("/no/such/file", "")] {
        let file = match text {
            "" => name.to_owned(),
            text => write(name, text),
        };
        let error = Config::from_command_line(["server", "--api-key-file", &file]).unwrap_err();
        assert!(error.to_string().contains("--api-key-file"), "{error}");
    }
}

#[test]
fn an_unknown_flag_names_the_nearest_one() {
    for (given, nearest) in [
        ("--max-token-len", "--max-model-len"),
        ("--max_token_len=5", "--max-model-len"),
        ("--gpu-memory-utilisation", "--gpu-memory-utilization"),
        ("--servedmodelname", "--served-model-name"),
        ("--lora-module", "--lora-modules"),
    ] {
        let message = config(&[given]).unwrap_err().to_string();
        assert!(
            message.contains(nearest) && message.contains("unexpected argument"),
            "{given}: {message}"
        );
    }
}

#[test]
fn bad_values_name_their_flag() {
    for (args, flag) in [
        (vec!["--max-model-len", "8x"], "--max-model-len"),
        (
            vec!["--gpu-memory-utilization", "90"],
            "--gpu-memory-utilization",
        ),
        (vec!["--block-size", "0"], "--block-size"),
        (vec!["--max-num-seqs", "-1"], "--max-num-seqs"),
        (vec!["--api-key", ""], "--api-key"),
        (vec!["--api-key", "käy"], "--api-key"),
        (vec!["--api-key", "at its end "], "--api-key"),
        (vec!["--lora-roots", "/tmp"], "--enable-lora"),
        (
            vec!["--otlp-traces-endpoint", "http://127.0.0.1:99999"],
            "--otlp-traces-endpoint",
        ),
        (vec!["--max-loras", "0"], "--max-loras"),
        (vec!["--max-lora-rank", "0"], "--max-lora-rank"),
        (vec!["--lora-modules", "a=b"], "--enable-lora"),
        (
            vec!["--enable-lora", "--lora-modules", "a=b", "a=c"],
            "--lora-modules",
        ),
        (
            vec!["--enable-lora", "--max-loras", "4", "--max-cpu-loras", "2"],
            "--max-cpu-loras",
        ),
        (
            vec!["--speculative-config", r#"{"method": "eagle"}"#],
            "--speculative-config",
        ),
        (vec!["--allowed-origins", "[1]"], "--allowed-origins"),
        (
            vec!["--allowed-origins", "example.org"],
            "--allowed-origins: expected `*`, `null`, or origins such as https://example.org",
        ),
        (
            vec!["--allowed-origins", "https://a.example/page"],
            "found \"https://a.example/page\"",
        ),
        (vec!["--allowed-methods", "G T"], "--allowed-methods"),
        (
            vec!["--default-chat-template-kwargs", "[]"],
            "--default-chat-template-kwargs",
        ),
        (
            vec!["--default-chat-template-kwargs", r#"{"tools": [1]}"#],
            "--default-chat-template-kwargs",
        ),
        (vec!["--max-logprobs", "-2"], "--max-logprobs"),
        (
            vec!["--structured-outputs-config", "{\"backend\": \"outlines\"}"],
            "--structured-outputs-config",
        ),
        (
            vec!["--guided-decoding-backend", "outlines"],
            "--guided-decoding-backend",
        ),
        (
            vec!["--tensor-parallel-size", "2"],
            "--tensor-parallel-size",
        ),
        (vec!["--chat-template", "/no/such/file"], "--chat-template"),
        (vec!["--quantization", "awq"], "--quantization"),
        (vec!["--port", "99999"], "--port"),
        (vec!["--config", "/no/such/file"], "/no/such/file"),
    ] {
        let message = config(&args).unwrap_err().to_string();
        assert!(message.contains(flag), "{args:?}: {message}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let toml = r#"
        model = "from-file"
        max-model-len = "8k"
        max_num_seqs = 3
        port = 9000
        enable-lora = true
        enable-prefix-caching = false
        gpu-memory-utilization = 0.5
        served-model-name = ["a", "b"]
        lora-modules = ["x=/x", { name = "y", path = "/y" }]
    "#;
    let file = with_file(toml, &[]).unwrap();
    assert_eq!(
        (file.model.as_deref(), file.max_num_seqs),
        (Some("from-file"), 3)
    );
    assert_eq!(file.max_model_len, MaxModelLen::Tokens(8000));
    assert_eq!(file.served_model_names, ["a", "b"]);
    assert_eq!(file.memory.gpu_memory_utilization, Some(0.5));
    assert_eq!(file.lora.unwrap().modules.len(), 2);
    assert!(!file.enable_prefix_caching);
    let table = "speculative-config = { method = 'ngram', num_speculative_tokens = 5, prompt_lookup_max = 4, prompt_lookup_min = 2 }";
    assert_eq!(
        with_file(table, &[]).unwrap().speculation,
        Speculation::Ngram(NgramConfig::default())
    );
    let off = with_file(table, &["--speculative-config", "off"]).unwrap();
    assert_eq!(off.speculation, Speculation::Off);

    let flags = [
        "mine",
        "--max-num-seqs=4",
        "--served-model-name=c",
        "--enable-prefix-caching",
        "--host",
        "::1",
    ];
    let both = with_file(toml, &flags).unwrap();
    assert_eq!(
        (both.model.as_deref(), both.max_num_seqs),
        (Some("mine"), 4)
    );
    assert_eq!(both.served_model_names, ["c"]);
    assert_eq!(
        both.listen,
        Listen::Tcp {
            host: "::1".to_owned(),
            port: 9000
        }
    );
    assert!(both.enable_prefix_caching);
    let bracketed = with_file(toml, &["--host", "[::1]"]).unwrap();
    assert_eq!(bracketed.listen, both.listen);
    assert_eq!(
        with_file(toml, &["--uds", "/tmp/s"]).unwrap().listen,
        Listen::Unix("/tmp/s".into())
    );
}

#[test]
fn bad_files_are_refused() {
    for (toml, expected) in [
        ("max-token-len = 5", "did you mean `max-model-len`"),
        (
            "config = 'x'",
            "key `config`: a file of settings names no other one",
        ),
        ("port = ", "line 1"),
        ("port = true", "`port`"),
        ("port = 'x'", "--port"),
        ("enable-lora = 1", "true or false"),
        ("block-size = [1, [2]]", "block-size"),
    ] {
        let message = with_file(toml, &[]).unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains("--config"),
            "{toml}: {message}"
        );
    }
}

#[test]
fn origins_are_written_as_browsers_send_them() {
    for (text, expected) in [
        ("https://A.example/", Some("https://a.example")),
        ("http://localhost:3000", Some("http://localhost:3000")),
        ("app-1://bundle", Some("app-1://bundle")),
        ("null", Some("null")),
        ("*.example.org", None),
        ("https://", None),
    ] {
        let found = super::api::origin(text);
        assert_eq!(
            found.as_ref().map(|found| found.to_str().unwrap()),
            expected,
            "{text}"
        );
    }
}

/// Such a value would be taken for the model.
#[test]
fn a_value_behind_a_switch_is_refused() {
    for (flags, expected) in [
        (
            &["--model", "m", "--enforce-eager", "false"][..],
            "--enforce-eager takes no value, found false; leave the flag out, or write --no-enforce-eager",
        ),
        (
            &["--enable-prefix-caching=True"],
            "--enable-prefix-caching takes no value, found True; write --enable-prefix-caching alone",
        ),
        (
            &["--no-page", "off", "m"],
            "--no-page takes no value, found off; leave the flag out",
        ),
        (
            &["--no-enable-prefix-caching", "0"],
            "leave the flag out, or write --enable-prefix-caching",
        ),
        (
            &["--trust-remote-code", "true"],
            "--trust-remote-code takes no value, found true; write --trust-remote-code alone",
        ),
        (
            &["--enable-lora="],
            "--enable-lora takes no value, found \"\"; write --enable-lora alone",
        ),
        (
            &["--enable-lora=maybe"],
            "--enable-lora takes no value, found maybe; write --enable-lora alone",
        ),
    ] {
        let error = config(flags).unwrap_err().to_string();
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    let model = config(&["--enforce-eager", "org/true"]).unwrap().model;
    assert_eq!(model.as_deref(), Some("org/true"));
}

#[test]
fn whole_numbers_are_named() {
    for flags in [
        ["--seed", "-5"],
        ["--max-num-seqs", "abc"],
        ["--max-loras", "1.5"],
        ["--shutdown-timeout", ""],
    ] {
        let error = config(&flags).unwrap_err().to_string();
        let expected = format!("expected a whole number, 0 or more, found `{}`", flags[1]);
        assert!(error.contains(&expected), "{error}");
    }
    let error = config(&["--port", "70000"]).unwrap_err().to_string();
    let expected = "expected a whole number from 0 to 65535, found `70000`";
    assert!(error.contains(expected), "{error}");
}
