//! Modules whose whole weight an adapter may bring.

/// The modules that may be saved whole: what `modules_to_save` calls them, and their names in a model.
pub const SAVABLE: [(&str, &str); 2] = [
    ("embed_tokens", "model.embed_tokens"),
    ("lm_head", "lm_head"),
];

/// Whether `modules_to_save` may hold `name`.
pub(super) fn is_savable(name: &str) -> bool {
    let mut names = SAVABLE.iter();
    names.any(|(short, module)| name == *short || name == *module)
}

/// The names of [`SAVABLE`] that a list has, in any of their forms: each of them once, in the order of [`SAVABLE`].
pub(super) fn short_names(names: &[String]) -> Vec<String> {
    let is_listed = |(short, module): &(&str, &str)| {
        let mut names = names.iter();
        names.any(|name| name == short || name == module)
    };
    let listed = SAVABLE.into_iter().filter(is_listed);
    listed.map(|(short, _)| short.to_owned()).collect()
}
