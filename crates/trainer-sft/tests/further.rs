//! Adapters that a run trains further: what they bring is trained and written, and what is wrong with them is theirs.

#![allow(clippy::unwrap_used)]

#[path = "support/runs.rs"]
#[allow(
    dead_code,
    reason = "these tests go on by the settings that a run has written"
)]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use lora_4bit::peft::{LoraAdapter, LoraConfig};
use trainer_sft::Training;
use trainer_sft::args::Args;
use trainer_sft::burn::tensor::Device;
use trainer_sft::config::{Config, Method};

use self::support::{config, run};

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// An adapter in `dir/start`, of one step, as PEFT writes it after `change`.
fn start(dir: &Path, modules: &[&str], change: impl FnOnce(&mut LoraAdapter)) -> PathBuf {
    let first = dir.join("first");
    let own = config(&first, |config| {
        config.lora.r = 2;
        config.lora.target_modules = vec!["q_proj".to_owned()];
        config.lora.modules_to_save = modules.iter().map(|&name| name.to_owned()).collect();
        config.run.max_steps = Some(1);
        config.run.save_steps = None;
    });
    run(&own, &Device::flex()).unwrap();
    let mut adapter = LoraAdapter::load(&first).unwrap();
    change(&mut adapter);
    let folder = dir.join("start");
    adapter.save(&folder).unwrap();
    folder
}

/// `modules_to_save` of one weight with two names, as PEFT writes them with `ensure_weight_tying`.
fn tie(adapter: &mut LoraAdapter) {
    let table = adapter.saved[EMBEDDING].clone();
    adapter.saved.insert(HEAD.to_owned(), table);
    adapter.config.modules_to_save = vec!["embed_tokens".to_owned(), EMBEDDING.to_owned()];
    adapter.config.ensure_weight_tying = true;
}

fn further(config: &mut Config, adapter: &Path) {
    config.lora = Config::new("x").lora;
    config.run.adapter = Some(adapter.to_path_buf());
}

#[test]
fn a_tied_head_is_trained_and_written_and_its_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = start(dir.path(), &["embed_tokens"], tie);
    let before = LoraAdapter::load(&adapter).unwrap();
    let (whole, settings) = trained(dir.path(), &adapter, |config| {
        config.optimizer.learning_rate = Some(1e-2);
    });
    for folder in [whole.clone(), whole.join("checkpoint-2")] {
        let after = LoraAdapter::load(&folder).unwrap();
        let modules: Vec<&str> = after.saved.keys().map(String::as_str).collect();
        assert_eq!(modules, [HEAD, EMBEDDING]);
        for module in [EMBEDDING, HEAD] {
            assert_ne!(after.saved[module], before.saved[module], "{module}");
        }
        // What the file says is what it holds, so that PEFT looks for no other tensor.
        let text = fs::read(folder.join("adapter_config.json")).unwrap();
        let config = LoraConfig::from_json(&text).unwrap();
        assert_eq!(config.modules_to_save, ["embed_tokens", HEAD]);
        assert!(!config.ensure_weight_tying);
    }
    assert_eq!(settings.lora.modules_to_save, ["embed_tokens", HEAD]);
}

/// The settings that `--resume` reads in the folder of a run.
fn settings_to_resume(run: &Path) -> Config {
    let mut settings = Args::from_file(&run.join("run.toml")).unwrap();
    settings.lora.adapter = None;
    // These runs have records in memory.
    settings.data.data = vec!["none.jsonl".into()];
    let mut config = Config::from_args(&settings).unwrap();
    config.data.train = Vec::new();
    config
}

/// Trains an adapter further in `dir/whole`, and the last step once more from the checkpoint, by the settings that the run has
/// written: both write the same weights. Gives the folder and these settings.
fn trained(dir: &Path, adapter: &Path, change: impl FnOnce(&mut Config)) -> (PathBuf, Config) {
    let whole = dir.join("whole");
    let own = config(&whole, |config| {
        further(config, adapter);
        change(config);
    });
    run(&own, &Device::flex()).unwrap();
    let settings = settings_to_resume(&whole);
    let mut resumed = settings.clone();
    resumed.run.output = dir.join("resumed");
    resumed.run.numbered = false;
    resumed.run.resume = Some(whole.join("checkpoint-2"));
    run(&resumed, &Device::flex()).unwrap();
    let [one, other] = [&whole, &resumed.run.output]
        .map(|folder| fs::read(folder.join("adapter_model.safetensors")).unwrap());
    assert!(one == other, "the resumed run has other weights");
    (whole, settings)
}

