//! Files that import each other in a circle.
//!
//! A crate whose files have no circle any more is free of them for good. `--circles` prints the circles of the other crates.

use super::import_graph::ImportGraph;
use super::modules::{Crate, Import};
use super::tree::Tree;

/// The folders of the crates whose files import each other in no circle.
const FREE: &[&str] = &[
    "crates/kv-paging", // one a line
    "crates/lora-4bit",
];

/// Circles of files of the free crates.
pub(super) fn check(tree: &Tree, wrong: &mut Vec<String>) {
    check_of(FREE, tree, wrong);
}

/// The same with other free crates. Each must be there.
fn check_of(free: &[&str], tree: &Tree, wrong: &mut Vec<String>) {
    for folder in free {
        let mut crates = tree.crates.iter().filter(|of| is_in(folder, of)).peekable();
        if crates.peek().is_none() {
            wrong.push(format!(
                "{folder}: no crate is there: mend FREE in xtask/src/arch/file_circles.rs"
            ));
        }
        wrong.extend(crates.flat_map(circles));
    }
}

/// Circles of files of the other crates.
pub(super) fn notes(tree: &Tree) -> Vec<String> {
    let others = tree.crates.iter();
    let others = others.filter(|of| !FREE.iter().any(|folder| is_in(folder, of)));
    others.flat_map(circles).collect()
}

/// Whether the library, program or example is in the folder.
fn is_in(folder: &str, of: &Crate) -> bool {
    let below = of.root.strip_prefix(folder);
    below.is_some_and(|below| below.starts_with('/'))
}

fn circles(of: &Crate) -> Vec<String> {
    let mut files = ImportGraph::default();
    for import in of.imports() {
        let (from, to) = (import.from.clone(), import.to.clone());
        files.add(&from, &to, import);
    }
    let circles = files.circles();
    circles
        .iter()
        .map(|imports| show(&of.root, imports))
        .collect()
}

fn show(root: &str, imports: &[(&str, &Import)]) -> String {
    let mut text = format!("{root}: {} files import each other:", imports.len());
    for (_, import) in imports {
        let Import {
            from,
            line,
            path,
            to,
            ..
        } = import;
        text += &format!("\n    {from}:{line} imports {path} of {to}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a free crate whose `kernels/plan.rs` has this text.
    fn check_with(plan: &str) -> Vec<String> {
        let tree = Tree::of(&[
            (
                "crates/a/src/lib.rs",
                "mod kernels;\npub use kernels::Plan;",
            ),
            (
                "crates/a/src/kernels.rs",
                "mod cube; mod plan;\npub use cube::LANES;\npub use plan::Plan;",
            ),
            (
                "crates/a/src/kernels/cube.rs",
                "mod tile;\nuse super::plan::Plan;\npub const LANES: u32 = 32;",
            ),
            (
                "crates/a/src/kernels/cube/tile.rs",
                "#[cfg(test)]\nmod tests { use super::super::LANES; }",
            ),
            ("crates/a/src/kernels/plan.rs", plan),
            (
                "crates/b/src/lib.rs",
                "mod c;\npub use c::C;\npub struct B;",
            ),
            ("crates/b/src/c.rs", "use crate::B;\npub struct C;"),
        ]);
        let mut wrong = Vec::new();
        check_of(&["crates/a"], &tree, &mut wrong);
        // Circles of the other crate are allowed.
        assert!(notes(&tree).iter().any(|note| note.contains("crates/b")));
        wrong
    }

    #[test]
    fn files_of_a_free_crate_import_each_other_in_no_circle() {
        let plan = "pub struct Plan;\n";
        assert_eq!(check_with(plan), Vec::<String>::new());

        // A name that another file hands on comes from the file that defines it.
        for (imported, path) in [
            ("use super::cube::LANES;", "super::cube::LANES"),
            ("use crate::kernels::LANES;", "crate::kernels::LANES"),
            ("fn f() -> u32 { super::cube::LANES }", "super::cube::LANES"),
        ] {
            let expected = format!(
                "crates/a/src/lib.rs: 2 files import each other:\n    \
                 crates/a/src/kernels/plan.rs:2 imports {path} of crates/a/src/kernels/cube.rs\n    \
                 crates/a/src/kernels/cube.rs:2 imports super::plan::Plan of crates/a/src/kernels/plan.rs"
            );
            assert_eq!(check_with(&format!("{plan}{imported}")), [expected]);
        }
    }

    #[test]
    fn a_parent_and_its_child_make_a_circle() {
        let tree = Tree::of(&[
            (
                "crates/a/src/lib.rs",
                "mod linear;\nuse linear::Linear;\nstruct Shape;",
            ),
            (
                "crates/a/src/linear.rs",
                "\nuse super::Shape;\npub struct Linear;",
            ),
        ]);
        let mut wrong = Vec::new();
        check_of(&["crates/a"], &tree, &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(
            wrong[0].contains("linear.rs:2 imports super::Shape"),
            "{wrong:?}"
        );
    }

    #[test]
    fn a_free_crate_is_there() {
        let tree = Tree::of(&[("crates/a-b/src/lib.rs", "")]);
        let mut wrong = Vec::new();
        check_of(&["crates/a-b", "crates/a"], &tree, &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(
            wrong[0].starts_with("crates/a: no crate is there"),
            "{wrong:?}"
        );
    }
}
