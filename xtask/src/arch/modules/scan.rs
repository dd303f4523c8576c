//! What the tokens of a module name and define.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::UseTree;

use super::super::source::{inside, is_name, is_sign, name_of};
use super::{Crate, Mention, Module};

impl Crate {
    /// Finds modules, definitions and paths. `is_top` says that the tokens are the module's own, not those of a body.
    pub(super) fn scan(&mut self, tokens: &[TokenTree], module: usize, is_top: bool) {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let next = tokens.get(at + 1);
            match token {
                TokenTree::Group(group) => {
                    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
                    self.scan(&tokens, module, false);
                    at += 1;
                }
                TokenTree::Ident(word) if word == "pub" => {
                    let place = inside(next, Delimiter::Parenthesis).filter(is_visibility);
                    at += 1 + usize::from(place.is_some());
                }
                TokenTree::Ident(word) if word == "use" && !is_sign(next, '<') => {
                    let end = tokens[at..].iter().position(|t| is_sign(Some(t), ';'));
                    let end = end.map_or(tokens.len(), |len| at + len + 1);
                    self.note_use(tokens[at..end].iter().cloned().collect(), module, is_top);
                    at = end;
                }
                TokenTree::Ident(word) if word == "mod" && is_top => {
                    let body = inside(tokens.get(at + 2), Delimiter::Brace);
                    if let (Some(TokenTree::Ident(name)), Some(body)) = (next, body) {
                        let around = &self.modules[module];
                        let path = [&*around.path, std::slice::from_ref(&name_of(name))].concat();
                        let new = Module::new(&around.file, path, around.file_path.clone(), module);
                        let new = self.add(new);
                        let body: Vec<TokenTree> = body.into_iter().collect();
                        self.scan(&body, new, true);
                        at += 3;
                    } else {
                        at += 2;
                    }
                }
                TokenTree::Ident(word) => {
                    let path = path_at(&tokens[at..]);
                    if is_top && DEFINES.contains(&word.to_string().as_str()) {
                        // `macro_rules! name`.
                        let name = tokens.get(at + 1 + usize::from(is_sign(next, '!')));
                        if let Some(TokenTree::Ident(name)) = name {
                            self.modules[module].items.insert(name_of(name));
                        }
                    }
                    if path.len() > 1 && !is_behind(tokens, at) {
                        self.mentions.push(Mention {
                            module,
                            path: path.clone(),
                            line: word.span().start().line,
                        });
                    }
                    // Two signs between each two names.
                    at += 3 * path.len() - 2;
                }
                _ => at += 1,
            }
        }
    }

    fn note_use(&mut self, item: TokenStream, module: usize, is_top: bool) {
        // The `$name` of a macro is no path.
        let Ok(item) = syn::parse2::<syn::ItemUse>(item) else {
            return;
        };
        let line = item.use_token.span.start().line;
        let mut found = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut found);
        for (path, name) in found {
            self.mentions.push(Mention {
                module,
                path: path.clone(),
                line,
            });
            let module = &mut self.modules[module];
            match name {
                _ if !is_top || item.leading_colon.is_some() => {}
                Some(name) => _ = module.uses.insert(name, path),
                None => module.globs.push(path),
            }
        }
    }
}

/// Words before the name of what a module defines.
const DEFINES: [&str; 10] = [
    "fn",
    "struct",
    "enum",
    "union",
    "trait",
    "type",
    "const",
    "static",
    "mut",
    "macro_rules",
];

/// Whether these stand in the brackets of `pub(...)`: a type does in a struct without names.
fn is_visibility(tokens: &TokenStream) -> bool {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let word = |name| is_name(tokens.first(), name);
    word("in") || tokens.len() == 1 && (word("crate") || word("super") || word("self"))
}

/// Whether the name at `at` follows `::` or the `.` of a method.
fn is_behind(tokens: &[TokenTree], at: usize) -> bool {
    let is_before = |n, sign| at >= n && is_sign(tokens.get(at - n), sign);
    is_before(1, ':') && is_before(2, ':') || is_before(1, '.') && !is_before(2, '.')
}

/// The names of the path that starts the tokens.
fn path_at(tokens: &[TokenTree]) -> Vec<String> {
    let mut path = Vec::new();
    for tokens in tokens.chunks(3) {
        let Some(TokenTree::Ident(name)) = tokens.first() else {
            break;
        };
        path.push(name_of(name));
        if !is_sign(tokens.get(1), ':') || !is_sign(tokens.get(2), ':') {
            break;
        }
    }
    path
}

/// The paths of a `use`, each with its name in the module, if it is not `*`.
fn flatten(
    tree: &UseTree,
    before: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, Option<String>)>,
) {
    let path = |name: &proc_macro2::Ident| match name_of(name) {
        name if name == "self" && !before.is_empty() => before.clone(),
        name => [before.as_slice(), &[name]].concat(),
    };
    match tree {
        UseTree::Path(part) => {
            before.push(name_of(&part.ident));
            flatten(&part.tree, before, found);
            before.pop();
        }
        UseTree::Name(part) => {
            let path = path(&part.ident);
            let name = path.last().cloned();
            found.push((path, name));
        }
        UseTree::Rename(part) => found.push((path(&part.ident), Some(name_of(&part.rename)))),
        UseTree::Glob(_) => found.push((before.clone(), None)),
        UseTree::Group(group) => {
            for part in &group.items {
                flatten(part, before, found);
            }
        }
    }
}