#[test]
fn full_names_of_saved_modules_are_settings_that_a_run_reads_again() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = start(dir.path(), &["embed_tokens"], |adapter| {
        adapter.config.modules_to_save = vec![EMBEDDING.to_owned()];
    });
    let (_, settings) = trained(dir.path(), &adapter, |_| {});
    assert_eq!(settings.lora.modules_to_save, ["embed_tokens"]);
}

#[test]
fn an_adapter_keeps_its_dropout_unless_another_one_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = start(dir.path(), &[], |adapter| adapter.config.lora_dropout = 0.1);
    for (given, expected) in [(None, 0.1), (Some(0.0), 0.0), (Some(0.3), 0.3)] {
        let output = dir.path().join(format!("{expected}"));
        let own = config(&output, |config| {
            further(config, &adapter);
            config.lora.dropout = given;
            config.run.max_steps = Some(1);
        });
        run(&own, &Device::flex()).unwrap();
        let after = LoraAdapter::load(&output).unwrap();
        assert_eq!(after.config.lora_dropout, expected, "{given:?}");
        let settings = settings_to_resume(&output);
        assert_eq!(settings.lora.dropout, Some(expected), "{given:?}");
    }
}

#[test]
fn what_an_adapter_has_and_a_run_cannot_have_is_said_of_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = start(dir.path(), &[], |_| {});
    type Change = fn(&mut LoraAdapter);
    for (method, change, parts) in [
        (
            Method::Dpo,
            (|adapter| adapter.config.lora_dropout = 0.1) as Change,
            &["`lora_dropout` is 0.1", "--method dpo", "--lora-dropout 0"][..],
        ),
        (
            Method::Orpo,
            |adapter| adapter.config.lora_dropout = 0.1,
            &["`lora_dropout` is 0.1", "--method orpo"],
        ),
        (
            Method::Sft,
            |adapter| adapter.config.lora_dropout = 0.995,
            &["`lora_dropout`: expected", "0.995", "--lora-dropout"],
        ),
        (
            Method::Sft,
            |adapter| adapter.config.lora_alpha = -1.0,
            &["`lora_alpha`: expected", "-1", "merge"],
        ),
    ] {
        let mut changed = LoraAdapter::load(&adapter).unwrap();
        change(&mut changed);
        let folder = dir.path().join("changed");
        changed.save(&folder).unwrap();
        refused(&folder, method, parts);
    }
    // With embeddings, of which a method has no reference.
    let dir = tempfile::tempdir().unwrap();
    let tied = start(dir.path(), &["embed_tokens"], tie);
    for (method, flag, instead) in [
        (Method::Dpo, "--method dpo", "--method orpo"),
        (Method::Kto, "--method kto", "merge"),
    ] {
        let parts = [
            "`modules_to_save` is embed_tokens, lm_head",
            flag,
            instead,
            "merge the adapter",
        ];
        let said = refused(&tied, method, &parts);
        assert!(!said.contains("--modules-to-save"), "{said}");
    }
}

/// What is said of a run of `method` that the adapter in `folder` makes impossible.
fn refused(folder: &Path, method: Method, parts: &[&str]) -> String {
    let own = config(&folder.with_file_name("o"), |config| {
        further(config, folder);
        config.method.method = method;
        config.run.batch_size = 2;
    });
    let training = Training::new(&own).device(&Device::flex());
    let said = match training.records(support::records()).plan() {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{method:?} takes the adapter"),
    };
    let file = folder.join("adapter_config.json").display().to_string();
    assert!(said.starts_with(&file), "{said}");
    for part in parts {
        assert!(said.contains(part), "{said}\nwithout {part}");
    }
    said
}
