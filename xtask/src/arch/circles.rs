//! Rooms that import each other in a circle.
//!
//! A module of a crate and what lies below it are one room: `kernels.rs` and `kernels/`. The rooms of a crate must not import
//! each other in a circle. `--circles` prints the circles of the rooms inside of a room.

use std::collections::BTreeMap;

use super::import_graph::ImportGraph;
use super::modules::{Crate, Import};
use super::tree::Tree;

/// Imports that close a circle and are to be removed: root of the crate, importing room, imported room. Circles are looked for
/// without them.
const KNOWN: [[&str; 3]; 0] = [];

/// Rooms that import each other in a circle.
struct Circle {
    /// Each from its room to the next one's.
    imports: Vec<Import>,
    rooms: Vec<String>,
    /// Whether these are rooms of the crate, and not of one of its rooms.
    is_of_crate: bool,
}

impl Circle {
    fn show(&self, root: &str) -> String {
        let rooms = self.rooms.iter().chain(self.rooms.first());
        let rooms = rooms.map(String::as_str).collect::<Vec<_>>().join(" -> ");
        let mut text = format!("{root}: modules import each other: {rooms}");
        for Import {
            from,
            line,
            path,
            to,
            ..
        } in &self.imports
        {
            text += &format!("\n    {from}:{line} imports {path} of {to}");
        }
        text
    }
}

/// Circles of the rooms of a crate.
pub(super) fn check(tree: &Tree, wrong: &mut Vec<String>) {
    check_without(&KNOWN, tree, wrong);
}

/// The same with other known imports. Each must be there, and part of a circle.
fn check_without(known: &[[&str; 3]], tree: &Tree, wrong: &mut Vec<String>) {
    wrong.extend(find(known, tree, true));
    for entry @ [root, from, to] in known {
        let Some(of) = tree.crates.iter().find(|of| of.root == *root) else {
            continue;
        };
        let others: Vec<[&str; 3]> = known.iter().filter(|k| *k != entry).copied().collect();
        let is_part = |circle: &Circle| {
            let next = circle.rooms.iter().cycle().skip(1);
            let mut steps = circle.rooms.iter().zip(next);
            steps.any(|(a, b)| a == from && b == to)
        };
        if !circles(&others, of).iter().any(is_part) {
            wrong.push(format!(
                "{root}: {from} imports {to} in no circle any more: take it out of KNOWN in xtask/src/arch/circles.rs"
            ));
        }
    }
}

/// Circles of the rooms inside of a room.
pub(super) fn notes(tree: &Tree) -> Vec<String> {
    find(&KNOWN, tree, false)
}

fn find(known: &[[&str; 3]], tree: &Tree, is_of_crate: bool) -> Vec<String> {
    let of_crate = |of| {
        let circles = circles(known, of).into_iter();
        let circles = circles.filter(|circle| circle.is_of_crate == is_of_crate);
        circles
            .map(|circle| circle.show(&of.root))
            .collect::<Vec<_>>()
    };
    tree.crates.iter().flat_map(of_crate).collect()
}

fn circles(known: &[[&str; 3]], of: &Crate) -> Vec<Circle> {
    let mut circles = Vec::new();
    for (parent, rooms) in rooms(known, of) {
        for imports in rooms.circles() {
            let full = |name: &str| [&*parent, &[name.to_owned()]].concat().join("::");
            circles.push(Circle {
                rooms: imports.iter().map(|(name, _)| full(name)).collect(),
                imports: imports
                    .into_iter()
                    .map(|(_, import)| import.clone())
                    .collect(),
                is_of_crate: parent.is_empty(),
            });
        }
    }
    circles
}

