//! Batches, epochs, preview and the sample data.

use super::*;

/// `lengths.len()` examples whose tokens tell them apart; the last half of each is learnt.
fn examples(lengths: &[usize]) -> Arc<Examples> {
    Arc::new(list(lengths).into())
}

fn list(lengths: &[usize]) -> Vec<Example> {
    let example = |(index, &length): (usize, &usize)| Example {
        tokens: (0..length)
            .map(|position| (index * 100 + position) as u32)
            .collect(),
        mask: (0..length)
            .map(|position| position >= length.div_ceil(2))
            .collect(),
        is_wanted: true,
        source: source(),
    };
    lengths.iter().enumerate().map(example).collect()
}

fn options() -> LoaderOptions {
    LoaderOptions {
        batch_size: 2,
        gradient_accumulation: 2,
        packing: None,
        seed: 7,
    }
}

/// The documents of a batch, by the hundreds of their first token.
fn documents(batch: &Batch) -> Vec<usize> {
    batch
        .positions
        .iter()
        .zip(&batch.tokens)
        .filter(|(position, _)| **position == 0)
        .map(|(_, token)| *token as usize / 100)
        .collect()
}

#[test]
fn collation_keeps_documents_apart() {
    let batch = Batch::collate(&list(&[3, 2]));
    assert_eq!(batch.tokens, [0, 1, 2, 100, 101]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
    assert_eq!(batch.targets, [None, Some(2), None, Some(101), None]);
    assert_eq!(batch.lengths, [3, 2]);
    assert_eq!((batch.num_targets(), batch.num_tokens()), (2, 5));
}

#[test]
fn an_epoch_gives_every_example_once_in_its_own_order() {
    let data = examples(&[2; 10]);
    let mut loader = DataLoader::new(data.clone(), options());
    assert_eq!(loader.steps_per_epoch(), Some(3));
    let mut orders = Vec::new();
    for epoch in 0..2 {
        let steps: Vec<_> = (0..3).map(|_| loader.next_step().unwrap()).collect();
        let after: Vec<f64> = steps.iter().map(|step| step.epoch).collect();
        let epoch = f64::from(epoch);
        assert_eq!(after, [epoch + 0.4, epoch + 0.8, epoch + 1.0]);
        assert_eq!(
            steps
                .iter()
                .map(|step| step.micro_batches.len())
                .collect::<Vec<_>>(),
            [2, 2, 1]
        );
        assert_eq!(
            steps
                .iter()
                .map(|step| step.num_targets)
                .collect::<Vec<_>>(),
            [4, 4, 2]
        );
        orders.push(
            steps
                .iter()
                .flat_map(|step| step.micro_batches.iter().flat_map(documents))
                .collect::<Vec<_>>(),
        );
    }
    assert_ne!(orders[0], orders[1]);
    orders.iter_mut().for_each(|order| order.sort_unstable());
    assert_eq!(orders[0], (0..10).collect::<Vec<_>>());
    assert_eq!(orders[1], orders[0]);
    let other = DataLoader::new(
        data,
        LoaderOptions {
            seed: 8,
            ..options()
        },
    )
    .next_step()
    .unwrap();
    assert_ne!(
        other,
        DataLoader::new(examples(&[2; 10]), options())
            .next_step()
            .unwrap()
    );
}

#[test]
fn a_restored_loader_goes_on_where_the_other_stood() {
    for packing in [None, Some(7)] {
        let data = examples(&[2, 3, 4, 5, 2, 3, 4, 5, 2]);
        let mut loader = DataLoader::new(
            data.clone(),
            LoaderOptions {
                packing,
                batch_size: 1,
                ..options()
            },
        );
        for _ in 0..7 {
            let state: LoaderState =
                serde_json::from_value(serde_json::to_value(loader.state()).unwrap()).unwrap();
            let mut restored = DataLoader::new(
                data.clone(),
                LoaderOptions {
                    packing,
                    batch_size: 1,
                    ..options()
                },
            );
            restored.restore(state).unwrap();
            let (next, again) = (loader.next_step(), restored.next_step());
            assert_eq!(next.unwrap(), again.unwrap());
        }
        assert!(loader.state().epoch > 0);
    }
}

#[test]
fn packing_fills_rows_without_splitting_or_losing_examples() {
    let data = examples(&[5, 2, 3, 6, 1, 4, 9, 2]);
    let options = LoaderOptions {
        packing: Some(8),
        batch_size: 1,
        gradient_accumulation: 1,
        seed: 1,
    };
    let mut loader = DataLoader::new(data.clone(), options);
    assert!(loader.num_rows() < 8, "nothing was packed");
    let mut seen = Vec::new();
    for _ in 0..loader.steps_per_epoch().unwrap() {
        let batch = loader.next_step().unwrap().micro_batches.remove(0);
        assert!(batch.num_tokens() <= 8 || batch.lengths == [9]);
        assert_eq!(
            batch.lengths,
            documents(&batch)
                .iter()
                .map(|&index| data.length(index))
                .collect::<Vec<_>>()
        );
        seen.extend(documents(&batch));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
}

#[test]
fn evaluation_goes_in_order() {
    let data = examples(&[2; 5]);
    let order: Vec<usize> = sequential_batches(&data, 2)
        .flat_map(|batch| documents(&batch.unwrap()))
        .collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

#[test]
fn the_preview_brackets_what_is_learnt() {
    let value = chat(&[("system", "S"), ("user", "é"), ("assistant", "Ho")]);
    let examples = render(value, CHATML, settings()).unwrap().examples;
    let examples = Examples::from(examples);
    let shown = preview(&examples, &tokenizer(), 3, false).unwrap();
    assert!(shown.contains("t.jsonl:1: "), "{shown}");
    assert!(shown.contains("\\xC3|\\xA9|<|im_end|>|⏎\n"), "{shown}");
    assert!(
        shown.contains("a|n|t|⏎\n[H]|[o]|[<|im_end|>]|⏎\n"),
        "{shown}"
    );
    assert!(shown.contains("3 learnt (in [brackets])"), "{shown}");
    assert!(
        preview(&examples, &tokenizer(), 3, true)
            .unwrap()
            .contains("\x1b[1;32mH\x1b[0m")
    );
}

#[test]
fn the_sample_data_is_valid() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    let (tokenizer, template) = (tokenizer(), template(CHATML));
    let renderer = Renderer::new(&tokenizer, Some(&template), settings());
    for (name, least) in [("train.jsonl", 40), ("eval.jsonl", 8)] {
        let dataset = Dataset::load(&[data.join(name)], &renderer).unwrap();
        assert!(dataset.examples.len() >= least && dataset.report.num_left_out == 0);
        for answer in dataset
            .examples
            .iter()
            .flat_map(|example| learnt(&example.unwrap()))
        {
            assert!(
                answer.starts_with("Arr! ")
                    && answer.ends_with(" Squawk! Time for a biscuit!<|im_end|>"),
                "{answer}"
            );
        }
    }
}
