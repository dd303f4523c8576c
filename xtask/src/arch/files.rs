//! What is true of each file by itself: its size, unsafe code, instructions of GPUs, weights of the CPU.

use proc_macro2::{Delimiter, TokenTree};

use super::source::{each_level, inside, is_name, is_sign};
use super::tree::{Tree, in_src};

/// A source file longer than this, tests apart, holds two things.
const MAX_LINES: usize = 500;
/// Folders of a crate's `src` in which unsafe code may stand.
const MAY_BE_UNSAFE: [&str; 2] = ["kernels", "sys"];
/// Options of an instruction that say what memory it touches.
const SAY_MEMORY: [&str; 3] = ["explicit_mem", "nomem", "readonly"];

pub(super) fn sizes(tree: &Tree, wrong: &mut Vec<String>) {
    for (place, source) in &tree.files {
        if source.num_lines > MAX_LINES {
            let lines = source.num_lines;
            wrong.push(format!(
                "{place}: {lines} lines without tests, at most {MAX_LINES}"
            ));
        }
    }
}

pub(super) fn unsafe_code(tree: &Tree, wrong: &mut Vec<String>) {
    for (place, source) in &tree.files {
        let parts = in_src(place).unwrap_or_default();
        if parts
            .first()
            .is_some_and(|room| MAY_BE_UNSAFE.contains(room))
        {
            continue;
        }
        if let Some(line) = source.lines_of(|name| name == "unsafe").first() {
            wrong.push(format!(
                "{place}:{line}: unsafe code outside src/kernels and src/sys"
            ));
        }
    }
}

/// An instruction that doesn't say what memory it touches makes CubeCL take all buffers of its kernel for written.
pub(super) fn gpu_instructions(tree: &Tree, wrong: &mut Vec<String>) {
    for (place, source) in &tree.files {
        source.each_level(&mut |tokens| {
            for tokens in tokens.windows(3) {
                let is_asm = is_name(tokens.first(), "gpu_asm") && is_sign(tokens.get(1), '!');
                let body = inside(tokens.last(), Delimiter::Parenthesis).filter(|_| is_asm);
                let Some(body) = body else { continue };
                let mut says_memory = false;
                each_level(body, &mut |tokens: &[TokenTree]| {
                    let is_option = |name| tokens.iter().any(|token| is_name(Some(token), name));
                    says_memory |= SAY_MEMORY.into_iter().any(is_option);
                });
                if !says_memory {
                    let line = tokens[0].span().start().line;
                    wrong.push(format!(
                        "{place}:{line}: gpu_asm! doesn't say what memory it touches: CubeCL takes all buffers of the \
                         kernel for written then"
                    ));
                }
            }
        });
    }
}

/// Kernels that multiply NF4 weights as they are stored.
const CPU_KERNELS: &str = "crates/lora-4bit/src/kernels/cpu";

/// A kernel of the CPU that dequantizes a weight would need four or eight times its memory.
pub(super) fn stored_weights(tree: &Tree, wrong: &mut Vec<String>) {
    for (place, source) in &tree.files {
        if place.starts_with(CPU_KERNELS) {
            let lines = source.lines_of(|name| name.contains("dequantize"));
            wrong.extend(lines.iter().map(|line| {
                format!("{place}:{line}: a kernel of the CPU that dequantizes a whole weight")
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(place: &str, text: &str) -> Vec<String> {
        let tree = Tree::of(&[(place, text)]);
        let mut wrong = Vec::new();
        sizes(&tree, &mut wrong);
        unsafe_code(&tree, &mut wrong);
        gpu_instructions(&tree, &mut wrong);
        stored_weights(&tree, &mut wrong);
        wrong
    }

    #[test]
    fn sources_that_break_a_rule_are_named() {
        let long = "\n".repeat(MAX_LINES + 1);
        let tests = "#[cfg(test)]\nmod tests {}\n";
        let behind_tests = format!("{tests}{long}");
        let unsafe_behind_tests = format!("{tests}fn f() {{ unsafe {{ f() }} }}");
        for (place, text, expected) in [
            ("crates/server/src/a.rs", long.as_str(), ": 501 lines"),
            ("crates/server/src/a.rs", &behind_tests, ": 501 lines"),
            (
                "crates/server/src/a.rs",
                "fn f() { unsafe { f() } }",
                ":1: unsafe code",
            ),
            (
                "crates/server/src/a.rs",
                &unsafe_behind_tests,
                ":3: unsafe code",
            ),
            (
                "crates/server/src/a.rs",
                "unsafe impl Send for A {}",
                ":1: unsafe code",
            ),
            (
                "crates/server/src/a.rs",
                "macro_rules! a { () => { unsafe { f() } }; }",
                ":1: unsafe",
            ),
            (
                "crates/server/src/engine/kernels/a.rs",
                "unsafe fn f() {}",
                ":1: unsafe code",
            ),
            (
                "examples/src/bin/a.rs",
                "unsafe fn f() {}",
                ":1: unsafe code",
            ),
            (
                "crates/kv-paging/src/kernels/cube/a.rs",
                "fn f() {\n gpu_asm!(\"a\", options(nomem));\n gpu_asm!(\"nomem\", options(pure));\n}",
                ":3: gpu_asm! doesn't say what memory",
            ),
            (
                "crates/lora-4bit/src/kernels/cpu/a.rs",
                "fn f() {\n naive::dequantize(w);\n}",
                ":2: a kernel of the CPU that dequantizes",
            ),
        ] {
            let wrong = wrong(place, text);
            assert_eq!(wrong.len(), 1, "{place}: {wrong:?}");
            assert!(
                wrong[0].starts_with(&format!("{place}{expected}")),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn sources_that_keep_the_rules_are_not() {
        let blank = "\n".repeat(MAX_LINES);
        let tests = format!("#[cfg(test)]\nmod tests {{{blank}}}");
        for (place, text) in [
            ("crates/server/src/a.rs", tests.as_str()),
            ("crates/server/src/a.rs", &blank),
            ("crates/server/tests/a.rs", &format!("{blank}\n")),
            ("crates/server/tests/a.rs", "fn f() { unsafe { f() } }"),
            (
                "crates/server/src/a.rs",
                "#[cfg(test)] fn f() { unsafe { f() } }",
            ),
            (
                "crates/kv-paging/src/kernels/a.rs",
                "fn f() { unsafe { f() } }",
            ),
            (
                "crates/kv-paging/src/kernels.rs",
                "fn f() { unsafe { f() } }",
            ),
            (
                "crates/model-qwen/src/sys/a.rs",
                "fn f() { unsafe { f() } }",
            ),
            ("crates/server/src/a.rs", "// unsafe { f() }"),
            (
                "crates/server/src/a.rs",
                "#![allow(unsafe_code)]\nconst A: &str = \"unsafe { f() }\";",
            ),
            (
                "crates/lora-4bit/src/kernels/cpu/a.rs",
                "/// Doesn't dequantize.\nfn f() {}\n#[cfg(test)] fn g() { w.dequantize() }",
            ),
            (
                "crates/kv-paging/src/kernels/cube/a.rs",
                "fn f() { gpu_asm!(\"a\", options(explicit_mem, writes_address_space shared)); }",
            ),
        ] {
            assert_eq!(wrong(place, text), Vec::<String>::new(), "{text}");
        }
    }
}
