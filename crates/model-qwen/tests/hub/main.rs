//! Downloads against a server on this machine that answers as the Hugging Face Hub does.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use model_qwen::{HubOptions, ResolveError, resolve_model, resolve_model_with, unfetched};

mod server;

use server::{COMMIT, Hub, SINGLE};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn downloads_once_then_uses_the_cache() {
    let hub = Hub::start(&SINGLE, None);
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    let folder = resolve_model_with("org/name", &options).unwrap();
    let standard = format!("models--org--name/snapshots/{COMMIT}");
    assert_eq!(folder, cache.path().join(standard));
    assert_eq!(names(&folder), SINGLE.map(|(name, _)| name)[1..]);
    for (name, text) in &SINGLE[1..] {
        assert_eq!(&std::fs::read_to_string(folder.join(name)).unwrap(), text);
    }

    let before = hub.num_requests();
    assert_eq!(resolve_model_with("org/name", &options).unwrap(), folder);
    let offline = HubOptions {
        offline: true,
        ..options
    };
    assert_eq!(resolve_model_with("org/name", &offline).unwrap(), folder);
    assert_eq!(hub.num_requests(), before, "the cache needs no network");
}

/// Puts a model into a cache as a program leaves it that needed no more; its snapshot.
fn model_without_small_files(cache: &Path) -> PathBuf {
    let repository = cache.join("models--org--name");
    let folder = repository.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::write(folder.join(name), "{}").unwrap();
    }
    folder
}

#[test]
fn small_files_that_the_cache_lacks_are_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let folder = model_without_small_files(cache.path());
    let hub = Hub::start(&SINGLE, None);
    let options = hub.options(cache.path());
    let offline = HubOptions {
        offline: true,
        ..options.clone()
    };
    assert_eq!(resolve_model_with("org/name", &offline).unwrap(), folder);
    assert_eq!(hub.num_requests(), 0);
    let small = [
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "modules.json",
    ];
    assert_eq!(unfetched(folder.to_str().unwrap()), small);

    assert_eq!(resolve_model_with("org/name", &options).unwrap(), folder);
    assert_eq!(names(&folder), SINGLE.map(|(name, _)| name)[1..]);
    assert_eq!(
        std::fs::read_to_string(folder.join("config.json")).unwrap(),
        "{}"
    );
    let before = hub.num_requests();
    assert_eq!(resolve_model_with("org/name", &options).unwrap(), folder);
    assert_eq!(
        hub.num_requests(),
        before,
        "what the repository lacks is known"
    );
    assert_eq!(unfetched(folder.to_str().unwrap()), [""; 0]);

    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = resolve_model_with("org/name", &offline)
        .unwrap_err()
        .to_string();
    assert!(error.contains("which lacks model.safetensors"), "{error}");
}

/// A model that is there starts beside a Hub that takes connections and says nothing.
#[test]
fn a_silent_hub_holds_up_no_model_of_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let folder = model_without_small_files(cache.path());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = HubOptions {
        endpoint: format!("http://{}", silent.local_addr().unwrap()),
        token: None,
        cache_dir: cache.path().to_path_buf(),
        offline: false,
        progress: false,
    };
    let start = std::time::Instant::now();
    assert_eq!(resolve_model_with("org/name", &options).unwrap(), folder);
    let waited = start.elapsed().as_secs();
    assert!(waited < 20, "{waited} s");
}

