//! What the model knows of keys and values.

use syn::{Item, TraitItem};

use super::source::Source;
use super::tree::Tree;

/// The file of the trait that the model calls.
const TRAIT: &str = "crates/kv-paging/src/attention.rs";
/// The file that calls it.
const MODEL: &str = "crates/model-qwen/src/model.rs";
/// What a model may name besides the trait.
const PLAIN: [&str; 1] = ["Rotary"];

pub(super) fn check(tree: &Tree, wrong: &mut Vec<String>) {
    let traits = tree.files.get(TRAIT).map_or_else(Vec::new, traits);
    let ([(name, methods)], true) = (traits.as_slice(), tree.files.contains_key(MODEL)) else {
        wrong.push(format!("{TRAIT} must have one trait, which {MODEL} calls"));
        return;
    };
    if *methods != 1 {
        wrong.push(format!("{TRAIT}: {name} has {methods} methods, not one"));
    }
    let named = tree
        .crates
        .iter()
        .flat_map(|of| of.names_of(MODEL, "kv_paging"));
    for (line, named) in named {
        if named != *name && !PLAIN.contains(&named.as_str()) {
            wrong.push(format!(
                "{MODEL}:{line}: the model names {named} of kv-paging; it knows {name} and nothing else"
            ));
        }
    }
}

/// The traits of a file, and how many methods each has.
fn traits(source: &Source) -> Vec<(String, usize)> {
    let traits = source.items.iter().filter_map(|item| match item {
        Item::Trait(item) => {
            let methods = item.items.iter();
            let methods = methods.filter(|item| matches!(item, TraitItem::Fn(_)));
            Some((item.ident.to_string(), methods.count()))
        }
        _ => None,
    });
    traits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(attention: &str, model: &str) -> Vec<String> {
        let tree = Tree::of(&[
            ("crates/kv-paging/src/lib.rs", "mod attention;"),
            (TRAIT, attention),
            ("crates/model-qwen/src/lib.rs", "mod model;"),
            (MODEL, model),
        ]);
        let mut wrong = Vec::new();
        check(&tree, &mut wrong);
        wrong
    }

    const ONE: &str = "pub trait Attention { fn attend(&self); }\npub struct PagedAttention;";

    #[test]
    fn a_model_that_knows_more_is_named() {
        let two = "pub trait Attention { fn attend(&self); fn more(&self) {} }";
        let found = wrong(two, "use kv_paging::Attention;");
        assert!(found[0].contains("2 methods"), "{found:?}");
        for model in [
            "use kv_paging::{Attention, PagedKvCache};",
            "fn f(cache: &kv_paging::PagedKvCache) {}",
            "use kv_paging::PagedKvCache as Attention;",
            "use kv_paging::*;",
        ] {
            let found = wrong(ONE, model);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("{MODEL}:1: the model names")));
        }
    }

    #[test]
    fn a_model_that_knows_attention_is_not() {
        let model = "use kv_paging::{Attention, Rotary};\nfn f(a: &mut dyn kv_paging::Attention) {}\n\
                     #[cfg(test)]\nmod tests { use kv_paging::PagedKvCache; }";
        assert_eq!(wrong(ONE, model), Vec::<String>::new());
    }
}
