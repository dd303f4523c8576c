//! Answers before and after training, side by side.

use std::fmt::Write as _;

use super::escape::escape;
use crate::samples::Sample;

/// For each prompt the first answer and the last one, the result's; answers in between are folded. Empty without answers.
pub(super) fn section(answers: &[Sample], prompts: &[String]) -> String {
    let mut section = String::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let of = answers.iter().filter(|answer| answer.index == index);
        let own: Vec<&Sample> = of.collect();
        let (Some(first), Some(last)) = (own.first(), own.last()) else {
            continue;
        };
        let _ = write!(
            section,
            "<h3>{}</h3>\n<table class=\"samples\">\n<tr><th>Before (step {})</th><th>After (step {})</th></tr>\n\
             <tr><td>{}</td><td>{}</td></tr>\n</table>\n",
            escape(prompt),
            first.step,
            last.step,
            shown(first),
            shown(last),
        );
        // The step that is kept (`--load-best`) has answered before: the same.
        let between = own[1..own.len().max(2) - 1].iter();
        let between: Vec<_> = between.filter(|a| a.step != last.step).collect();
        if !between.is_empty() {
            let rows = between.iter();
            let rows =
                rows.map(|a| format!("<tr><th>Step {}</th><td>{}</td></tr>\n", a.step, shown(a)));
            let rows: String = rows.collect();
            let _ = write!(
                section,
                "<details><summary>{} in between</summary>\n<table class=\"samples\">\n{rows}</table>\n</details>\n",
                match between.len() {
                    1 => "1 answer".to_owned(),
                    num => format!("{num} answers"),
                }
            );
        }
    }
    match section.is_empty() {
        true => section,
        false => format!("<h2>Samples</h2>\n{section}"),
    }
}

fn shown(answer: &Sample) -> String {
    let end = match answer.finish_reason.as_str() {
        "stop" => "",
        _ => " […]",
    };
    escape(&answer.completion) + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_answers_stand_side_by_side() {
        let sample = |step: usize, index, completion: &str| Sample {
            step,
            index,
            prompt: "?".into(),
            completion: completion.to_owned(),
            num_tokens: 3,
            finish_reason: if step == 0 { "length" } else { "stop" }.to_owned(),
        };
        let prompts = ["<Who>?".to_owned(), "Why?".to_owned()];
        let answers = [
            sample(0, 0, "before"),
            sample(0, 1, "none"),
            sample(5, 0, "between"),
            sample(9, 0, "a < b"),
        ];
        let page = section(&answers, &prompts);
        let row = "<tr><td>before […]</td><td>a &lt; b</td></tr>";
        assert!(
            page.contains(row) && page.contains("&lt;Who&gt;?"),
            "{page}"
        );
        assert!(
            page.contains("Before (step 0)</th><th>After (step 9)"),
            "{page}"
        );
        assert!(
            page.contains("1 answer in between") && page.contains("Step 5"),
            "{page}"
        );
        assert_eq!(section(&[], &prompts), "");
        assert!(!section(&answers[..1], &prompts).contains("in between"));
    }
}
