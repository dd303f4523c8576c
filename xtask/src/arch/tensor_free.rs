//! The bookkeeping of kv-paging: plain Rust, without a tensor.

use std::collections::BTreeSet;

use super::tree::{Tree, in_src};

const SRC: &str = "crates/kv-paging/src/";
/// Modules of kv-paging that hold no tensor and see no device.
const BOOKKEEPING: [&str; 7] = [
    "batch_layout",
    "block_pool",
    "block_table",
    "prompt_lookup",
    "scheduler",
    "stats",
    "step_layout",
];
/// Its other modules.
const TENSORS: [&str; 8] = [
    "attention",
    "batch",
    "cache",
    "causal",
    "decode_step",
    "kernels",
    "rotary",
    "training",
];
/// Crates of tensors and devices, and how the names of others start.
const TENSOR_CRATES: [&str; 3] = ["burn", "cubecl", "cudarc"];
const TENSOR_PREFIXES: [&str; 2] = ["burn_", "cubecl_"];

/// The module that the file belongs to, with all that lies below it.
fn room(place: &str) -> Option<&str> {
    let room = *in_src(place)?.first()?;
    (place.starts_with(SRC) && room != "lib").then_some(room)
}

/// A tensor file of kv-paging. A new file is none, until it stands in the list.
fn has_tensors(place: &str) -> bool {
    room(place).is_some_and(|room| TENSORS.contains(&room))
}

pub(super) fn check(tree: &Tree, wrong: &mut Vec<String>) {
    check_files(tree, wrong);
    check_lists(tree, wrong);
}

/// Each name of the lists must have a file.
fn check_lists(tree: &Tree, wrong: &mut Vec<String>) {
    let rooms: BTreeSet<&str> = tree.files.keys().filter_map(|place| room(place)).collect();
    for name in BOOKKEEPING.iter().chain(&TENSORS) {
        if !rooms.contains(name) {
            wrong.push(format!(
                "{SRC}{name}.rs is gone: take it out of xtask/src/arch/tensor_free.rs"
            ));
        }
    }
}

fn check_files(tree: &Tree, wrong: &mut Vec<String>) {
    let is_tensor_crate = |name: &str| {
        TENSOR_CRATES.contains(&name) || TENSOR_PREFIXES.iter().any(|p| name.starts_with(p))
    };
    for (place, source) in &tree.files {
        let Some(room) = room(place).filter(|_| !has_tensors(place)) else {
            continue;
        };
        if !BOOKKEEPING.contains(&room) {
            wrong.push(format!(
                "{place}: neither in the list of bookkeeping nor in the list of tensor files: see \
                 xtask/src/arch/tensor_free.rs"
            ));
        }
        for line in source.lines_of(is_tensor_crate) {
            wrong.push(format!(
                "{place}:{line}: bookkeeping that sees tensors or devices"
            ));
        }
    }
    let imports = tree.crates.iter().flat_map(|of| of.imports());
    for import in imports.filter(|import| room(&import.from).is_some()) {
        let (from, line, to) = (&import.from, import.line, &import.to);
        if !has_tensors(from) && has_tensors(to) {
            let path = &import.path;
            wrong.push(format!(
                "{from}:{line}: bookkeeping that imports {path} of {to}, a tensor file"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(files: &[(&str, &str)]) -> Vec<String> {
        let lib =
            "mod batch; mod block_pool; mod cache; mod scheduler; mod new;\npub use cache::Cache;";
        let places: Vec<_> = files
            .iter()
            .map(|(file, _)| format!("{SRC}{file}"))
            .collect();
        let root = format!("{SRC}lib.rs");
        let mut all = vec![(root.as_str(), lib)];
        all.extend(
            places
                .iter()
                .zip(files)
                .map(|(place, (_, text))| (place.as_str(), *text)),
        );
        let mut wrong = Vec::new();
        check_files(&Tree::of(&all), &mut wrong);
        wrong
    }

    #[test]
    fn bookkeeping_that_sees_tensors_is_named() {
        let cache = ("cache.rs", "use burn::tensor::Tensor;\npub struct Cache;");
        for (file, text, expected) in [
            (
                "block_pool.rs",
                "use burn::tensor::Tensor;",
                ":1: bookkeeping that sees tensors",
            ),
            (
                "scheduler.rs",
                "fn f(x: burn_cubecl::T) {}",
                ":1: bookkeeping that sees tensors",
            ),
            (
                "scheduler/mod.rs",
                "#[cfg(test)]\nmod tests {}\nuse cubecl::T;",
                ":3: bookkeeping that sees",
            ),
            (
                "scheduler/mod.rs",
                "use crate::Cache;",
                ":1: bookkeeping that imports crate::Cache of",
            ),
            (
                "block_pool.rs",
                "fn f() { crate::cache::f() }",
                ":1: bookkeeping that imports",
            ),
            ("new.rs", "", ": neither in the list"),
        ] {
            let wrong = wrong(&[cache, (file, text)]);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(
                wrong[0].starts_with(&format!("{SRC}{file}{expected}")),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn names_without_a_file_are_named() {
        let check = |gone: &str| {
            let names = BOOKKEEPING.iter().chain(&TENSORS);
            let names = names.filter(|name| **name != gone);
            let places: Vec<String> = names.map(|name| format!("{SRC}{name}.rs")).collect();
            let files: Vec<(&str, &str)> =
                places.iter().map(|place| (place.as_str(), "")).collect();
            let mut wrong = Vec::new();
            check_lists(&Tree::of(&files), &mut wrong);
            wrong
        };
        assert_eq!(check(""), Vec::<String>::new());
        let found = check("rotary");
        assert!(found[0].contains("rotary.rs is gone"), "{found:?}");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn other_code_is_not() {
        let found = wrong(&[
            ("cache.rs", "use burn::tensor::Tensor;\npub struct Cache;"),
            (
                "batch.rs",
                "use crate::block_pool::BlockPool;\nuse crate::Cache;",
            ),
            (
                "block_pool.rs",
                "//! See [`burn::tensor::Tensor`].\npub struct BlockPool;",
            ),
            (
                "scheduler.rs",
                "use crate::block_pool::BlockPool;\n#[cfg(test)]\nmod tests { use burn::tensor::Tensor; use crate::Cache; }",
            ),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }
}
