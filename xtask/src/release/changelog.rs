//! What docs/CHANGELOG.md says of a version.

use anyhow::{Context, Result};

/// The section of a version, without its heading.
pub(super) fn notes(changelog: &str, version: &str) -> Result<String> {
    let is_heading = |line: &&str| {
        let rest = line.strip_prefix("## ");
        rest.is_some_and(|rest| rest.split([' ', ',']).next() == Some(version))
    };
    let mut lines = changelog.lines().skip_while(|line| !is_heading(line));
    lines
        .next()
        .with_context(|| format!("docs/CHANGELOG.md has no section `## {version}`"))?;
    let section = lines.take_while(|line| !line.starts_with("## "));
    let notes = section.collect::<Vec<_>>().join("\n").trim().to_owned();
    (!notes.is_empty())
        .then_some(notes + "\n")
        .with_context(|| format!("docs/CHANGELOG.md: the section of {version} is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_version_has_notes() {
        let changelog =
            std::fs::read_to_string(crate::root().join(super::super::package::CHANGELOG)).unwrap();
        let version = crate::release::version().unwrap();
        assert!(
            notes(&changelog, &version).is_ok(),
            "no section for {version}"
        );
    }

    #[test]
    fn examples_run_the_image_of_this_version() {
        let folder = crate::root().join("examples/deploy");
        let version = crate::release::version().unwrap();
        let texts = ["kubernetes.yaml", "production-stack-values.yaml"]
            .map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
        let image = format!("image: ghcr.io/qwen-burn/qwen-burn:v{version}\n");
        assert!(texts[0].contains(&image), "expected {image}");
        let image = format!("repository: ghcr.io/qwen-burn/qwen-burn\n      tag: v{version}\n");
        assert!(texts[1].contains(&image), "expected {image}");
    }

    #[test]
    fn notes_are_the_section_of_the_version() {
        let text = "# Changelog\n\n## 0.2.0\n\n- b\n\n## 0.1.0, 2026-12-01\n\n- a\n- c\n";
        assert_eq!(notes(text, "0.1.0").unwrap(), "- a\n- c\n");
        assert_eq!(notes(text, "0.2.0").unwrap(), "- b\n");
        assert!(notes(text, "0.1").is_err());
        assert!(notes("## 1.0.0\n\n", "1.0.0").is_err());
    }
}
