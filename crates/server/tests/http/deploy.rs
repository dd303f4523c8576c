//! The files of examples/deploy: flags and metrics that they name exist, and times fit together.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::CommandFactory as _;
use serde::Deserialize as _;

use super::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/deploy")
        .join(name)
}

/// The documents of a file.
fn documents(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path(name)).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{name}: {e}")))
        .collect()
}

/// The arguments of containers that run the server: those of `kubernetes.yaml`, and of the chart as it would write them.
fn command_lines() -> Vec<Vec<String>> {
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().unwrap().iter();
        all.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut lines = Vec::new();
    for document in documents("kubernetes.yaml") {
        if let Some(containers) = document.pointer("/spec/template/spec/containers") {
            let containers = containers.as_array().unwrap();
            lines.extend(containers.iter().map(|container| texts(&container["args"])));
        }
    }
    for model in documents("production-stack-values.yaml")[0]["servingEngineSpec"]["modelSpec"]
        .as_array()
        .unwrap()
    {
        let config = &model["vllmConfig"];
        let start = [
            "serve",
            model["modelURL"].as_str().unwrap(),
            "--host",
            "0.0.0.0",
            "--port",
            "8000",
        ];
        let mut line: Vec<String> = start.map(str::to_owned).to_vec();
        for (key, flag) in [
            ("maxModelLen", "--max-model-len"),
            ("maxNumSeqs", "--max-num-seqs"),
            ("maxLoras", "--max_loras"),
        ] {
            line.extend([flag.to_owned(), config[key].to_string()]);
        }
        line.extend(["--enable-lora", "--enable-prefix-caching"].map(str::to_owned));
        line.extend(texts(&config["extraArgs"]));
        lines.push(line);
    }
    lines
}

#[test]
fn command_lines_are_understood() {
    let lines = command_lines();
    assert_eq!(lines.len(), 2);
    for line in lines {
        let program = std::iter::once("server".to_owned());
        let config = server::Config::from_command_line(program.chain(line.clone()));
        let config = config.unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert_eq!(
            config.listen,
            server::config::Listen::Tcp {
                host: "0.0.0.0".to_owned(),
                port: 8000
            }
        );
        assert!(config.lora.is_some());
    }
}

/// Also in comments and texts, a flag of the server is one.
#[test]
fn every_flag_that_is_named_exists() {
    let command = server::args::Args::command();
    let own: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .map(|long| format!("--{long}"))
        .collect();
    let flag = fancy_regex::Regex::new(r"(?<![\w-])--[a-z][a-z-]+").unwrap();
    for name in ["kubernetes.yaml", "production-stack-values.yaml"] {
        let text = std::fs::read_to_string(path(name)).unwrap();
        let mut num = 0;
        for found in flag.find_iter(&text) {
            let found = found.unwrap().as_str();
            assert!(own.contains(found), "{name}: {found}");
            num += 1;
        }
        assert!(num > 3, "{name}");
    }
}

