//! The first word of the command line.

use super::{data_folder, program, text_of};

#[test]
fn a_misspelt_command_gets_a_hint() {
    let data = data_folder().join("train.jsonl");
    for (word, hint) in [
        ("mrege", "a similar command exists: `merge`"),
        ("inspct", "a similar command exists: `inspect`"),
        (text_of(&data), "to learn from it, write `--data /"),
        ("frobnicate", "the commands are init, check, merge, "),
        ("train", "the commands are init, check, merge, "),
    ] {
        let said = program(&[word, "--json"]);
        assert_eq!(said.code, 2, "{}", said.err);
        assert!(said.err.contains(hint), "{word}: {}", said.err);
        assert!(
            said.err.contains(&format!("found `{word}`")),
            "{}",
            said.err
        );
    }
}
