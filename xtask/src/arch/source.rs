//! A Rust file without its tests.

use std::ops::Range;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::Attribute;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A Rust file.
pub(super) struct Source {
    /// The code with blanks for its tests, so that lines keep their numbers.
    #[cfg(test)]
    text: String,
    /// The tokens of the code without its tests; comments are none.
    pub(super) tokens: TokenStream,
    /// What the file defines, its tests too.
    pub(super) items: Vec<syn::Item>,
    /// Lines of the file without those of its tests.
    pub(super) num_lines: usize,
    /// The modules that the file declares, its tests' too.
    pub(super) mods: Vec<ModFile>,
}

/// `mod name;`: a module in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModFile {
    /// Names of the modules in braces around the declaration.
    pub(super) inside: Vec<String>,
    pub(super) name: String,
    /// What `#[path = "..."]` says.
    pub(super) path: Option<String>,
    /// What `#[cfg_attr(..., path = "...")]` says: another file, in another build.
    pub(super) other_path: Option<String>,
    pub(super) is_test: bool,
}

impl Source {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let file = syn::parse_file(text)
            .map_err(|error| anyhow!("line {}: {error}", error.span().start().line))?;
        let mut tests = Tests::default();
        if file.attrs.iter().any(is_test) {
            tests.ranges.push(0..text.len());
            tests.in_test = true;
        }
        tests.visit_file(&file);
        if let Some(line) = tests.unknown {
            bail!(
                "line {line}: `#[cfg(test)]` before something that is no item, statement, arm or field"
            );
        }
        let mut bytes = text.as_bytes().to_vec();
        let mut is_code = vec![true; text.lines().count()];
        for range in tests.ranges {
            let before = bytes[..range.start].iter().filter(|&&b| b == b'\n').count();
            let inside = bytes[range.clone()].iter().filter(|&&b| b == b'\n').count();
            let end = (before + inside + 1).min(is_code.len());
            is_code[before..end].fill(false);
            for byte in bytes[range].iter_mut().filter(|byte| **byte != b'\n') {
                *byte = b' ';
            }
        }
        let text = String::from_utf8(bytes)?;
        let tokens = TokenStream::from_str(&text).map_err(|error| anyhow!("{error}"))?;
        Ok(Self {
            #[cfg(test)]
            text,
            tokens,
            items: file.items,
            num_lines: is_code.into_iter().filter(|&is_code| is_code).count(),
            mods: tests.mods,
        })
    }

    /// Calls `visit` with the tokens of the file, then with those between each pair of brackets.
    pub(super) fn each_level(&self, visit: &mut impl FnMut(&[TokenTree])) {
        each_level(self.tokens.clone(), visit);
    }

    /// The lines of the names for which `matches` is true.
    pub(super) fn lines_of(&self, matches: impl Fn(&str) -> bool) -> Vec<usize> {
        let mut lines = Vec::new();
        self.each_level(&mut |tokens| {
            let names = tokens.iter().filter_map(|token| match token {
                TokenTree::Ident(name) => Some(name),
                _ => None,
            });
            let names = names.filter(|name| matches(&name.to_string()));
            lines.extend(names.map(|name| name.span().start().line));
        });
        lines.sort_unstable();
        lines
    }
}

/// See [`Source::each_level`].
pub(super) fn each_level(tokens: TokenStream, visit: &mut impl FnMut(&[TokenTree])) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    visit(&tokens);
    for token in tokens {
        if let TokenTree::Group(group) = token {
            each_level(group.stream(), visit);
        }
    }
}

/// Whether the token is the name `name`.
pub(super) fn is_name(token: Option<&TokenTree>, name: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == name)
}

/// Whether the token is the sign `sign`.
pub(super) fn is_sign(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

/// The tokens between the brackets of a group.
pub(super) fn inside(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<TokenStream> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group.stream()),
        _ => None,
    }
}

/// Where the tests of a file stand.
#[derive(Default)]
struct Tests {
    /// Bytes of the file.
    ranges: Vec<Range<usize>>,
    mods: Vec<ModFile>,
    /// Names of the modules around the visited place.
    inside: Vec<String>,
    in_test: bool,
    /// Line of an attribute whose test was not found.
    unknown: Option<usize>,
}

impl Tests {
    /// Visits `node`. Notes where it stands if it is a test.
    fn node<N: Spanned>(&mut self, attrs: &[Attribute], node: &N, visit: impl FnOnce(&mut Self)) {
        let (was_test, is_test) = (self.in_test, attrs.iter().any(is_test));
        if is_test && !was_test {
            self.ranges.push(node.span().byte_range());
        }
        self.in_test |= is_test;
        visit(self);
        self.in_test = was_test;
    }
}

/// A visitor's methods for the nodes that an attribute can make a test.
macro_rules! visit_nodes {
    ($($method:ident: $node:ident),* $(,)?) => {$(
        fn $method(&mut self, node: &'a syn::$node) {
            self.node(&node.attrs, node, |tests| visit::$method(tests, node));
        }
    )*};
}

