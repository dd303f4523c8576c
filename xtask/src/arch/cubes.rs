//! Kernels with many arguments.

use syn::visit::{self, Visit};
use syn::{Attribute, FnArg, Ident, Signature};

use super::tree::Tree;

/// Arguments of a `#[cube]` function that are known when it runs, not when it is compiled, at most: more are a struct.
const MAX_ARGUMENTS: usize = 8;

/// The `#[cube]` functions with more, the worst first.
pub(super) fn notes(tree: &Tree) -> Vec<String> {
    let mut all = Vec::new();
    for (place, source) in &tree.files {
        let mut cubes = Cubes::default();
        source.items.iter().for_each(|item| cubes.visit_item(item));
        let many = cubes
            .found
            .into_iter()
            .filter(|found| found.0 > MAX_ARGUMENTS);
        all.extend(many.map(|(num, name)| (num, place, name)));
    }
    all.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let show = |(num, place, name): (usize, &String, Ident)| {
        let line = name.span().start().line;
        format!("{place}:{line}: {name} has {num} arguments that are not comptime")
    };
    all.into_iter().map(show).collect()
}

/// The `#[cube]` functions of a file, each with its arguments that are not comptime.
#[derive(Default)]
struct Cubes {
    found: Vec<(usize, Ident)>,
    /// Whether the visited functions are those of a `#[cube]` block.
    in_cube: bool,
}

impl Cubes {
    fn function(&mut self, attrs: &[Attribute], signature: &Signature) {
        if !self.in_cube && !is_cube(attrs) {
            return;
        }
        let is_comptime = |argument: &&FnArg| match argument {
            FnArg::Receiver(_) => false,
            FnArg::Typed(argument) => argument.attrs.iter().any(|a| a.path().is_ident("comptime")),
        };
        let inputs = signature.inputs.iter();
        let num = inputs.filter(|argument| !is_comptime(argument)).count();
        self.found.push((num, signature.ident.clone()));
    }

    fn block(&mut self, attrs: &[Attribute], visit: impl FnOnce(&mut Self)) {
        let before = self.in_cube;
        self.in_cube = is_cube(attrs);
        visit(self);
        self.in_cube = before;
    }
}

/// `#[cube]` or `#[cube(...)]`.
fn is_cube(attrs: &[Attribute]) -> bool {
    let mut names = attrs.iter().filter_map(|a| a.path().segments.last());
    names.any(|name| name.ident == "cube")
}

impl<'a> Visit<'a> for Cubes {
    fn visit_item_fn(&mut self, node: &'a syn::ItemFn) {
        self.function(&node.attrs, &node.sig);
    }

    fn visit_impl_item_fn(&mut self, node: &'a syn::ImplItemFn) {
        self.function(&node.attrs, &node.sig);
    }

    fn visit_trait_item_fn(&mut self, node: &'a syn::TraitItemFn) {
        self.function(&node.attrs, &node.sig);
    }

    fn visit_item_impl(&mut self, node: &'a syn::ItemImpl) {
        self.block(&node.attrs, |cubes| visit::visit_item_impl(cubes, node));
    }

    fn visit_item_trait(&mut self, node: &'a syn::ItemTrait) {
        self.block(&node.attrs, |cubes| visit::visit_item_trait(cubes, node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_counted() {
        let args = |num: usize| (0..num).map(|i| format!("a{i}: u32, ")).collect::<String>();
        let (eight, nine) = (args(8), args(9));
        let text = format!(
            "#[cube(launch)] fn many<F: Float>({nine} #[comptime] b: u32) {{}}\n\
             #[cube] fn few({eight} #[comptime] b: u32) {{}}\n\
             #[cube] impl A {{ fn method(&self, {eight}) {{}} }}\n\
             fn host({nine}) {{}}"
        );
        let place = "crates/a/src/lib.rs";
        let expected = [(1, "many"), (3, "method")].map(|(line, name)| {
            format!("{place}:{line}: {name} has 9 arguments that are not comptime")
        });
        assert_eq!(notes(&Tree::of(&[(place, &text)])), expected);
    }
}
