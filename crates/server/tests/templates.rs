//! Templates in processes of their own: what minijinja does not count ends there, too.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use model_qwen::chat_template::render_in_processes_of;
use model_qwen::{ChatTemplate, RenderOptions, TemplateError};
use serde_json::{Map, Value, json};

fn set_up() {
    render_in_processes_of(env!("CARGO_BIN_EXE_server").into()).unwrap();
}

fn messages() -> Vec<Value> {
    vec![json!({"role": "user", "content": "hello"})]
}

fn render(source: &str) -> Result<String, TemplateError> {
    let template = ChatTemplate::from_stranger(source, Map::new())?;
    template.render(&messages(), &RenderOptions::default())
}

/// A value that is twice as long with each of 60 steps, in two copies.
fn doubled(step: &str, then: &str) -> String {
    format!(
        "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range(60) %}}\
         {{% set ns.x = {step} %}}{{% set ns.y = {} %}}{{% endfor %}}{{{{ {then} }}}}",
        step.replace('x', "y")
    )
}

/// Templates that fuel does not end: comparisons, joined lists, texts of values.
fn hostile() -> Vec<String> {
    let mut all = Vec::new();
    for then in [
        "ns.x == ns.y",
        "ns.x < ns.y",
        "ns.x in [ns.y]",
        "{ns.x: 1}[ns.y]",
        "[ns.x, ns.y]|unique|list|length",
        "[ns.x, ns.y]|sort|length",
        "ns.x ~ ''",
        "ns.x|upper",
        "ns.x|replace('a', 'b')",
    ] {
        all.push(doubled("[ns.x, ns.x]", then));
    }
    for step in ["{'a': ns.x, 'b': ns.x}", "(ns.x, ns.x)"] {
        all.push(doubled(step, "ns.x == ns.y"));
    }
    all.push(doubled("ns.x + ns.x", "ns.x|length"));
    all.push(doubled("ns.x + ns.x", "ns.x|list|length"));
    let text = "{% set a = 'a' * 1000000 %}{% set b = 'a' * 1000000 %}{% for i in range(100000) %}";
    for then in [
        "a == b",
        "a in [b, b]",
        "{a: 1}[b]",
        "[[1] * 10000000] == [[1] * 10000000]",
        "a|string == b|string",
    ] {
        all.push(format!("{text}{{% set x = {then} %}}{{% endfor %}}"));
    }
    // A list that is joined to a deep one is copied at once.
    let deep = "{% set ns = namespace(y=[1]) %}{% for i in range(32) %}{% set ns.y = ns.y + [1] %}{% endfor %}";
    all.push(format!(
        "{deep}{{% set b = range(100000)|list * 1000 %}}{{{{ (b + ns.y)|length }}}}"
    ));
    // A text of a gigabyte, whose parts cost nothing.
    all.push("{{ (['a' * 1000000] * 1000)|join|length }}".to_owned());
    // Parsing alone.
    all.push(format!("{{{{ 1{} }}}}", " + 1".repeat(8000)));
    all.push(format!(
        "{{{{ {}1{} }}}}",
        "[".repeat(16_000),
        "]".repeat(16_000)
    ));
    all
}

/// The most memory of any child of this process so far, in MiB.
fn peak_of_children(stop: &AtomicBool) -> u64 {
    let own = format!("PPid:\t{}\n", std::process::id());
    let mut peak = 0;
    while !stop.load(Ordering::Relaxed) {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            if let (true, Some(most)) = (status.contains(&own), most) {
                let kib = most.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
                peak = peak.max(kib >> 10);
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    peak
}

#[test]
fn hostile_templates_end_within_a_second_and_256_mib() {
    set_up();
    let stop = Arc::new(AtomicBool::new(false));
    let watch = thread::spawn({
        let stop = Arc::clone(&stop);
        move || peak_of_children(&stop)
    });
    let mut ended = 0;
    for source in hostile() {
        let start = Instant::now();
        let rendered = render(&source);
        let elapsed = start.elapsed();
        println!("{elapsed:?} {source:.150} {rendered:.100?}");
        // Which of the two limits comes first is the machine's.
        if let Err(TemplateError::TooSlow { .. } | TemplateError::TooLarge { .. }) = rendered {
            ended += 1;
        }
        // It is half a second of the processor, which has other work on a machine that tests.
        assert!(
            elapsed < Duration::from_secs(60),
            "{elapsed:?} {source:.200}"
        );
    }
    stop.store(true, Ordering::Relaxed);
    let peak = watch.join().unwrap();
    assert!(ended > 15, "{ended}");
    println!("{peak} MiB");
    assert!(peak < 256, "{peak} MiB");
    // A long message has more time, so that memory is what ends this one on any machine.
    let long = vec![json!({"role": "user", "content": "a".repeat(16 << 20)})];
    let source = "{{ ([messages[0].content] * 64)|join|length }}";
    let template = ChatTemplate::from_stranger(source, Map::new()).unwrap();
    let rendered = template.render(&long, &RenderOptions::default());
    assert!(
        matches!(rendered, Err(TemplateError::TooLarge { .. })),
        "{rendered:.200?}"
    );
    // What comes next has a process again.
    assert_eq!(render("{{ messages[0].content }}").unwrap(), "hello");
}

#[test]
fn errors_are_those_of_a_template_in_this_process() {
    set_up();
    let raised = render("{{ raise_exception('no ' ~ messages[0].role) }}").unwrap_err();
    assert_eq!(
        raised.to_string(),
        "the chat template refused the messages: no user"
    );
    let wrong = render("{% if %}").unwrap_err();
    assert!(matches!(wrong, TemplateError::Syntax { .. }), "{wrong}");
    let ended =
        render("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}");
    assert!(
        matches!(ended, Err(TemplateError::TooMuchWork { .. })),
        "{ended:?}"
    );
    let failed = render("{{ 1 // 0 }}").unwrap_err();
    assert!(matches!(failed, TemplateError::Render(_)), "{failed}");
}

/// A conversation of 500 messages, with a call, its result and reasoning.
fn conversation() -> Vec<Value> {
    let turn = [
        json!({"role": "user", "content": "What is the weather in Paris? ".repeat(20)}),
        json!({"role": "assistant", "content": "<think>\nI look.\n</think>\n\nSunny, 21.5 °C.", "tool_calls": null}),
    ];
    let mut messages = vec![json!({"role": "system", "content": "be kind"})];
    while messages.len() < 499 {
        messages.extend(turn.clone());
    }
    messages.push(turn[0].clone());
    messages
}

#[test]
fn published_templates_render_500_messages() {
    set_up();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/chat_template");
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "n": 0.1}}});
    let mut num = 0;
    for file in fs::read_dir(folder).unwrap().flatten() {
        let text = fs::read_to_string(file.path()).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let Some(source) = golden["template"].as_str() else {
            continue;
        };
        for tools in [None, Some(json!([tool]))] {
            let options = RenderOptions {
                add_generation_prompt: true,
                tools,
                ..RenderOptions::default()
            };
            let template = ChatTemplate::from_source(source, Map::new()).unwrap();
            let messages = conversation();
            let rendered = template.render(&messages, &options);
            match rendered {
                Ok(text) => assert!(text.len() > 100_000, "{:?}", file.path()),
                Err(error) => assert!(
                    matches!(error, TemplateError::Raised(_) | TemplateError::Render(_)),
                    "{:?}: {error}",
                    file.path()
                ),
            }
            num += 1;
        }
    }
    assert!(num >= 8, "{num}");
}
