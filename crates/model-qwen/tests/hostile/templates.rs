//! Templates that never end, that fill the memory, or that are nested without end.

use std::time::{Duration, Instant};

use model_qwen::{ChatTemplate, RenderOptions, TemplateError};
use serde_json::{Map, Value, json};

use crate::mutate::{self, Random};

/// What a thread of the server has.
const STACK: usize = 2 << 20;

fn messages() -> Vec<Value> {
    vec![json!({"role": "user", "content": "hello"})]
}

/// What becomes of a template, within a bound of time.
fn render(source: &str) -> Result<String, TemplateError> {
    let source = source.to_owned();
    let start = Instant::now();
    let rendered = std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || {
            let template = ChatTemplate::from_stranger(&source, Map::new())?;
            template.render(&messages(), &RenderOptions::default())
        })
        .unwrap()
        .join()
        .unwrap();
    // It takes a second; machines that test are busy.
    let limit = Duration::from_secs(100);
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    rendered
}

#[track_caller]
fn ends(source: &str) {
    let rendered = render(source);
    assert!(
        matches!(rendered, Err(TemplateError::TooMuchWork { .. })),
        "{source:.200}: {:.300}",
        format!("{rendered:?}")
    );
}

#[test]
fn loops_without_end_are_ended() {
    let range = "range(100000)";
    for source in [
        format!("{{% for a in {range} %}}{{% for b in {range} %}}{{% endfor %}}{{% endfor %}}"),
        format!("{{% for a in {range} %}}{{% for b in {range} %}}{{{{ a * b }}}}{{% endfor %}}{{% endfor %}}"),
        format!("{{% for a in {range} %}}{{% set s = ({range}|list)|sort|join('x') %}}{{% endfor %}}"),
        "{% set ns = namespace(a='ab') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}".to_owned(),
        "{{ 'ab' * 1000000000000 }}".to_owned(),
        "{{ [1] * 10000000 }}".to_owned(),
        "{{ '%1000000000000d'|format(1) }}".to_owned(),
    ] {
        ends(&source);
    }
}

#[test]
fn methods_pay_for_what_they_read_and_write() {
    for call in [
        "a.replace('a', a)",
        "a.replace('', a)",
        "a.join(a)",
        "a.strip(a)",
        "a.count('ab')",
        "a.find('b')",
        "a.split('a')",
        "a.split()",
        "a.splitlines()",
        "a.upper()",
        "a.startswith([a, 'b', a])",
        "a.format(a)",
        "('{0}' * 10000).format(a)",
        "l.count(7)",
        "a.join(l)",
        "l|tojson",
        "l|string",
        "l|join(a)",
        "a|upper",
        "a|replace('a', a)",
        "a|list",
        "a in [a, a]",
        "l|sort",
        "l|unique",
        "l|batch(1)",
        "l|slice(1000000)",
        "'%s%s' % (a, a)",
        "'%10000000d' % 1",
        "a|e + a",
        "a|e|replace('a', a)",
        "(a|e).replace('a', a)",
        "a|wordwrap(3)",
        "('-' * 1000000)|wordwrap(3)",
        "('a--' * 300000)|wordwrap(3)",
        "a|wordcount",
        "a|truncate(5)",
        "a|striptags",
        "a|urlencode",
        "a|indent",
        "a|trim('b')",
        "a|center(10000000)",
        "a|filesizeformat",
        "a.title()",
        "a.casefold()",
        "a.isprintable()",
        "('\t' * 1000000).expandtabs(1000)",
        "l|pprint",
        "a|pprint",
        "l|map('string')",
        "dict(l|map('string')|map('list'))",
    ] {
        let source = format!(
            "{{% set a = 'a' * 1000000 %}}{{% set l = range(10000)|list %}}{{% for i in range(100000) %}}{{% set x = {call} %}}{{% endfor %}}"
        );
        let rendered = render(&source);
        assert!(rendered.is_err(), "{call}");
    }
}