impl<'a> Visit<'a> for Tests {
    visit_nodes! {
        visit_arm: Arm,
        visit_field: Field,
        visit_field_value: FieldValue,
        visit_foreign_item_fn: ForeignItemFn,
        visit_foreign_item_static: ForeignItemStatic,
        visit_impl_item_const: ImplItemConst,
        visit_impl_item_fn: ImplItemFn,
        visit_impl_item_macro: ImplItemMacro,
        visit_impl_item_type: ImplItemType,
        visit_item_const: ItemConst,
        visit_item_enum: ItemEnum,
        visit_item_extern_crate: ItemExternCrate,
        visit_item_fn: ItemFn,
        visit_item_foreign_mod: ItemForeignMod,
        visit_item_impl: ItemImpl,
        visit_item_macro: ItemMacro,
        visit_item_static: ItemStatic,
        visit_item_struct: ItemStruct,
        visit_item_trait: ItemTrait,
        visit_item_type: ItemType,
        visit_item_union: ItemUnion,
        visit_item_use: ItemUse,
        visit_local: Local,
        visit_stmt_macro: StmtMacro,
        visit_trait_item_const: TraitItemConst,
        visit_trait_item_fn: TraitItemFn,
        visit_trait_item_macro: TraitItemMacro,
        visit_trait_item_type: TraitItemType,
        visit_variant: Variant,
    }

    fn visit_item_mod(&mut self, node: &'a syn::ItemMod) {
        self.node(&node.attrs, node, |tests| {
            let name = name_of(&node.ident);
            if node.content.is_none() {
                let mut paths = node.attrs.iter().map(path_of);
                tests.mods.push(ModFile {
                    inside: tests.inside.clone(),
                    name,
                    path: paths.clone().find_map(|(path, _)| path),
                    other_path: paths.find_map(|(_, other)| other),
                    is_test: tests.in_test,
                });
                return;
            }
            tests.inside.push(name);
            visit::visit_item_mod(tests, node);
            tests.inside.pop();
        });
    }

    /// The body of a macro is no syntax tree: `#[cfg(test)]` in it ends with the next `;` or `}`.
    fn visit_macro(&mut self, node: &'a syn::Macro) {
        if self.in_test {
            return;
        }
        each_level(node.tokens.clone(), &mut |tokens| {
            let mut at = 0;
            while at < tokens.len() {
                if !starts_test(&tokens[at..]) {
                    at += 1;
                    continue;
                }
                let start = tokens[at].span().byte_range().start;
                let is_end = |token: &TokenTree| {
                    is_sign(Some(token), ';') || inside(Some(token), Delimiter::Brace).is_some()
                };
                let len = tokens[at..].iter().position(is_end);
                at = len.map_or(tokens.len() - 1, |len| at + len);
                self.ranges.push(start..tokens[at].span().byte_range().end);
                at += 1;
            }
        });
    }

    fn visit_attribute(&mut self, node: &'a Attribute) {
        if !self.in_test && is_test(node) {
            self.unknown = Some(node.span().start().line);
        }
    }
}

/// Whether the tokens start with the attribute of a test.
fn starts_test(tokens: &[TokenTree]) -> bool {
    if !is_sign(tokens.first(), '#') {
        return false;
    }
    let Some(attribute) = inside(tokens.get(1), Delimiter::Bracket) else {
        return false;
    };
    let attribute: Vec<TokenTree> = attribute.into_iter().collect();
    is_name(attribute.first(), "cfg")
        && inside(attribute.get(1), Delimiter::Parenthesis).is_some_and(only_in_tests)
}

/// Whether the attribute belongs to a test: `#[test]`, `#[cfg(test)]`, `#[cfg(all(test, ...))]`.
fn is_test(attribute: &Attribute) -> bool {
    if attribute.path().is_ident("test") {
        return true;
    }
    match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => only_in_tests(list.tokens.clone()),
        _ => false,
    }
}

/// Whether the condition of a `cfg` is true in tests only.
fn only_in_tests(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    match tokens.as_slice() {
        [name] => is_name(Some(name), "test"),
        [name, TokenTree::Group(group)] => {
            let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
            let parts = tokens.split(|token| is_sign(Some(token), ','));
            let mut parts = parts.filter(|part| !part.is_empty());
            let is_test = |part: &[TokenTree]| only_in_tests(part.iter().cloned().collect());
            if is_name(Some(name), "any") {
                parts.all(is_test)
            } else {
                is_name(Some(name), "all") && parts.any(is_test)
            }
        }
        _ => false,
    }
}

/// The file that `#[path = "..."]` names, and the one that `#[cfg_attr(..., path = "...")]` names.
fn path_of(attribute: &Attribute) -> (Option<String>, Option<String>) {
    match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(path),
                ..
            }) => (Some(path.value()), None),
            _ => (None, None),
        },
        syn::Meta::List(list) if list.path.is_ident("cfg_attr") => {
            let tokens: Vec<TokenTree> = list.tokens.clone().into_iter().collect();
            let path = tokens.windows(3).find_map(|tokens| {
                let is_path = is_name(tokens.first(), "path") && is_sign(tokens.get(1), '=');
                is_path.then(|| tokens[2].to_string().trim_matches('"').to_owned())
            });
            (None, path)
        }
        _ => (None, None),
    }
}