#[test]
fn the_files_that_modules_name_are_fetched() {
    let modules = r#"[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"},
        {"path": "2_Normalize", "type": "x.Normalize"}, {"path": "../../evil", "type": "x.Evil"}]"#;
    let mut files = SINGLE.to_vec();
    files.extend([
        ("1_Pooling/config.json", r#"{"pooling_mode": "mean"}"#),
        ("modules.json", modules),
        ("sentence_bert_config.json", "{}"),
        ("config_sentence_transformers.json", "{}"),
        ("quantization_config.json", "{}"),
    ]);
    for ranges in [true, false] {
        let hub = Hub::start_with(&files, None, ranges);
        let cache = tempfile::tempdir().unwrap();
        let options = hub.options(cache.path());
        let folder = resolve_model_with("org/name", &options).unwrap();
        for (name, text) in &files[1..] {
            let found = std::fs::read_to_string(folder.join(name)).unwrap();
            assert_eq!(&found, text, "{name}");
        }
        assert_eq!(unfetched(folder.to_str().unwrap()), [""; 0]);
        // A snapshot that another program has begun.
        std::fs::remove_file(folder.join("1_Pooling/config.json")).unwrap();
        let missing = unfetched(folder.to_str().unwrap());
        assert_eq!(missing, ["1_Pooling/config.json"]);
        resolve_model_with("org/name", &options).unwrap();
        assert!(folder.join("1_Pooling/config.json").exists());
        let before = hub.num_requests();
        resolve_model_with("org/name", &options).unwrap();
        assert_eq!(hub.num_requests(), before);
    }
}

#[test]
fn a_mirror_without_ranges_is_enough() {
    let hub = Hub::start_with(&SINGLE, None, false);
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    let folder = resolve_model_with("org/name", &options).unwrap();
    assert!(folder.ends_with(COMMIT), "{}", folder.display());
    assert_eq!(names(&folder), SINGLE.map(|(name, _)| name)[1..]);
    for (name, text) in &SINGLE[1..] {
        assert_eq!(&std::fs::read_to_string(folder.join(name)).unwrap(), text);
    }
    let before = hub.num_requests();
    assert_eq!(resolve_model_with("org/name", &options).unwrap(), folder);
    assert_eq!(hub.num_requests(), before);
}

#[test]
fn shards_of_the_index_are_downloaded() {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let mut files = vec![
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", "one"),
    ];
    let cache = tempfile::tempdir().unwrap();
    // The second shard is missing: an error that names it, and the rest stays in the cache.
    let hub = Hub::start(&files, None);
    let error = resolve_model_with("org/name", &hub.options(cache.path())).unwrap_err();
    assert!(matches!(error, ResolveError::Network { .. }), "{error}");
    assert!(error.to_string().contains("model-2.safetensors"), "{error}");

    files.push(("model-2.safetensors", "two"));
    let hub = Hub::start(&files, None);
    let folder = resolve_model_with("org/name", &hub.options(cache.path())).unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.join("model-2.safetensors")).unwrap(),
        "two"
    );
    let requests = hub.requests.lock().unwrap();
    assert!(
        !requests
            .iter()
            .any(|path| path.ends_with("model-1.safetensors"))
    );
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    let hub = Hub::start(
        &[
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            (
                "model.safetensors.index.json",
                r#"{"weight_map": {"a": "../../evil"}}"#,
            ),
        ],
        None,
    );
    let cache = tempfile::tempdir().unwrap();
    let error = resolve_model_with("org/name", &hub.options(cache.path())).unwrap_err();
    assert!(error.to_string().contains("../../evil"), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    for (status, expected) in [
        (401, "HF_TOKEN"),
        (403, "accept its licence"),
        (404, "check the spelling"),
        (500, "HF_ENDPOINT to a mirror"),
    ] {
        let hub = Hub::start(&[], Some(status));
        let error = resolve_model_with("org/name", &hub.options(cache.path())).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected), "{status}: {message}");
        assert!(
            message.contains("org/name") && message.contains(&hub.address),
            "{message}"
        );
        assert!(!message.contains("hf_secret"), "{message}");
    }
    // Without the token the server refuses.
    let hub = Hub::start(&SINGLE, None);
    let anonymous = HubOptions {
        token: None,
        ..hub.options(cache.path())
    };
    let error = resolve_model_with("org/name", &anonymous).unwrap_err();
    assert!(
        matches!(error, ResolveError::Refused { status: 401, .. }),
        "{error}"
    );
}

