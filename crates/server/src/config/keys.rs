//! Keys that clients must send.

use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{ConfigError, text_file};

/// A secret, of which only the digest is kept: it cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    digest: [u8; 32],
    is_empty: bool,
    /// Whether a header carries it as it is.
    is_visible: bool,
}

impl ApiKey {
    /// The key `key`. An empty one matches nothing.
    pub fn new(key: &str) -> Self {
        Self {
            digest: Sha256::digest(key).into(),
            is_empty: key.is_empty(),
            is_visible: key.trim() == key
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() || byte == b' '),
        }
    }

    /// Whether `candidate` is this key, in a time that depends on the candidate's length only.
    pub fn matches(&self, candidate: &str) -> bool {
        let candidate: [u8; 32] = Sha256::digest(candidate).into();
        bool::from(self.digest.ct_eq(&candidate)) & !self.is_empty
    }

    /// Whether a header carries it as it is: it has only visible ASCII characters, and blanks only between them.
    pub fn is_visible(&self) -> bool {
        self.is_visible
    }

    /// Whether it is the empty text, which is no secret.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }
}

impl FromStr for ApiKey {
    type Err = Infallible;

    fn from_str(key: &str) -> Result<Self, Infallible> {
        Ok(Self::new(key))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The keys of `--api-key-file`, one a line.
pub(super) fn read(path: &Path) -> Result<Vec<ApiKey>, ConfigError> {
    let fail = |message: String| ConfigError::Flag {
        flag: "--api-key-file",
        message: format!("{}: {message}", path.display()),
    };
    let text = text_file::read(path).map_err(fail)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().map(str::trim);
    let keys: Vec<ApiKey> = lines
        .filter(|line| !line.is_empty())
        .map(ApiKey::new)
        .collect();
    match keys.is_empty() {
        true => Err(fail("expected a key on each line, found none".to_owned())),
        false => Ok(keys),
    }
}
