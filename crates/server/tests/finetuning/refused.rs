//! Jobs and files that are refused, with the reason.

use super::*;

#[test]
fn what_cannot_be_learnt_is_named() {
    let folder = TempDir::new().unwrap();
    let server = serve(
        folder.path(),
        &[
            "--enable-lora",
            "--max-lora-rank",
            "8",
            "--max-file-size",
            "100KiB",
        ],
    );
    let wrong = server.upload(
        "talk.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n{\"messages\": 3}\n",
    );
    let id = server.create(&wrong, json!({ "lora_r": 8 }));
    let job = server.wait_for(&id, "failed");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("talk.jsonl:2") && message.contains("messages"),
        "{message}"
    );
    assert!(
        !message.contains(folder.path().to_str().unwrap()),
        "{message}"
    );
    assert_eq!(job["error"]["code"], "invalid_training_file");
    assert_eq!(job["error"]["param"], "training_file");

    let file = server.upload("train.jsonl", &train_file());
    let settings = |settings: Value| json!({ "method": { "type": "supervised", "supervised": { "hyperparameters": settings } } });
    for (fields, param) in [
        (json!({ "model": "other" }), "model"),
        (json!({ "training_file": "file-x" }), "training_file"),
        (json!({ "validation_file": "../x" }), "validation_file"),
        (json!({ "suffix": "a/b" }), "suffix"),
        (json!({ "own_suffix": "a" }), "own_suffix"),
        (json!({ "seed": -1 }), "seed"),
        (
            json!({ "integrations": [{ "type": "wandb" }] }),
            "integrations",
        ),
        (
            json!({ "method": { "type": "reinforcement" } }),
            "method.type",
        ),
        (
            settings(json!({ "lora_rank": 4 })),
            "method.supervised.hyperparameters.lora_rank",
        ),
        (
            settings(json!({ "lora_r": 16 })),
            "method.supervised.hyperparameters.lora_r",
        ),
        (
            settings(json!({ "n_epochs": 0 })),
            "method.supervised.hyperparameters.n_epochs",
        ),
        (
            settings(json!({ "offload_activations": true })),
            "method.supervised.hyperparameters.offload_activations",
        ),
        (
            settings(json!({ "full": true })),
            "method.supervised.hyperparameters.full",
        ),
        (
            settings(json!({ "learning_rate": "fast" })),
            "method.supervised.hyperparameters.learning_rate",
        ),
        (
            json!({ "hyperparameters": { "n_epoch": 1 } }),
            "hyperparameters.n_epoch",
        ),
    ] {
        let mut body = json!({ "model": "bundled", "training_file": file });
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let (status, error) = server.post(JOBS, body);
        assert!(status == 400 || status == 404, "{fields}: {status} {error}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
    let fields = [("purpose", "fine-tune")];
    for (fields, file, param) in [
        (
            &[("purpose", "assistants")][..],
            Some(("a", "b")),
            "purpose",
        ),
        (&[][..], Some(("a", "b")), "purpose"),
        (&fields[..], None, "file"),
        (&fields[..], Some(("a", "")), "file"),
        (
            &[
                ("purpose", "fine-tune"),
                ("expires_after[anchor]", "created_at"),
            ][..],
            None,
            "expires_after",
        ),
        (&[("other", "x")][..], None, "other"),
    ] {
        let (status, error) = server.form(fields, file, &[]);
        assert_eq!(
            (status, &error["error"]["param"]),
            (400, &param.into()),
            "{error}"
        );
    }
    let large = "x".repeat(200 << 10);
    assert_eq!(server.form(&fields, Some(("a", &large)), &[]).0, 413);
    let strange = [("origin", "https://example.org")];
    assert_eq!(server.form(&fields, Some(("a", "b")), &strange).0, 403);
    let own = [("origin", server.url.as_str())];
    assert_eq!(server.form(&fields, Some(("a", "b")), &own).0, 200);
    assert_eq!(server.get("/v1/files?limit=0").0, 400);
    assert_eq!(server.get("/v1/files?sort=x").0, 400);
    let (_, files) = server.get("/v1/files?limit=1&order=asc");
    assert_eq!(
        (files["data"].as_array().unwrap().len(), &files["has_more"]),
        (1, &true.into())
    );
    // What was refused has left nothing.
    let parts = fs::read_dir(folder.path().join("files")).unwrap().flatten();
    assert_eq!(
        parts
            .filter(|entry| entry.file_name().to_string_lossy().starts_with('.'))
            .count(),
        0
    );
}

#[test]
fn names_of_other_trainers_lead_to_ours_and_metadata_has_limits() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), &["--enable-lora"]);
    let file = server.upload("train.jsonl", &train_file());
    let refused = |fields: Value| {
        let mut body = json!({ "model": "bundled", "training_file": file });
        let fields = fields.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        let (status, error) = server.post(JOBS, body);
        assert_eq!(status, 400, "{error}");
        error["error"]["message"].as_str().unwrap().to_owned()
    };
    for (name, own) in [
        ("lora_rank", "`lora_r`"),
        ("max_seq_length", "`max_length`"),
        ("num_train_epochs", "`n_epochs`"),
        ("lr", "`learning_rate`"),
        ("per_device_train_batch_size", "`batch_size`"),
    ] {
        let message = refused(json!({ "hyperparameters": { name: 4 } }));
        assert!(message.contains(own), "{name}: {message}");
    }
    let pairs = |count: usize| (0..count).map(|i| (i.to_string(), json!("x")));
    for (metadata, expected) in [
        (pairs(17).collect::<Value>(), "at most 16 pairs, found 17"),
        (json!({ "k".repeat(65): "x" }), "at most 64 characters"),
        (
            json!({ "k": "ä".repeat(513) }),
            "at most 512 characters, found 513",
        ),
        (json!({ "k": 1 }), "texts as values, found a number at `k`"),
    ] {
        let message = refused(json!({ "metadata": metadata }));
        assert!(message.contains(expected), "{message}");
    }
    let mut largest: serde_json::Map<_, _> = pairs(15).collect();
    largest.insert("ä".repeat(64), "ä".repeat(512).into());
    let settings = json!({ "max_steps": 1, "eval_steps": 1, "load_best": true });
    let body = json!({
        "model": "bundled", "training_file": file, "validation_file": file, "metadata": largest,
        "hyperparameters": settings,
    });
    assert_eq!(server.post(JOBS, body).0, 200);
    // What a job takes, its preview takes.
    let preview = |validation: Value| {
        let body = json!({ "training_file": file, "validation_file": validation, "hyperparameters": settings });
        server.post("/v1/fine_tuning/preview", body)
    };
    let (status, shown) = preview(file.as_str().into());
    assert_eq!(
        (status, &shown["num_examples"]),
        (200, &48.into()),
        "{shown}"
    );
    let (status, error) = preview(Value::Null);
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &"hyperparameters.eval_steps".into()),
        "{error}"
    );
    let (status, error) = preview("file-x".into());
    assert_eq!(
        (status, &error["error"]["param"]),
        (404, &"validation_file".into()),
        "{error}"
    );
}
