//! How to reach the Hub.

use std::path::PathBuf;

/// Where the Hub is when `HF_ENDPOINT` says nothing.
const HUB: &str = "https://huggingface.co";

/// How to reach the Hub.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Address without a slash at the end.
    pub endpoint: String,
    /// Sent as bearer token.
    pub token: Option<String>,
    /// The folder that holds `models--org--name`.
    pub cache_dir: PathBuf,
    /// Never use the network.
    pub offline: bool,
    /// Show a progress bar per file on the terminal.
    pub progress: bool,
}

impl HubOptions {
    /// The environment's answer, as the Python library `huggingface_hub` reads it: `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`, and the token
    /// that `hf auth login` stored.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            lookup(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let cache_home = || match get("XDG_CACHE_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::home_dir().unwrap_or_default().join(".cache"),
        };
        let home = get("HF_HOME").map_or_else(|| cache_home().join("huggingface"), PathBuf::from);
        let token = get("HF_TOKEN")
            .or_else(|| get("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(home.join("token")).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let cache_dir = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE"));
        let truthy = |value: String| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "on" | "yes" | "true"
            )
        };
        Self {
            endpoint: get("HF_ENDPOINT")
                .unwrap_or_else(|| HUB.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            token,
            cache_dir: cache_dir.map_or_else(|| home.join("hub"), PathBuf::from),
            offline: get("HF_HUB_OFFLINE")
                .or_else(|| get("TRANSFORMERS_OFFLINE"))
                .is_some_and(truthy),
            progress: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_environment_is_read_as_in_python() {
        let options = |pairs: &[(&str, &str)]| {
            HubOptions::from_lookup(|name| {
                let pair = pairs.iter().find(|(key, _)| *key == name);
                pair.map(|(_, value)| (*value).to_owned())
            })
        };
        let set = options(&[
            ("HF_ENDPOINT", "https://hf-mirror.com/"),
            ("HF_TOKEN", " abc\n"),
            ("HF_HOME", "/x/hf"),
            ("HF_HUB_OFFLINE", "ON"),
        ]);
        assert_eq!(set.endpoint, "https://hf-mirror.com");
        assert_eq!(set.token.as_deref(), Some("abc"));
        assert_eq!(set.cache_dir, Path::new("/x/hf/hub"));
        assert!(set.offline);

        let xdg = options(&[("XDG_CACHE_HOME", "/c"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(xdg.endpoint, HUB);
        assert_eq!(xdg.cache_dir, Path::new("/c/huggingface/hub"));
        assert!(!xdg.offline);
        let cache = options(&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y")]);
        assert_eq!(cache.cache_dir, Path::new("/y"));
    }
}