/// For each module, the imports between the rooms in it, without the known ones.
fn rooms(known: &[[&str; 3]], of: &Crate) -> BTreeMap<Vec<String>, ImportGraph> {
    let mut all: BTreeMap<Vec<String>, ImportGraph> = BTreeMap::new();
    for import in of.imports() {
        let (from, to) = (import.from_module.clone(), import.to_module.clone());
        let common = from.iter().zip(to.iter()).take_while(|(a, b)| a == b);
        let common = common.count();
        // Otherwise one lies below the other.
        if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
            let full = |path: &[String]| path[..=common].join("::");
            if known.contains(&[&of.root, &full(&from), &full(&to)]) {
                continue;
            }
            let rooms = all.entry(from[..common].to_vec()).or_default();
            rooms.add(a, b, import);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNELS: (&str, &str) = (
        "crates/a/src/kernels.rs",
        "pub mod naive;\npub struct Plan;",
    );

    #[test]
    fn circles_of_rooms_are_named() {
        let tree = Tree::of(&[
            (
                "crates/a/src/lib.rs",
                "mod kernels; mod linear; mod weight;\npub use linear::Linear;",
            ),
            KERNELS,
            (
                "crates/a/src/kernels/naive.rs",
                "use super::Plan;\n\nuse crate::Linear;",
            ),
            (
                "crates/a/src/linear.rs",
                "use crate::weight;\npub struct Linear;",
            ),
            (
                "crates/a/src/weight.rs",
                "fn f() { crate::kernels::naive::g(); }",
            ),
        ]);
        let mut wrong = Vec::new();
        check(&tree, &mut wrong);
        let expected = "crates/a/src/lib.rs: modules import each other: linear -> weight -> kernels -> linear\n    \
             crates/a/src/linear.rs:1 imports crate::weight of crates/a/src/weight.rs\n    \
             crates/a/src/weight.rs:1 imports crate::kernels::naive::g of crates/a/src/kernels/naive.rs\n    \
             crates/a/src/kernels/naive.rs:3 imports crate::Linear of crates/a/src/linear.rs";
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        let first_lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(first_lines(&wrong[0]), first_lines(expected));
        assert!(notes(&tree).is_empty());
    }

    #[test]
    fn known_imports_are_left_out_until_they_are_gone() {
        let check = |weight: &str| {
            let tree = Tree::of(&[
                ("crates/a/src/lib.rs", "mod kernels; mod weight;"),
                KERNELS,
                (
                    "crates/a/src/kernels/naive.rs",
                    "use crate::weight::Weight;",
                ),
                ("crates/a/src/weight.rs", weight),
            ]);
            let mut wrong = Vec::new();
            let known = ["crates/a/src/lib.rs", "kernels", "weight"];
            check_without(&[known], &tree, &mut wrong);
            wrong
        };
        assert_eq!(check("use crate::kernels::naive;"), Vec::<String>::new());
        let found = check("");
        assert!(found[0].contains("no circle any more"), "{found:?}");
    }

    #[test]
    fn circles_inside_of_a_room_are_notes() {
        let tree = Tree::of(&[
            ("crates/a/src/lib.rs", "mod kernels;"),
            ("crates/a/src/kernels/mod.rs", "mod cpu; mod naive;"),
            ("crates/a/src/kernels/naive.rs", "use super::cpu::tile::f;"),
            ("crates/a/src/kernels/cpu/mod.rs", "pub mod tile;"),
            (
                "crates/a/src/kernels/cpu/tile.rs",
                "use super::super::naive;",
            ),
        ]);
        let mut wrong = Vec::new();
        check(&tree, &mut wrong);
        assert_eq!(wrong, Vec::<String>::new());
        let notes = notes(&tree);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("kernels::cpu") && notes[0].contains("kernels::naive"));
    }

    #[test]
    fn rooms_without_folders_make_circles_too() {
        let tree = Tree::of(&[
            ("crates/a/src/lib.rs", "mod kernels; mod a; mod b;"),
            KERNELS,
            (
                "crates/a/src/kernels/naive.rs",
                "use crate::kernels::Plan;\nuse super::super::a::A;",
            ),
            (
                "crates/a/src/a.rs",
                "use crate::b::B;\n#[cfg(test)]\nmod tests { use crate::kernels::Plan; }",
            ),
            ("crates/a/src/b.rs", "use crate::a::A;"),
        ]);
        let mut wrong = Vec::new();
        check(&tree, &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("b -> a -> b"), "{wrong:?}");
        assert!(notes(&tree).is_empty());
    }
}