#[test]
fn a_hub_with_too_many_requests_is_asked_again() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&SINGLE, Some(429));
    let start = std::time::Instant::now();
    let folder = resolve_model_with("org/name", &hub.options(cache.path())).unwrap();
    assert_eq!(names(&folder), SINGLE.map(|(name, _)| name)[1..]);
    assert!(start.elapsed().as_secs() >= 1);
    // An hour is too long to wait for.
    let hub = Hub::start(&SINGLE, Some(503));
    let cache = tempfile::tempdir().unwrap();
    let error = resolve_model_with("org/name", &hub.options(cache.path())).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("HTTP 503"), "{message}");
    assert!(message.contains("3600 seconds"), "{message}");
}

#[test]
fn an_empty_repository_is_called_that() {
    let cache = tempfile::tempdir().unwrap();
    for files in [&[][..], &[(".gitattributes", "x")]] {
        let hub = Hub::start(files, None);
        let error = resolve_model_with("org/name", &hub.options(cache.path())).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
    }
}

#[test]
fn a_token_that_no_header_carries_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&SINGLE, None);
    for (token, found) in [
        ("hf_a\nb", "'\\n' at character 5"),
        ("hf_é", "'é' at character 4"),
    ] {
        let options = HubOptions {
            token: Some(token.to_owned()),
            ..hub.options(cache.path())
        };
        let message = resolve_model_with("org/name", &options)
            .unwrap_err()
            .to_string();
        assert!(message.contains("HF_TOKEN"), "{message}");
        assert!(message.contains(found), "{message}");
        assert!(!message.contains("hf_"), "{message}");
    }
    assert_eq!(hub.num_requests(), 0);
}

#[test]
fn a_disk_that_takes_nothing_is_no_matter_of_mirrors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for ranges in [true, false] {
        let hub = Hub::start_with(&SINGLE, None, ranges);
        let error = resolve_model_with("org/name", &hub.options(&file.join("cache"))).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, ResolveError::Disk { .. }), "{message}");
        assert!(!message.contains("mirror"), "{message}");
        assert!(message.contains("HF_HUB_CACHE"), "{message}");
    }
}

#[test]
fn missing_files_are_named() {
    let cache = tempfile::tempdir().unwrap();
    for missing in ["config.json", "tokenizer.json", "model.safetensors"] {
        let files: Vec<_> = SINGLE
            .into_iter()
            .filter(|(name, _)| *name != missing)
            .collect();
        let hub = Hub::start(&files, None);
        let error = resolve_model_with("org/name", &hub.options(cache.path())).unwrap_err();
        match error {
            ResolveError::MissingFile {
                expected, found, ..
            } => {
                assert!(expected.starts_with(missing), "{expected}");
                assert!(found.contains("README.md"), "{found}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn without_network_the_error_says_so() {
    let cache = tempfile::tempdir().unwrap();
    // A port nobody listens on.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let options = HubOptions {
        endpoint,
        token: None,
        cache_dir: cache.path().to_path_buf(),
        offline: false,
        progress: false,
    };
    let error = resolve_model_with("org/name", &options).unwrap_err();
    assert!(matches!(error, ResolveError::Network { .. }), "{error}");
    assert!(
        error.to_string().contains("https://hf-mirror.com"),
        "{error}"
    );
    let offline = HubOptions {
        offline: true,
        ..options
    };
    let error = resolve_model_with("org/name", &offline).unwrap_err();
    assert!(matches!(error, ResolveError::Offline { .. }), "{error}");
}

#[test]
fn folders_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let error = resolve_model(path).unwrap_err();
    assert!(error.to_string().contains("an empty folder"), "{error}");
    std::fs::write(dir.path().join("model.gguf"), "x").unwrap();
    let error = resolve_model(path).unwrap_err();
    assert!(error.to_string().contains("found model.gguf"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(resolve_model(path).unwrap(), dir.path());
    let file = dir.path().join("model.gguf");
    let error = resolve_model(file.to_str().unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("a GGUF file, which is not read"),
        "{error}"
    );

    for given in ["./nowhere", "/nowhere/at/all", "gpt2", "a/b/c", ""] {
        let error = resolve_model(given).unwrap_err();
        assert!(
            matches!(error, ResolveError::NotAModel { .. }),
            "{given}: {error}"
        );
    }
}
