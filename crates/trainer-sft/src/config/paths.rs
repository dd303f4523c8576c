//! Settings whose paths hold wherever the program is called.

use std::ffi::OsString;
use std::path::{Path, PathBuf, absolute};

use super::Config;

/// What begins a reward that has a file.
const SCHEMA: &str = "json_schema:";

impl Config {
    /// The same settings with absolute paths, for the file that a run leaves: its reader may be called in another folder.
    #[must_use]
    pub(crate) fn with_absolute_paths(&self) -> Self {
        let mut config = self.clone();
        for path in config.data.train.iter_mut().chain(&mut config.data.eval) {
            *path = of_data(path);
        }
        let folders = [
            &mut config.model.init_config,
            &mut config.model.tokenizer,
            &mut config.method.ref_adapter,
            &mut config.run.adapter,
            &mut config.run.logging_dir,
            &mut config.samples.prompts,
        ];
        for path in folders.into_iter().flatten() {
            *path = or_same(path);
        }
        // A name that is no folder is one of the Hub.
        if let Some(model) = &mut config.model.model
            && Path::new(model.as_str()).exists()
        {
            *model = or_same(Path::new(model.as_str())).display().to_string();
        }
        for reward in &mut config.grpo.rewards {
            if let Some(file) = reward.strip_prefix(SCHEMA) {
                *reward = format!("{SCHEMA}{}", or_same(Path::new(file)).display());
            }
        }
        config
    }
}

/// A path that begins with `~`, in the home folder as a shell reads it; `None` for any other one.
pub(crate) fn at_home(text: &str) -> Option<PathBuf> {
    let rest = text.strip_prefix('~')?;
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    match rest.strip_prefix('/') {
        Some(inside) => Some(Path::new(&home).join(inside)),
        None => rest.is_empty().then(|| PathBuf::from(home)),
    }
}

/// [`at_home`] of the value of a setting, which may be a reward with a path.
pub(crate) fn value_at_home(value: &str) -> Option<OsString> {
    match value.split_once(':') {
        Some((kind @ "json_schema", path)) => {
            let mut whole = OsString::from(format!("{kind}:"));
            whole.push(at_home(path)?);
            Some(whole)
        }
        _ => at_home(value).map(OsString::from),
    }
}

/// A file, a folder, a pattern or standard input. A pattern stays as it is where the folder's name would be read as one, too.
fn of_data(path: &Path) -> PathBuf {
    let is_pattern = |path: &Path| path.to_string_lossy().contains(['*', '?', '[']);
    let whole = or_same(path);
    let folder = std::env::current_dir().unwrap_or_default();
    match path.as_os_str() == "-" || is_pattern(path) && !path.exists() && is_pattern(&folder) {
        true => path.to_path_buf(),
        false => whole,
    }
}

fn or_same(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_absolute_and_names_stay() {
        let mut config = Config::new("out");
        config.data.train = ["a.jsonl", "b/*.jsonl", "/c.jsonl", "-"]
            .map(PathBuf::from)
            .into();
        config.model.model = Some("Qwen/Qwen2.5-0.5B".to_owned());
        config.model.tokenizer = Some("t".into());
        config.run.adapter = Some("src".into());
        config.samples.prompts = Some("p.txt".into());
        config.grpo.rewards = vec!["json".to_owned(), "json_schema:s.json".to_owned()];
        let here = std::env::current_dir().unwrap();
        let found = config.with_absolute_paths();
        assert_eq!(
            found.data.train,
            [
                here.join("a.jsonl"),
                here.join("b/*.jsonl"),
                "/c.jsonl".into(),
                "-".into()
            ]
        );
        assert_eq!(found.model, {
            let mut model = config.model.clone();
            model.tokenizer = Some(here.join("t"));
            model
        });
        assert_eq!(found.run.adapter, Some(here.join("src")));
        assert_eq!(found.samples.prompts, Some(here.join("p.txt")));
        assert_eq!(
            found.grpo.rewards[1],
            format!("json_schema:{}", here.join("s.json").display())
        );
        let mut local = config.clone();
        local.model.model = Some("src".to_owned());
        let model = local.with_absolute_paths().model.model.unwrap();
        assert_eq!(Path::new(&model), here.join("src"));
    }
}
