//! The modules of a crate, and which file imports which.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proc_macro2::TokenTree;

use super::source::Source;

mod mod_files;
mod scan;

pub(super) use mod_files::note_files;

/// A library, a program or an example.
pub(super) struct Crate {
    /// The file of its root.
    pub(super) root: String,
    /// The first is the root.
    modules: Vec<Module>,
    mentions: Vec<Mention>,
}

/// A module, in a file of its own or in braces.
struct Module {
    file: String,
    /// Names from the root to the module, and to the module whose file it is in.
    path: Vec<String>,
    file_path: Rc<[String]>,
    parent: usize,
    /// By name. A name has several where builds choose among files.
    children: Vec<(String, usize)>,
    /// What `use` names in the module, and the paths of `use path::*`.
    uses: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Names of what it defines.
    items: BTreeSet<String>,
}

/// A path in the code of a module.
struct Mention {
    module: usize,
    path: Vec<String>,
    line: usize,
}

/// A file names something of another file of the crate.
#[derive(Clone, Debug)]
pub(super) struct Import {
    pub(super) from: String,
    pub(super) line: usize,
    /// As it is written.
    pub(super) path: String,
    pub(super) to: String,
    /// The modules of both files.
    pub(super) from_module: Rc<[String]>,
    pub(super) to_module: Rc<[String]>,
}

/// What a path leads to.
#[derive(Clone, Copy)]
enum Target {
    Module(usize),
    /// Something that the module defines.
    In(usize),
}

impl Target {
    fn module(self) -> usize {
        match self {
            Self::Module(module) | Self::In(module) => module,
        }
    }
}

impl Crate {
    /// The crate with this root. Modules without a file among `files` are left out.
    pub(super) fn new(root: &str, files: &BTreeMap<String, Source>) -> Self {
        let mut new = Self {
            root: root.to_owned(),
            modules: Vec::new(),
            mentions: Vec::new(),
        };
        new.load(root, true, Vec::new(), 0, files);
        new
    }

    /// Adds the module in `file`, and those below it. `is_root` says that its children's files stand next to it.
    fn load(
        &mut self,
        file: &str,
        is_root: bool,
        path: Vec<String>,
        parent: usize,
        files: &BTreeMap<String, Source>,
    ) {
        let source = &files[file];
        let first = self.modules.len();
        let file_path: Rc<[String]> = path.clone().into();
        self.add(Module::new(file, path.clone(), file_path.clone(), parent));
        let tokens: Vec<TokenTree> = source.tokens.clone().into_iter().collect();
        self.scan(&tokens, first, true);
        for declared in source.mods.iter().filter(|declared| !declared.is_test) {
            let around: Vec<String> = [&*path, &*declared.inside].concat();
            let mut modules = first..self.modules.len();
            let Some(parent) = modules.find(|&m| {
                self.modules[m].file_path == file_path && self.modules[m].path == around
            }) else {
                continue;
            };
            for (file, is_root) in declared.files(file, is_root, |file| files.contains_key(file)) {
                let path = [&*around, std::slice::from_ref(&declared.name)].concat();
                self.load(&file, is_root, path, parent, files);
            }
        }
    }

    fn add(&mut self, module: Module) -> usize {
        let number = self.modules.len();
        if let Some(name) = module.path.last() {
            let parent = &mut self.modules[module.parent];
            parent.children.push((name.clone(), number));
        }
        self.modules.push(module);
        number
    }

    /// What `path` leads to in `module`; `None` for another crate's.
    fn resolve(
        &self,
        module: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let mut target = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(module),
            "super" => Target::Module(self.modules[module].parent),
            name => self.find(module, name, seen)?,
        };
        while let (Target::Module(module), Some((name, others))) = (target, rest.split_first()) {
            target = match name.as_str() {
                "super" => Target::Module(self.modules[module].parent),
                name => self.find(module, name, seen).unwrap_or(Target::In(module)),
            };
            rest = others;
        }
        Some(target)
    }

    /// What `name` is in `module`.
    fn find(
        &self,
        module: usize,
        name: &str,
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Target> {
        let this = &self.modules[module];
        let mut children = this.children.iter();
        if let Some(&(_, child)) = children.find(|(child, _)| child == name) {
            return Some(Target::Module(child));
        }
        if this.items.contains(name) {
            return Some(Target::In(module));
        }
        if !seen.insert((module, name.to_owned())) {
            return None;
        }
        if let Some(path) = this.uses.get(name) {
            return self.resolve(module, path, seen);
        }
        this.globs.iter().find_map(|path| {
            match self.resolve(module, path, &mut seen.clone())? {
                Target::Module(module) => self.find(module, name, seen),
                // The variants of an enum.
                Target::In(_) => None,
            }
        })
    }

    /// What the code in `file` names of another crate, and on which lines.
    pub(super) fn names_of(&self, file: &str, other: &str) -> Vec<(usize, String)> {
        let mentions = self.mentions.iter().filter(|mention| {
            let is_other = mention.path.first().is_some_and(|first| first == other);
            is_other && self.modules[mention.module].file == file
        });
        let name = |mention: &Mention| mention.path.get(1).map_or("*", String::as_str).to_owned();
        mentions
            .map(|mention| (mention.line, name(mention)))
            .collect()
    }

    /// Which file names something of which other file.
    pub(super) fn imports(&self) -> Vec<Import> {
        let import = |mention: &Mention| {
            let from = &self.modules[mention.module];
            let target = self.resolve(mention.module, &mention.path, &mut BTreeSet::new())?;
            let to = &self.modules[target.module()];
            (from.file != to.file).then(|| Import {
                from: from.file.clone(),
                line: mention.line,
                path: mention.path.join("::"),
                to: to.file.clone(),
                from_module: from.file_path.clone(),
                to_module: to.file_path.clone(),
            })
        };
        self.mentions.iter().filter_map(import).collect()
    }
}

