//! Code that is compiled for some devices only.

use std::collections::BTreeMap;

use proc_macro2::{Delimiter, TokenTree};

use super::source::{Source, each_level, inside, is_name, is_sign};
use super::tree::{Tree, in_src};

/// Cargo features that choose devices.
const FEATURES: [&str; 6] = ["gpu", "cuda", "wgpu", "vulkan", "metal", "rocm"];
/// Places outside of `src/kernels`, the graph runner and [`BACKENDS`] that look at them, at most. Where a model, a layer or the
/// engine needs one, an operation doesn't yet answer on every device.
const MAX_PLACES: usize = 4;
/// Where there is none.
const WITHOUT: [&str; 4] = [
    "crates/lora-4bit/src/linear",
    "crates/model-qwen/src/mlp",
    "crates/model-qwen/src/model",
    "crates/server/src/engine/worker",
];
/// What turns `--device` into a device, and what asks the system about one: they name the backends that are compiled in.
const BACKENDS: [&str; 2] = ["crates/model-qwen/src/device", "crates/model-qwen/src/sys"];
/// The graph runner, which records and replays what a device computes.
const GRAPH_RUNNER: &str = "crates/model-qwen/src/graph_runner";

/// Whether the file is `module`'s or lies below it.
fn is_in(place: &str, module: &str) -> bool {
    let rest = place.strip_prefix(module);
    rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

pub(super) fn check(tree: &Tree, wrong: &mut Vec<String>) {
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, source) in &tree.files {
        let is_kernel = in_src(place).is_some_and(|parts| parts.first() == Some(&"kernels"));
        let names_backends = BACKENDS.iter().any(|module| is_in(place, module));
        if is_kernel || names_backends || is_in(place, GRAPH_RUNNER) {
            continue;
        }
        let lines = lines(source);
        if !lines.is_empty() {
            places.insert(place, lines);
        }
    }
    for (place, lines) in &places {
        if WITHOUT.iter().any(|module| is_in(place, module)) {
            let num = lines.len();
            wrong.push(format!(
                "{place}:{}: {num} cfgs of devices, there must be none: the kernels decide what a device computes",
                lines[0]
            ));
        }
    }
    let num: usize = places.values().map(Vec::len).sum();
    if num > MAX_PLACES {
        let places = places
            .iter()
            .map(|(place, lines)| format!("\n    {place}: {}", lines.len()));
        wrong.push(format!(
            "{num} cfgs of devices outside of src/kernels and the graph runner, at most {MAX_PLACES}:{}",
            places.collect::<String>()
        ));
    }
}

/// The lines of `cfg`, `cfg!` and `cfg_attr` that look at a feature for devices.
fn lines(source: &Source) -> Vec<usize> {
    let mut lines = Vec::new();
    source.each_level(&mut |tokens| {
        for (at, token) in tokens.iter().enumerate() {
            let token = Some(token);
            if !is_name(token, "cfg") && !is_name(token, "cfg_attr") {
                continue;
            }
            let next = at + 1 + usize::from(is_sign(tokens.get(at + 1), '!'));
            let Some(condition) = inside(tokens.get(next), Delimiter::Parenthesis) else {
                continue;
            };
            let mut names_device = false;
            each_level(condition, &mut |tokens| {
                names_device |= tokens.windows(3).any(is_feature);
            });
            if names_device {
                lines.push(tokens[at].span().start().line);
            }
        }
    });
    lines.sort_unstable();
    lines
}

/// `feature = "cuda"`.
fn is_feature(tokens: &[TokenTree]) -> bool {
    let value = tokens[2].to_string();
    is_name(tokens.first(), "feature")
        && is_sign(tokens.get(1), '=')
        && FEATURES.contains(&value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(place: &str, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        check(&Tree::of(&[(place, text)]), &mut wrong);
        wrong
    }

    #[test]
    fn files_that_must_have_none_are_named() {
        for (place, text) in [
            (
                "crates/model-qwen/src/model.rs",
                "\n#[cfg(feature = \"gpu\")]\nfn f() {}",
            ),
            (
                "crates/model-qwen/src/mlp.rs",
                "\n#[cfg(not(any(feature = \"cuda\", unix)))] use a::b;",
            ),
            (
                "crates/lora-4bit/src/linear/a.rs",
                "\nfn f() { if cfg!(feature = \"wgpu\") {} }",
            ),
            (
                "crates/server/src/engine/worker.rs",
                "\n#[cfg_attr(feature = \"metal\", path = \"a\")] mod a;",
            ),
        ] {
            let wrong = wrong(place, text);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(
                wrong[0].starts_with(&format!("{place}:2: 1 cfgs")),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn too_many_are_named() {
        let text = |num| "#[cfg(feature = \"gpu\")] fn f() {}\n".repeat(num);
        let wrong = |place, num| wrong(place, &text(num));
        assert_eq!(
            wrong("crates/server/src/a.rs", MAX_PLACES),
            Vec::<String>::new()
        );
        let found = wrong("crates/server/src/a.rs", MAX_PLACES + 1);
        let num = MAX_PLACES + 1;
        assert!(found[0].starts_with(&format!("{num} cfgs")), "{found:?}");
        for place in [
            "crates/server/src/kernels/a.rs",
            "crates/server/src/kernels.rs",
            "crates/model-qwen/src/graph_runner.rs",
            "crates/model-qwen/src/graph_runner/graphs.rs",
            "crates/server/tests/a.rs",
        ] {
            assert_eq!(wrong(place, MAX_PLACES + 1), Vec::<String>::new());
        }
    }

    #[test]
    fn other_features_and_tests_are_not_counted() {
        let text = "#[cfg(feature = \"hub\")] fn f() {}\n#[cfg(test)]\nmod tests {\n#[cfg(feature = \"gpu\")] fn f() {}\n}\n\
                    // #[cfg(feature = \"gpu\")]\nconst A: &str = \"cfg(feature = \\\"gpu\\\")\";";
        assert_eq!(
            wrong("crates/model-qwen/src/model.rs", text),
            Vec::<String>::new()
        );
    }
}
