//! What tells one file, model or data set from another.

use sha2::{Digest, Sha256};

/// The first 16 digits of a hash: enough to tell the few things apart that a user has.
pub(crate) fn short(hash: Sha256) -> String {
    let hash = hash.finalize();
    let bytes = hash.iter().take(8);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_its_first_digits() {
        assert_eq!(short(Sha256::new_with_prefix("abc")), "ba7816bf8f01cfea");
    }
}
