//! Joins the texts of an answer, where they become one.

use crate::answer::Part;

/// Puts a line's end between two texts that have calls between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TextJoiner {
    /// No text.
    #[default]
    Nothing,
    /// Text.
    Text,
    /// Text, and a call behind it.
    TextAndCall,
}

impl TextJoiner {
    /// A part as it follows the parts before.
    pub(super) fn take(&mut self, part: Part) -> Part {
        match part {
            Part::Content(text) if !text.is_empty() => {
                let before = std::mem::replace(self, Self::Text);
                Part::Content(match before {
                    Self::TextAndCall => format!("\n{text}"),
                    Self::Nothing | Self::Text => text,
                })
            }
            Part::Call { .. } if *self == Self::Text => {
                *self = Self::TextAndCall;
                part
            }
            part => part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_separates_texts() {
        let call = || Part::Call {
            index: 0,
            id: String::new(),
            name: "f".to_owned(),
        };
        let text = |parts: Vec<Part>| {
            let mut joiner = TextJoiner::default();
            let parts = parts.into_iter().map(|part| joiner.take(part));
            let texts = parts.filter_map(|part| match part {
                Part::Content(text) => Some(text),
                _ => None,
            });
            texts.collect::<String>()
        };
        let content = |text: &str| Part::Content(text.to_owned());
        let parts = vec![
            content("Su"),
            content("re."),
            call(),
            call(),
            content("Do"),
            content("ne."),
        ];
        assert_eq!(text(parts), "Sure.\nDone.");
        assert_eq!(text(vec![call(), content("Done.")]), "Done.");
    }
}