/// Ways to print a value.
const PRINTED: [&str; 9] = [
    "ns.x",
    "ns.x|tojson",
    "ns.x|string",
    "''.join([ns.x])",
    "'{}'.format(ns.x)",
    "raise_exception(ns.x)",
    "ns.x|pprint",
    "'%s' % [ns.x]",
    "'%r' % {'a': ns.x}",
];

/// A value that contains itself in effect: twice as long with each step, or one deeper.
fn nested(step: &str, num: usize, then: &str) -> String {
    format!(
        "{{% set ns = namespace(x=[], y=[]) %}}{{% for i in range({num}) %}}\
         {{% set ns.x = {step} %}}{{% set ns.y = {} %}}{{% endfor %}}{{{{ {then} }}}}",
        step.replace('x', "y")
    )
}

/// The levels are freed, compared and hashed on a stack that has room for them.
#[test]
fn deep_values_are_used_and_freed() {
    for then in [
        "1",
        "ns.x == ns.y",
        "ns.x < ns.y",
        "{ns.x: 1}|length",
        "[ns.x, ns.y]|unique|list|length",
        "ns.x is true",
        "ns.x|list|length",
    ] {
        let rendered = render(&nested("[[[[[[[[[[ns.x]]]]]]]]]]", 15_000, then));
        assert!(rendered.is_ok(), "{then}: {rendered:?}");
    }
}

#[test]
fn a_conversation_of_any_length_has_enough_fuel() {
    let source = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.role ~ '\n' ~ m.content|trim }}{% endif %}{% endfor %}";
    let template = ChatTemplate::from_source(source, Map::new()).unwrap();
    let message = json!({"role": "user", "content": "x".repeat(200)});
    let messages = vec![message; 50_000];
    let rendered = template.render(&messages, &RenderOptions::default());
    assert!(rendered.unwrap().len() > 10_000_000);
}

#[test]
fn nested_values_are_refused() {
    for step in ["[ns.x]", "{'a': ns.x}", "(ns.x,)"] {
        for then in PRINTED {
            let source = nested(step, 20_000, then);
            let reason = render(&source).unwrap_err().to_string();
            assert!(reason.contains("deep"), "{step} {then}: {reason}");
        }
    }
}

#[test]
fn values_with_equal_parts_end() {
    for step in ["[ns.x, ns.x]", "{'a': ns.x, 'b': ns.x}", "(ns.x, ns.x)"] {
        for then in PRINTED {
            ends(&nested(step, 60, then));
        }
    }
}

#[test]
fn macros_that_call_themselves_end() {
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f(1) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% include 'chat' %}",
        "{% extends 'chat' %}",
        "{% import 'chat' as c %}",
    ] {
        let rendered = render(source);
        assert!(rendered.is_err(), "{source}: {rendered:?}");
    }
}

#[test]
fn deep_templates_are_refused_or_rendered() {
    for (open, close) in [
        ("{% if true %}", "{% endif %}"),
        ("{% for a in [1] %}", "{% endfor %}"),
        ("{{ (", ") }}"),
        ("{{ [", "] }}"),
        ("{{ {1:", "} }}"),
        ("{{ not ", " }}"),
        ("{{ -", " }}"),
        ("{{ a.", " }}"),
        ("{{ a[", "] }}"),
        ("{{ a if b else ", " }}"),
        ("{{ a ~ ", " }}"),
        ("{{ a|f", " }}"),
        ("{{ a % ", " }}"),
        ("{{ a % (", ") }}"),
        ("{{ a|e + ", " }}"),
        ("{{ a|e + [", "] }}"),
        ("{{ {'a': 1 % f(", ")} }}"),
    ] {
        let (start, repeated) = match open.strip_prefix("{{ ") {
            Some(rest) => ("{{ ", rest),
            None => ("", open),
        };
        let (closed, end) = match close.strip_suffix(" }}") {
            Some(rest) => (rest, " }}"),
            None => (close, ""),
        };
        // As many as a request may have.
        let num = (30 << 10) / (repeated.len() + closed.len());
        let source = format!(
            "{start}{}1{}{end}",
            repeated.repeat(num),
            closed.repeat(num)
        );
        let rendered = render(&source);
        assert!(
            !matches!(rendered, Err(TemplateError::Message { .. })),
            "{open}: {rendered:?}"
        );
    }
}