impl Module {
    fn new(file: &str, path: Vec<String>, file_path: Rc<[String]>, parent: usize) -> Self {
        Self {
            file: file.to_owned(),
            path,
            file_path,
            parent,
            children: Vec::new(),
            uses: BTreeMap::new(),
            globs: Vec::new(),
            items: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;

    /// The imports of a library, as `from:line to`, without folders.
    fn imports(files: &[(&str, &str)]) -> Vec<String> {
        let places: Vec<String> = files
            .iter()
            .map(|(p, _)| format!("crates/a/src/{p}"))
            .collect();
        let files: Vec<(&str, &str)> = (places.iter().zip(files))
            .map(|(place, (_, text))| (place.as_str(), *text))
            .collect();
        let tree = Tree::of(&files);
        assert!(tree.lost.is_empty(), "{:?}", tree.lost);
        let imports = tree.crates[0].imports();
        let short = |place: &str| place.trim_start_matches("crates/a/src/").to_owned();
        let shown = |i: &super::Import| format!("{}:{} {}", short(&i.from), i.line, short(&i.to));
        imports.iter().map(shown).collect()
    }

    #[test]
    fn paths_lead_to_the_file_that_defines() {
        let lib = "mod a;\nmod b;\npub use b::B;\npub use a::*;";
        let declared = ["lib.rs:3 b/mod.rs", "lib.rs:4 a.rs"];
        for (a, expected) in [
            ("use crate::b::B;", vec!["a.rs:1 b/mod.rs"]),
            ("\nuse crate::B as C;", vec!["a.rs:2 b/mod.rs"]),
            (
                "use crate::{b::{self, c::C}, B};",
                vec!["a.rs:1 b/mod.rs", "a.rs:1 b/c.rs", "a.rs:1 b/mod.rs"],
            ),
            ("use crate::b::Again;", vec!["a.rs:1 b/c.rs"]),
            ("use crate::b::*;", vec!["a.rs:1 b/mod.rs"]),
            ("use super::b;", vec!["a.rs:1 b/mod.rs"]),
            ("fn f() { crate::b::c::C::new(); }", vec!["a.rs:1 b/c.rs"]),
            ("fn f() {\n    use crate::b::c;\n}", vec!["a.rs:2 b/c.rs"]),
            (
                "macro_rules! m { () => { $crate::b::f() }; }",
                vec!["a.rs:1 b/mod.rs"],
            ),
            (
                "mod inner {\n fn f() { super::super::b::f(); }\n}",
                vec!["a.rs:2 b/mod.rs"],
            ),
            ("mod inner { fn f() { super::g(); self::h(); } }", vec![]),
            (
                "use std::b::B;\nuse ::b::B;\nfn f() { x.b::<u8>(); y::b::f(); }",
                vec![],
            ),
            (
                "pub(in crate::b) fn f() {}\npub(crate) struct S(pub(super) u8);",
                vec![],
            ),
            ("fn f() -> impl Sized + use<> { 1 }", vec![]),
            (
                "// use crate::b::B;\nconst A: &str = \"crate::b::B\";",
                vec![],
            ),
            ("#[cfg(test)]\nmod tests { use crate::b::B; }", vec![]),
            ("struct b;\nfn f() { b::c(); }", vec![]),
        ] {
            let files = [
                ("lib.rs", lib),
                ("a.rs", a),
                ("b/mod.rs", "mod c; pub struct B; pub use c::*;"),
                ("b/c.rs", "pub struct C; pub struct Again;"),
            ];
            let mut found = imports(&files);
            found
                .retain(|import| !declared.contains(&import.as_str()) && !import.starts_with("b/"));
            assert_eq!(found, expected, "{a}");
        }
    }

    #[test]
    fn both_styles_of_modules_are_known() {
        let files = [
            ("lib.rs", "mod a;\nmod b;"),
            ("a.rs", "mod c;\nuse c::f;"),
            ("a/c.rs", "use crate::b::d::g;"),
            ("b/mod.rs", "pub mod d;"),
            ("b/d.rs", "use super::super::a;\nuse crate::b::d;"),
        ];
        assert_eq!(
            imports(&files),
            ["a.rs:2 a/c.rs", "a/c.rs:1 b/d.rs", "b/d.rs:1 a.rs"]
        );
    }

    #[test]
    fn files_of_other_builds_belong_to_the_crate() {
        let files = [
            (
                "lib.rs",
                "mod a;\n#[cfg_attr(x, path = \"none.rs\")]\nmod some;\n#[cfg(y)]\n#[path = \"a/z.rs\"]\nmod z;",
            ),
            ("a.rs", ""),
            ("a/z.rs", "use crate::a;"),
            ("none.rs", "use crate::a;"),
            ("some.rs", "use crate::z;"),
        ];
        assert_eq!(
            imports(&files),
            ["some.rs:1 a/z.rs", "none.rs:1 a.rs", "a/z.rs:1 a.rs"]
        );
    }
}