#[test]
fn a_pod_ends_after_its_requests() {
    let server = documents("kubernetes.yaml");
    let pod = &server[0]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        .as_u64()
        .unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let arguments = container["args"].as_array().unwrap().iter();
    let timeout: u64 = arguments
        .filter_map(|argument| {
            argument
                .as_str()?
                .strip_prefix("--shutdown-timeout=")?
                .parse::<u64>()
                .ok()
        })
        .sum();
    assert!(
        timeout > 0 && grace >= pause + timeout + 5,
        "{grace} {pause} {timeout}"
    );
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(
            container[probe]["httpGet"],
            json!({"path": "/health", "port": "http"})
        );
    }
    let labels = &server[0]["spec"]["template"]["metadata"]["labels"];
    let pool = documents("inference-pool.yaml");
    let selector = pool[0]["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap();
    for (label, value) in selector {
        assert_eq!(&labels[label], value);
    }
    let configs = pool
        .iter()
        .find(|document| document["kind"] == "ConfigMap")
        .unwrap();
    for config in configs["data"].as_object().unwrap().values() {
        let config: Value = serde_norway::from_str(config.as_str().unwrap()).unwrap();
        let names: Vec<&Value> = config["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|plugin| &plugin["type"])
            .collect();
        for profile in config["schedulingProfiles"].as_array().unwrap() {
            for plugin in profile["plugins"].as_array().unwrap() {
                assert!(names.contains(&&plugin["pluginRef"]), "{plugin}");
            }
        }
    }
    assert_eq!(documents("prometheus.yml").len(), 1);
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let server = TestServer::start_with(&["--otlp-traces-endpoint", "http://127.0.0.1:9"], |_| {
        says("x")
    });
    server.complete(json!({}));
    let page = server.get("/metrics").text;
    let known: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let text = std::fs::read_to_string(path("grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let name =
        fancy_regex::Regex::new(r"\b(?:vllm:|http_|process_|kv_event|trace_spans)[a-z0-9_]+")
            .unwrap();
    let mut found = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let names: Vec<&str> = name
                .find_iter(expression)
                .map(|found| found.unwrap().as_str())
                .collect();
            assert!(!names.is_empty(), "{expression}");
            for name in names {
                assert!(known.contains(name), "{name} of {expression}");
                found.insert(name.to_owned());
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["definition"].as_str().unwrap_or_default();
        for found in name.find_iter(query) {
            assert!(known.contains(found.unwrap().as_str()), "{query}");
        }
    }
    assert!(found.len() > 20, "{found:?}");
}

/// `precise.yaml` as it is, with the servers of `kubernetes.yaml` as they are.
#[test]
fn the_picker_reads_the_events_that_the_servers_send() {
    let program = std::iter::once("server".to_owned());
    let line = command_lines().remove(0);
    let config = server::Config::from_command_line(program.chain(line)).unwrap();
    let events = config.kv_events.unwrap();
    // llm-d's picker v0.9.0 knows no other form.
    assert_eq!(events.format, server::config::EventFormat::Array);
    let pool = documents("inference-pool.yaml");
    let mut configs = pool.iter().filter_map(|document| {
        let text = document["data"]["precise.yaml"].as_str()?;
        Some(serde_norway::from_str::<Value>(text).unwrap())
    });
    let precise = configs.next().unwrap();
    let mut plugins = precise["plugins"].as_array().unwrap().iter();
    let producer = plugins.find(|plugin| plugin["type"] == "precise-prefix-cache-producer");
    let picker = &producer.unwrap()["parameters"];
    let of_events = &picker["kvEventsConfig"];
    let filter = of_events["topicFilter"].as_str().unwrap();
    assert!(events.topic.starts_with(filter), "{}", events.topic);
    let port = &of_events["podDiscoveryConfig"]["socketPort"];
    let server::config::Endpoint::Bind(address) = &events.endpoint else {
        panic!("{:?}", events.endpoint);
    };
    assert!(address.ends_with(&format!(":{port}")), "{address}");
    let block_size = &picker["tokenProcessorConfig"]["blockSize"];
    assert_eq!(*block_size, config.block_size);
}

/// What docs/src/deploy.md says of the picker, which sends no key.
#[test]
fn prompts_are_tokenized_for_those_with_a_key_only() {
    let pool = std::fs::read_to_string(path("inference-pool.yaml")).unwrap();
    let docs = include_str!("../../../../docs/src/deploy.md");
    for text in [&*pool, docs] {
        assert!(text.contains("/v1/completions/render") && text.contains("401"));
    }
    let server = TestServer::start_with(&["--api-key", "k"], |_| says("x"));
    let render = |headers: &[&str]| {
        let headers = [&["content-type: application/json"], headers].concat();
        let body = r#"{"model": "base", "prompt": "a"}"#;
        let answer = server.raw("POST", "/v1/completions/render", &headers, body);
        answer.status
    };
    assert_eq!(render(&[]), 401);
    assert_eq!(render(&["authorization: Bearer k"]), 200);
}
