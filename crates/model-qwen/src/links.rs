//! Links to files that are not there: a snapshot of the Hub's cache that was copied or mounted without its blobs.

use std::fs;
use std::path::Path;

/// What `path` is if it is a link to what is not there, and what to do; `None` for anything else.
pub(crate) fn dangling(path: &Path) -> Option<String> {
    if path.exists() {
        return None;
    }
    let target = fs::read_link(path).ok()?;
    let is_snapshot = target.components().any(|part| part.as_os_str() == "blobs");
    let mount = match is_snapshot {
        true => "the whole models--... folder",
        false => "the folder that it points into, too",
    };
    Some(format!(
        "a link to {}, which is not there: copy the folder with `cp -L`, or mount {mount}",
        target.display()
    ))
}
