//! Which modules a configuration targets, and their ranks and scalings.

use fancy_regex::Regex;

use super::config::{ALL_LINEAR, LoraConfig, OneOrMany, TargetModules};
use super::error::PeftError;
use super::pattern::{Pattern, PatternMap};

/// The output head, which `all-linear` leaves out.
const LM_HEAD: &str = "lm_head";

/// The compiled patterns of a [`LoraConfig`].
#[derive(Debug)]
pub struct LoraMatcher<'a> {
    config: &'a LoraConfig,
    target: Option<Pattern>,
    exclude: Option<Pattern>,
    layers: Vec<Regex>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl<'a> LoraMatcher<'a> {
    /// Compiles the patterns of `config`.
    pub(super) fn new(config: &'a LoraConfig) -> Result<Self, PeftError> {
        let compile = |field, modules: &TargetModules| match modules {
            TargetModules::Pattern(pattern) if !pattern.eq_ignore_ascii_case(ALL_LINEAR) => {
                Pattern::full(field, pattern).map(Some)
            }
            _ => Ok(None),
        };
        Ok(LoraMatcher {
            config,
            target: compile("target_modules", &config.target_modules)?,
            exclude: match &config.exclude_modules {
                Some(modules) => compile("exclude_modules", modules)?,
                None => None,
            },
            layers: layer_patterns(config)?,
            ranks: compile_keys("rank_pattern", &config.rank_pattern)?,
            alphas: compile_keys("alpha_pattern", &config.alpha_pattern)?,
        })
    }

    /// Whether `module` has an adapter, by PEFT's rules (`check_target_module_exists`).
    pub fn targets(&self, module: &str) -> bool {
        let named = |compiled: &Option<Pattern>, modules: &TargetModules| match (compiled, modules)
        {
            (Some(pattern), _) => pattern.matches(module),
            (None, TargetModules::Pattern(_)) => module != LM_HEAD,
            (None, TargetModules::List(names)) => names.iter().any(|name| ends_with(module, name)),
        };
        let excluded = self.config.exclude_modules.as_ref();
        if excluded.is_some_and(|modules| named(&self.exclude, modules)) {
            return false;
        }
        named(&self.target, &self.config.target_modules) && self.in_layers(module)
    }

    /// The rank of the adapter of `module`.
    pub fn rank(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.config.r)
    }

    /// The factor of `B A x` for `module`.
    pub fn scaling(&self, module: &str) -> f64 {
        let alpha = first_match(&self.alphas, module).unwrap_or(self.config.lora_alpha);
        self.config.scaling(alpha, self.rank(module))
    }

    /// The names in a list of targets to which none of `modules` belongs, but those of modules that the configuration may leave out:
    /// which ones it does is known where there is a model.
    pub(super) fn names_without<'m>(
        &self,
        modules: impl Iterator<Item = &'m String> + Clone,
    ) -> Vec<String> {
        let TargetModules::List(names) = &self.config.target_modules else {
            return Vec::new();
        };
        let without = names
            .iter()
            .filter(|name| !modules.clone().any(|module| ends_with(module, name)));
        let without = without.filter(|name| !self.may_leave_out(name));
        without.cloned().collect()
    }

    /// Whether `exclude_modules` or `layers_to_transform` may leave out all modules of a target's name.
    fn may_leave_out(&self, name: &str) -> bool {
        let is_excluded = match &self.config.exclude_modules {
            None => false,
            Some(TargetModules::Pattern(_)) => true,
            Some(TargetModules::List(excluded)) => excluded
                .iter()
                .any(|excluded| ends_with(name, excluded) || ends_with(excluded, name)),
        };
        let has_layer = || name.split('.').any(|part| part.parse::<usize>().is_ok());
        is_excluded || self.config.layers_to_transform.is_some() && has_layer()
    }

    /// Whether `layers_to_transform` admits `module`; PEFT looks at it only next to a list of targets.
    fn in_layers(&self, module: &str) -> bool {
        let TargetModules::List(names) = &self.config.target_modules else {
            return true;
        };
        let layers = match &self.config.layers_to_transform {
            None => return true,
            Some(OneOrMany::Many(layers)) if layers.is_empty() => return true,
            Some(layers) => layers.as_slice(),
        };
        if names.iter().any(|name| name == module) {
            return true;
        }
        let index = self.layers.iter().find_map(|regex| {
            let captures = regex.captures(module).ok()??;
            captures.name("idx")?.as_str().parse::<usize>().ok()
        });
        index.is_some_and(|index| layers.contains(&index))
    }
}

/// Regexes that find the number of a layer in a module's name.
fn layer_patterns(config: &LoraConfig) -> Result<Vec<Regex>, PeftError> {
    let prefixes = config
        .layers_pattern
        .as_ref()
        .map_or(&[][..], OneOrMany::as_slice);
    let compile = |prefix: &str, regex: String| {
        Regex::new(&regex).map_err(|error| PeftError::Pattern {
            field: "layers_pattern",
            pattern: prefix.to_owned(),
            reason: error.to_string(),
        })
    };
    if prefixes.is_empty() {
        return Ok(vec![compile(
            "",
            r"^.*?\.[^.]*\.(?P<idx>\d+)\.".to_owned(),
        )?]);
    }
    prefixes
        .iter()
        .map(|prefix| compile(prefix, format!(r"^(?:|.*?\.){prefix}\.(?P<idx>\d+)\.")))
        .collect()
}

fn compile_keys<T: Copy>(
    field: &'static str,
    map: &PatternMap<T>,
) -> Result<Vec<(Pattern, T)>, PeftError> {
    map.0
        .iter()
        .map(|(key, value)| Ok((Pattern::suffix(field, key)?, *value)))
        .collect()
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| pattern.matches(module))
        .map(|(_, value)| *value)
}

fn ends_with(module: &str, name: &str) -> bool {
    module
        .strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_left_out_is_not_missed() {
        let list = |names: &[&str]| {
            TargetModules::List(names.iter().map(|&name| name.to_owned()).collect())
        };
        let targets = ["q_proj", "down_proj", "model.layers.3.self_attn.o_proj"];
        let found = ["model.layers.0.self_attn.q_proj".to_owned()];
        let excluded = |names: &[&str]| LoraConfig {
            exclude_modules: Some(list(names)),
            ..LoraConfig::default()
        };
        let pattern = LoraConfig {
            exclude_modules: Some(TargetModules::Pattern(r".*\.(down|o)_proj".to_owned())),
            ..LoraConfig::default()
        };
        let layers = LoraConfig {
            layers_to_transform: Some(OneOrMany::One(0)),
            ..LoraConfig::default()
        };
        for (config, missed) in [
            (LoraConfig::default(), &targets[1..]),
            (excluded(&["down_proj"]), &targets[2..]),
            (excluded(&["layers.0.mlp.down_proj", "o_proj"]), &[]),
            (excluded(&["up_proj"]), &targets[1..]),
            (pattern, &[]),
            (layers, &targets[1..2]),
        ] {
            let config = LoraConfig {
                target_modules: list(&targets),
                ..config
            };
            let without = config.matcher().unwrap().names_without(found.iter());
            assert_eq!(without, missed, "{config:?}");
        }
    }
}
