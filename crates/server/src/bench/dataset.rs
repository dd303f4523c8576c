//! Prompts of a run.

mod made;
pub(super) mod sample;
mod sonnet;

use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::stream;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::dataset_args::DatasetArgs;
use super::records::{Records, Row};
use super::texts::Texts;
use made::{burst, ordinary_tokens, prefix_repetition, random};
use sample::{AT_ONCE, Sample};
use sonnet::sonnet;

/// Shortest prompt and answer of a chat, longest prompt, and longest of both together: vLLM's limits for ShareGPT.
const SHAREGPT: [usize; 3] = [4, 1024, 2048];

/// The requests of a run. With `as_chat`, prompts of custom get the chat template here.
pub(super) async fn samples(
    args: &DatasetArgs,
    records: Records,
    texts: &Texts,
    as_chat: bool,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Arc<Sample>>> {
    match records {
        Records::Random => random(args, texts, rng).await,
        Records::PrefixRepetition => prefix_repetition(args, texts, rng).await,
        Records::Sonnet(lines) => sonnet(args, texts, &lines, as_chat, rng).await,
        Records::Burst(bursts) => {
            let words = ordinary_tokens(texts)?;
            from_file(args, bursts, rng, async |wanted| {
                burst(texts, &words, wanted).await.map(Some)
            })
            .await
        }
        Records::Sharegpt(chats) => {
            from_file(args, chats, rng, async |(question, answer)| {
                sharegpt(args, texts, question, answer).await
            })
            .await
        }
        Records::Custom(rows) => {
            let as_chat = as_chat && !args.skip_chat_template;
            from_file(args, rows, rng, async |row| {
                custom(args, texts, as_chat, row).await
            })
            .await
        }
    }
}

/// A chat's first question, and the length of its answer; `None` where it is too short or too long.
async fn sharegpt(
    args: &DatasetArgs,
    texts: &Texts,
    question: &str,
    answer: &str,
) -> Result<Option<Sample>> {
    let prompt_len = texts.encode(question).await?.len();
    let given = args.output_len.or(args.sharegpt_output_len);
    let output_len = match given {
        Some(len) => len,
        None => texts.encode(answer).await?.len(),
    };
    let [shortest, longest_prompt, longest] = SHAREGPT;
    let fits = prompt_len >= shortest
        && (given.is_some() || output_len >= shortest)
        && prompt_len <= longest_prompt
        && prompt_len.saturating_add(output_len) <= longest;
    Ok(fits.then(|| Sample {
        prompt: question.to_owned(),
        prompt_len,
        output_len,
    }))
}

async fn custom(
    args: &DatasetArgs,
    texts: &Texts,
    as_chat: bool,
    row: &Row,
) -> Result<Option<Sample>> {
    let prompt = match as_chat {
        true => (texts.chat(&row.prompt).await)
            .context("prompts are sent as chats; --skip-chat-template sends them as they are")?,
        false => row.prompt.clone(),
    };
    let given = args.output_len.or(args.custom_output_len);
    Ok(Some(Sample {
        prompt_len: texts.encode(&prompt).await?.len(),
        output_len: given.or(row.output_tokens).unwrap_or(256),
        prompt,
    }))
}

/// As many samples as there are to be; records are taken again where a file has too few.
async fn from_file<T>(
    args: &DatasetArgs,
    mut records: Vec<T>,
    rng: &mut ChaCha8Rng,
    sample: impl AsyncFn(&T) -> Result<Option<Sample>>,
) -> Result<Vec<Arc<Sample>>> {
    if !args.disable_shuffle {
        records.shuffle(rng);
    }
    let mut samples = Vec::new();
    let mut made = pin!(
        stream::iter(&records)
            .map(|record| sample(record))
            .buffered(AT_ONCE)
    );
    while samples.len() < args.num_prompts
        && let Some(made) = made.next().await
    {
        samples.extend(made?.map(Arc::new));
    }
    let num = samples.len();
    ensure!(
        num > 0,
        "--dataset-path: none of {} records can be used (of a chat, question and answer have {} tokens or more, the question \
         at most {}, both together at most {})",
        records.len(),
        SHAREGPT[0],
        SHAREGPT[1],
        SHAREGPT[2]
    );
    if num < args.num_prompts && !args.no_oversample {
        let again: Vec<Arc<Sample>> = samples
            .iter()
            .cycle()
            .take(args.num_prompts)
            .cloned()
            .collect();
        return Ok(again);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use model_qwen::{Tokenizer, bundled_model_dir};
    use rand::SeedableRng as _;

    use super::made::{MAX_TRIES, text_of_length};
    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: DatasetArgs,
    }

    fn args(flags: &str) -> DatasetArgs {
        let words = ["test"].into_iter().chain(flags.split_whitespace());
        let args = Flags::parse_from(words).args;
        args.check().unwrap();
        args
    }

    fn texts() -> Texts {
        Texts::of_folder(&bundled_model_dir().unwrap()).unwrap()
    }

    async fn made(flags: &str, records: Records) -> Result<Vec<Arc<Sample>>> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        samples(&args(flags), records, &texts(), false, &mut rng).await
    }

    fn rows(num: usize) -> Records {
        let row = |i| Row {
            prompt: format!("question {i}"),
            output_tokens: (i == 1).then_some(7),
        };
        Records::Custom((0..num).map(row).collect())
    }

    const CUSTOM: &str = "--dataset-name custom --dataset-path x --disable-shuffle";

    #[tokio::test]
    async fn random_lengths_are_around_what_the_flags_say() {
        let flags = "--num-prompts 40 --random-input-len 40 --random-output-len 20 --random-range-ratio 0.5";
        let samples = made(flags, Records::Random).await.unwrap();
        assert_eq!(samples.len(), 40);
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for sample in &samples {
            let ids = texts().encode(&sample.prompt).await.unwrap();
            assert_eq!(ids.len(), sample.prompt_len);
            inputs.push(sample.prompt_len);
            outputs.push(sample.output_len);
        }
        for (lens, middle) in [(&inputs, 40), (&outputs, 20)] {
            // Nearly all texts can have their length.
            let (least, most) = (lens.iter().min().unwrap(), lens.iter().max().unwrap());
            assert!((middle / 2 - 2..middle).contains(least), "{lens:?}");
            assert!((middle + 1..=middle * 3 / 2 + 2).contains(most), "{lens:?}");
        }
        assert_eq!(made(flags, Records::Random).await.unwrap(), samples);

        let flags = "--num-prompts 20 --input-len 30 --output-len 5";
        let samples = made(flags, Records::Random).await.unwrap();
        assert!(samples.iter().all(|sample| sample.output_len == 5));
        let num_exact = samples
            .iter()
            .filter(|sample| sample.prompt_len == 30)
            .count();
        assert!(num_exact >= 18, "{num_exact}");
    }

    #[tokio::test]
    async fn a_prefix_is_the_same_for_all() {
        let flags = "--num-prompts 4 --random-input-len 0 --random-prefix-len 25";
        let samples = made(flags, Records::Random).await.unwrap();
        assert!(
            samples
                .iter()
                .all(|sample| sample.prompt == samples[0].prompt)
        );
        let flags = "--num-prompts 4 --random-input-len 20 --random-prefix-len 25";
        let samples = made(flags, Records::Random).await.unwrap();
        let common =
            |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        for pair in samples.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            let same = texts()
                .encode(&a.prompt[..common(&a.prompt, &b.prompt)])
                .await;
            // The tokens where they part may join with the prefix.
            assert!((20..=27).contains(&same.unwrap().len()));
            assert!(a.prompt_len.abs_diff(45) <= 2, "{}", a.prompt_len);
        }
    }

    #[tokio::test]
    async fn prompts_repeat_a_few_beginnings() {
        let flags = "--dataset-name prefix_repetition --num-prompts 11 --prefix-repetition-num-prefixes 3 \
            --prefix-repetition-prefix-len 30 --prefix-repetition-suffix-len 12 --prefix-repetition-output-len 7";
        let samples = made(flags, Records::PrefixRepetition).await.unwrap();
        // As many with each beginning.
        assert_eq!(samples.len(), 9);
        let mut beginnings: Vec<String> = samples
            .iter()
            .map(|sample| sample.prompt.chars().take(25).collect())
            .collect();
        assert!(!beginnings.is_sorted() || beginnings[0] != beginnings[1]);
        beginnings.sort_unstable();
        for three in beginnings.chunks(3) {
            assert!(three.iter().all(|text| *text == three[0]), "{beginnings:?}");
        }
        beginnings.dedup();
        assert_eq!(beginnings.len(), 3);
        for sample in &samples {
            assert!(sample.prompt_len.abs_diff(42) <= 2, "{}", sample.prompt_len);
            assert_eq!(sample.output_len, 7);
        }
        assert_eq!(
            made(flags, Records::PrefixRepetition).await.unwrap(),
            samples
        );
    }

    #[tokio::test]
    async fn poems_are_as_long_as_is_asked_for() {
        let lines = [
            "Once there was a duck,\n",
            "It was little.\n",
            "The water was cold and the night was long,\n",
        ];
        let lines = || Records::Sonnet(lines.map(str::to_owned).to_vec());
        let flags = "--dataset-name sonnet --dataset-path x --num-prompts 12 --sonnet-input-len 160 \
            --sonnet-prefix-len 80 --output-len 9";
        let samples = made(flags, lines()).await.unwrap();
        assert_eq!(samples.len(), 12);
        for sample in &samples {
            assert!(
                (100..=160).contains(&sample.prompt_len),
                "{}",
                sample.prompt_len
            );
            assert_eq!(sample.output_len, 9);
            // The chat template is the server's.
            assert!(sample.prompt.starts_with("Pick as many lines"));
            let (a, b) = (&samples[0].prompt, &sample.prompt);
            let common = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
            assert!(common > 100, "{common}");
        }
        assert_ne!(samples[0], samples[1]);
        let short = "--dataset-name sonnet --dataset-path x --sonnet-input-len 5";
        let error = made(short, lines()).await.unwrap_err().to_string();
        assert!(
            error.starts_with("--sonnet-input-len: expected more than"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_data_set_says_what_it_needs_a_chat_template_for() {
        let texts = Texts::Local {
            tokenizer: Tokenizer::from_dir(&bundled_model_dir().unwrap()).unwrap(),
            chat_template: None,
        };
        let (sonnet, none) = ("--dataset-name sonnet --dataset-path x", "no chat template");
        for (flags, records, expected) in [
            (
                sonnet,
                Records::Sonnet(vec!["a line\n".to_owned()]),
                "--dataset-name sonnet: ",
            ),
            (CUSTOM, rows(2), "--skip-chat-template"),
        ] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let made = samples(&args(flags), records, &texts, true, &mut rng).await;
            let error = format!("{:#}", made.unwrap_err());
            assert!(error.contains(expected) && error.contains(none), "{error}");
            let advises = error.contains("--skip-chat-template");
            assert_eq!(advises, flags == CUSTOM, "{error}");
        }
    }

    #[tokio::test]
    async fn a_table_gives_lengths() {
        let burst = |index, input_len, output_len| crate::bench::records::Burst {
            index,
            input_len,
            output_len,
        };
        let bursts = || Records::Burst(vec![burst(0, 20, 5), burst(1, 33, 6)]);
        let flags = "--dataset-name burstgpt --dataset-path x --disable-shuffle --num-prompts 3";
        let samples = made(flags, bursts()).await.unwrap();
        let lens: Vec<usize> = samples.iter().map(|sample| sample.output_len).collect();
        assert_eq!(lens, [5, 6, 5]);
        assert!(samples[0].prompt_len.abs_diff(20) <= 2 && samples[1].prompt_len.abs_diff(33) <= 2);
        let flags = format!("{flags} --no-oversample");
        assert_eq!(made(&flags, bursts()).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn tokens_that_join_become_others_until_the_length_is_right() {
        let texts = texts();
        let joined = texts.encode("Once upon a time there was").await.unwrap();
        let mut letters = Vec::new();
        for letter in ["O", "n", "c", "e", "u", "p", "o", "n"] {
            letters.push(texts.encode(letter).await.unwrap()[0]);
        }
        let len = letters.len();
        letters.extend([joined[1]; MAX_TRIES]);
        let apart = texts.decode(&letters[..len]).await.unwrap();
        // Letters alone join, so that the same text has fewer tokens.
        assert!(texts.encode(&apart).await.unwrap().len() < len);
        let (text, found) = text_of_length(&texts, letters, len).await.unwrap();
        assert_eq!(found, texts.encode(&text).await.unwrap().len());
        assert_eq!(found, len, "{text}");
        let (text, found) = text_of_length(&texts, joined.clone(), joined.len())
            .await
            .unwrap();
        assert_eq!(
            (text.as_str(), found),
            ("Once upon a time there was", joined.len())
        );
    }

    #[tokio::test]
    async fn records_are_taken_in_order_and_again_where_there_are_too_few() {
        let prompts = |samples: &[Arc<Sample>]| {
            let number =
                |sample: &Arc<Sample>| sample.prompt.strip_prefix("question ").unwrap().to_owned();
            samples.iter().map(number).collect::<String>()
        };
        let samples = made(&format!("{CUSTOM} --num-prompts 2"), rows(5))
            .await
            .unwrap();
        assert_eq!(prompts(&samples), "01");
        assert_eq!((samples[0].output_len, samples[1].output_len), (256, 7));
        let flags = format!("{CUSTOM} --num-prompts 7 --output-len 9");
        let samples = made(&flags, rows(3)).await.unwrap();
        assert_eq!(prompts(&samples), "0120120");
        assert!(samples.iter().all(|sample| sample.output_len == 9));
        let flags = format!("{CUSTOM} --num-prompts 7 --no-oversample");
        assert_eq!(prompts(&made(&flags, rows(3)).await.unwrap()), "012");
        let flags = "--dataset-name custom --dataset-path x --num-prompts 60";
        let shuffled = made(flags, rows(60)).await.unwrap();
        let numbers: Vec<&String> = shuffled.iter().map(|sample| &sample.prompt).collect();
        assert!(!numbers.is_sorted());
    }

    #[tokio::test]
    async fn chats_that_are_too_short_or_too_long_are_left_out() {
        let flags = "--dataset-path x --disable-shuffle --no-oversample";
        let (short, good) = ("Hi", "Once upon a time there was a little duck");
        let long = good.repeat(300);
        let chats = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
            Records::Sharegpt(owned.collect())
        };
        let all = [
            (short, good),
            (good, short),
            (good, good),
            (&long, good),
            (good, &long),
        ];
        let samples = made(flags, chats(&all)).await.unwrap();
        let len = texts().encode(good).await.unwrap().len();
        let expected = Sample {
            prompt: good.to_owned(),
            prompt_len: len,
            output_len: len,
        };
        assert_eq!(samples, [Arc::new(expected)]);
        // A given length replaces that of the answer.
        let given = format!("{flags} --sharegpt-output-len 2");
        let samples = made(&given, chats(&all)).await.unwrap();
        assert_eq!(samples.len(), 3);
        assert!(samples.iter().all(|sample| sample.output_len == 2));
        let error = made(flags, chats(&[(short, good)])).await.unwrap_err();
        assert!(error.to_string().contains("none of 1 records can be used"));
    }
}