/// Parts that templates are made of.
const PARTS: [&str; 48] = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if m.role == 'user' %}",
    "{% else %}",
    "{% endif %}",
    "{{ m.content }}",
    "{{ messages | tojson(indent=2) }}",
    "{% set ns = namespace(a=[1], b='') %}",
    "{% set ns.b = ns.b ~ m %}",
    "{% set ns.b = ns.b ~ ns.b %}",
    "{% macro f(x, y=1) %}",
    "{% endmacro %}",
    "{{ f(1) }}",
    "{{ f(f(2)) }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}",
    "{{ loop.index }}",
    "{% break %}",
    "{% continue %}",
    "{{ messages[0]['content'][1:-1:2] }}",
    "{{ messages[::-1] }}",
    "{{ 'a' * 100000 }}",
    "{{ 10 ** 30 }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ range(5) | list | join(',') }}",
    "{{ m.content.split('l')[-1].strip('o') }}",
    "{{ m.x.y.z }}",
    "{{ 'a{}b{:>9}'.format(1, 2) }}",
    "{{ '%s %5.2f' % (1, 2.5) }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "{%- set x = messages | length -%}",
    "{{ x if x is defined else y }}",
    "{% call f(1) %}",
    "{% endcall %}",
    "{# note #}",
    "{{ dict(a=1) | items | list | string }}",
    "{{ -9223372036854775808 // -1 }}",
    "{% raw %}{{{% endraw %}",
    "{{ m.content|e + '<' }}",
    "{{ '%(a)s %% %r' % {'a': m} ~ 1 % 2 }}",
    "{{ m|pprint }}{{ m.content|wordwrap(7)|truncate(9, leeway=1) }}",
    "{{ messages|groupby('role')|map('last') }}",
    "\u{e9}\u{1f600}",
];

/// Templates of published models, and parts in any order.
fn template(random: &mut Random, published: &[Vec<u8>]) -> Vec<u8> {
    let mut source = match random.below(3) {
        0 => random.pick(published).clone(),
        _ => Vec::new(),
    };
    for _ in 0..random.below(12) {
        let at = random.below(source.len() + 1);
        source.splice(at..at, PARTS[random.below(PARTS.len())].bytes());
    }
    if random.below(2) == 0 {
        mutate::bytes(random, &mut source);
    }
    source
}

#[test]
fn changed_templates() {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../data/golden/chat_template/"
    );
    let published = ["qwen2_5", "qwen3", "deepseek_r1_distill_qwen", "features"].map(|name| {
        let text = std::fs::read_to_string(format!("{folder}{name}.json")).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let template = golden["template"].as_str();
        template.unwrap_or_default().as_bytes().to_vec()
    });
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
    let seeds = [
        json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}, call,
        {"role": "tool", "content": "4"}]),
    ];
    let make = |random: &mut Random| {
        let mut input = template(random, &published);
        input.push(b'\n');
        input.extend(mutate::json(
            random,
            &seeds,
            &["role", "content", "tool_calls", "reasoning_content"],
        ));
        input
    };
    mutate::run("templates", make, |input| {
        let text = String::from_utf8_lossy(input);
        let (source, messages) = text.rsplit_once('\n').unwrap_or((&text, "[]"));
        let Ok(template) = ChatTemplate::from_stranger(source, Map::new()) else {
            return;
        };
        let messages: Vec<Value> = serde_json::from_str(messages).unwrap_or_default();
        let options = RenderOptions {
            add_generation_prompt: true,
            tools: Some(json!([tool])),
            ..RenderOptions::default()
        };
        let _ = template.render(&messages, &options);
    });
}
