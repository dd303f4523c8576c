//! Rewards that say nothing: where all answers to a prompt get the same, none is better than the others.

use std::collections::BTreeMap;

/// Steps in a row without anything to learn, after which a warning is due.
const PATIENCE: usize = 5;

/// The steps since something could be learnt from rewards.
#[derive(Debug, Default)]
pub(super) struct Stillness {
    /// How many.
    steps: usize,
    /// Whether a warning of them was given.
    is_told: bool,
    /// Steps from which something was learnt.
    others: usize,
    /// What each reward said in all of these; `None` where it was not always the same.
    values: BTreeMap<String, Option<Value>>,
}

/// What a reward says of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Nothing,
    Number(f64),
}

impl Stillness {
    /// Notes the rewards of a step by their names, and whether it `learns` something of them. Gives the warning that is due.
    pub(super) fn note<'a>(
        &mut self,
        rewards: impl Iterator<Item = (&'a str, &'a Vec<f64>)>,
        learns: bool,
    ) -> Option<String> {
        if learns {
            *self = Self {
                others: self.others + 1,
                ..Self::default()
            };
            return None;
        }
        for (name, values) in rewards {
            let mut values = values.iter().map(|value| match value.is_nan() {
                true => Value::Nothing,
                false => Value::Number(*value),
            });
            let first = values.next();
            let same = first.filter(|first| values.all(|value| value == *first));
            let known = self.values.entry(name.to_owned()).or_insert(same);
            *known = known.filter(|known| Some(*known) == same);
        }
        self.steps += 1;
        // Equal numbers may differ at the next prompts. Rewards that say nothing of any answer are most often wired up wrongly.
        let is_silent = self
            .values
            .values()
            .all(|value| *value == Some(Value::Nothing));
        let is_due = self.steps == PATIENCE || (is_silent && self.steps == 1);
        if !is_due || self.is_told {
            return None;
        }
        self.is_told = true;
        Some(self.warning())
    }

    /// The warning of a run that ends with nothing learnt, where it was too short for another one.
    pub(super) fn at_the_end(&self) -> Option<String> {
        let is_all = self.others == 0 && !self.is_told && (1..PATIENCE).contains(&self.steps);
        is_all.then(|| self.warning())
    }

    fn warning(&self) -> String {
        let each = self.values.iter().map(|(name, value)| match value {
            Some(Value::Number(value)) => format!("`{name}` gave {value} to every answer"),
            Some(Value::Nothing) => format!("`{name}` gave null to every answer"),
            None => format!("`{name}` gave each answer what the others to its prompt got"),
        });
        let each: Vec<String> = each.collect();
        let steps = match self.steps {
            1 => "the last step".to_owned(),
            steps => format!("the last {steps} steps"),
        };
        let is_silent = self
            .values
            .values()
            .all(|value| *value == Some(Value::Nothing));
        if is_silent {
            return format!(
                "nothing was learnt in {steps}, since no answer got a reward: {}. Look at the program or the schema that gives them",
                each.join(", ")
            );
        }
        format!(
            "nothing was learnt in {steps}, since all answers to a prompt got equal rewards: {}. Take a reward that some answers \
             get and others do not, easier prompts, or a higher --temperature",
            each.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(stillness: &mut Stillness, json: &[f64], url: &[f64], learns: bool) -> Option<String> {
        let rewards = [("json", json.to_vec()), ("url", url.to_vec())];
        stillness.note(rewards.iter().map(|(name, values)| (*name, values)), learns)
    }

    #[test]
    fn equal_rewards_are_told_by_their_names_once() {
        let mut stillness = Stillness::default();
        let none = [f64::NAN; 2];
        for step in 1..=12 {
            let found = note(&mut stillness, &[0.0, 0.0], &none, false);
            assert_eq!(found.is_some(), step == PATIENCE, "{step}");
            if let Some(warning) = found {
                assert!(warning.starts_with("nothing was learnt in the last 5 steps"));
                assert!(warning.contains("`json` gave 0 to every answer, `url` gave null"));
            }
        }
        assert_eq!(stillness.at_the_end(), None);
        // Something that is learnt starts the count again.
        assert_eq!(note(&mut stillness, &[0.0, 1.0], &none, true), None);
        for step in 1..=PATIENCE {
            let same = [step as f64; 2];
            let found = note(&mut stillness, &same, &none, false);
            assert_eq!(found.is_some(), step == PATIENCE);
            assert!(found.is_none_or(|warning| warning.contains("`json` gave each answer what")));
        }
    }

    #[test]
    fn rewards_that_are_all_null_are_told_at_once() {
        let mut stillness = Stillness::default();
        let none = [f64::NAN; 2];
        let warning = note(&mut stillness, &none, &none, false).unwrap();
        let expected =
            "nothing was learnt in the last step, since no answer got a reward: `json` gave null";
        assert!(warning.starts_with(expected), "{warning}");
        for _ in 0..2 * PATIENCE {
            assert_eq!(note(&mut stillness, &none, &none, false), None);
        }
        assert_eq!(stillness.at_the_end(), None);
    }

    #[test]
    fn a_short_run_is_told_at_its_end() {
        let mut stillness = Stillness::default();
        assert_eq!(stillness.at_the_end(), None);
        assert_eq!(note(&mut stillness, &[1.0], &[1.0], false), None);
        let warning = stillness.at_the_end().unwrap();
        assert!(warning.contains("in the last step") && warning.contains("`url` gave 1"));
        note(&mut stillness, &[1.0, 0.0], &[1.0, 1.0], true);
        note(&mut stillness, &[1.0], &[1.0], false);
        assert_eq!(stillness.at_the_end(), None);
    }
}