/// A name without `r#`.
pub(super) fn name_of(name: &proc_macro2::Ident) -> String {
    let name = name.to_string();
    name.strip_prefix("r#").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of the code, without blanks.
    fn code(text: &str) -> String {
        let source = Source::parse(text).unwrap();
        source.text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tests_are_stripped_wherever_they_stand() {
        for test in [
            "#[cfg(test)] mod tests { fn a() { if x { \"}\" } else { '}' }; } }",
            "#[cfg(test)] mod tests { const A: &str = r#\"\"}\"#; fn f<'a>(x: &'a str) { /* } /* } */ */ } } // }",
            "/// A doc.\n#[allow(dead_code)]\n// A comment.\n#[cfg(test)]\n/// More.\n#[inline]\npub(crate) fn f() -> [u8; 2] { [1; 2] }",
            "#[cfg(test)] impl<T: Into<u8>> Trait for S<T> where T: Copy { fn f() {} }",
            "#[cfg(test)] use a::{b, c};",
            "#[cfg(test)] const A: S = S { a: [1; 2] };",
            "#[cfg(test)] static A: u8 = { 1 };",
            "#[cfg(test)] struct A;",
            "#[cfg(test)] struct A { a: u8 }",
            "#[cfg(test)] struct A(u8);",
            "#[cfg(all(test, target_os = \"linux\"))] mod tests {}",
            "#[cfg(any(test, all(test, unix)))] mod tests {}",
            "#[cfg(test)] macro_rules! a { () => {}; }",
            "#[cfg(test)] proptest! { fn f() {} }",
            "#[test] fn f() {}",
            "#[cfg(test)] mod tests;",
        ] {
            let text = format!("fn before() {{}}\n{test}\nfn after() {{}}");
            let left = code(&text);
            let left = left.replace("// } ", "");
            assert_eq!(left, "fn before() {} fn after() {}", "{test}");
        }
        for inside in [
            "impl S { #[cfg(test)] fn f() {} }",
            "trait S { #[cfg(test)] fn f(); }",
            "fn f() { #[cfg(test)] let a = 1; }",
            "fn f() { #[cfg(test)] assert!(a); }",
            "fn f() { #[cfg(test)] fn g() {} }",
            "mod m { #[cfg(test)] mod tests { fn a() {} } }",
            "macro_rules! m { () => { #[cfg(test)] mod tests { fn a() {} } }; }",
        ] {
            let left = code(inside);
            assert!(!left.contains("test") && left.ends_with('}'), "{left}");
        }
    }

    #[test]
    fn what_is_no_test_stays() {
        for text in [
            "#[cfg(not(test))] fn f() {}",
            "#[cfg(any(test, unix))] fn f() {}",
            "#[cfg(feature = \"test\")] fn f() {}",
            "#[cfg_attr(test, allow(dead_code))] fn f() {}",
            "const A: &str = \"#[cfg(test)] mod tests {}\";",
            "const A: &str = r#\"#[cfg(test)] fn \"f() {}\"#;",
            "/* #[cfg(test)] */ fn f() {}",
            "macro_rules! m { ($a:item) => { #[cfg(unix)] $a }; }",
            "#[cube(launch)] fn f<F: Float>(a: &mut [F], #[comptime] b: u32) { a[ABSOLUTE_POS] = F::new(0.0); }",
        ] {
            assert_eq!(code(text), text);
        }
    }

    #[test]
    fn lines_of_tests_are_not_counted() {
        let text = "fn a() {}\n#[cfg(test)]\nmod b {\n    fn c() {}\n}\n\n// D.\nfn d() {}\n#[cfg(test)]\nfn e() {}\n";
        let source = Source::parse(text).unwrap();
        assert_eq!(source.num_lines, 4);
        assert_eq!(source.lines_of(|name| name == "d"), [8]);
    }

    #[test]
    fn test_code_at_an_unknown_place_is_an_error() {
        let error = Source::parse("fn f() {\n    g(#[cfg(test)] 1);\n}");
        assert!(error.err().unwrap().to_string().starts_with("line 2"));
    }

    #[test]
    fn modules_in_files_are_found() {
        let text = "mod a;\n#[cfg(test)]\nmod tests;\nmod b { mod c; }\n#[path = \"x/d.rs\"]\nmod d;\n\
                    #[cfg_attr(not(feature = \"gpu\"), path = \"e/none.rs\")]\nmod e;";
        let mods = Source::parse(text).unwrap().mods;
        let names: Vec<_> = mods.iter().map(|m| (m.name.as_str(), m.is_test)).collect();
        let expected = [
            ("a", false),
            ("tests", true),
            ("c", false),
            ("d", false),
            ("e", false),
        ];
        assert_eq!(names, expected);
        assert_eq!(mods[2].inside, ["b"]);
        assert_eq!(mods[3].path.as_deref(), Some("x/d.rs"));
        assert_eq!(mods[4].other_path.as_deref(), Some("e/none.rs"));
    }
}
