//! Random traffic, and cases that it may miss.

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Add {
        stream: u32,
        shared: usize,
        tail: Vec<u32>,
        key: usize,
        max_tokens: usize,
        logits: bool,
    },
    Step,
    StepAborting {
        before_compute: Option<usize>,
        before_commit: Option<usize>,
    },
    /// Scheduled, but the forward pass fails: nothing is committed.
    FailedStep,
    /// Computed, but the sampler gives nothing.
    StepWithoutTokens,
    ForgetDuringStep(usize),
    Abort(usize),
    Forget(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let add = (
        0..2u32,
        0..24usize,
        prop::collection::vec(1..VOCAB as u32, 0..4),
        prop_oneof![3 => Just(0), 2 => 1..NUM_KEYS],
        0..20usize,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(stream, shared, tail, key, max_tokens, logits)| Op::Add {
            stream,
            shared,
            tail,
            key,
            max_tokens,
            logits,
        });
    let index = || prop::option::of(0..64usize);
    prop_oneof![
        8 => add,
        10 => Just(Op::Step),
        2 => (index(), index())
            .prop_map(|(before_compute, before_commit)| Op::StepAborting { before_compute, before_commit }),
        1 => Just(Op::FailedStep),
        1 => Just(Op::StepWithoutTokens),
        1 => (0..NUM_KEYS).prop_map(Op::ForgetDuringStep),
        1 => (0..64usize).prop_map(Op::Abort),
        1 => (0..NUM_KEYS).prop_map(Op::Forget),
    ]
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    (
        1..7usize,
        1..24usize,
        1..6usize,
        1..20usize,
        2..48usize,
        prop::bool::weighted(0.8),
    )
        .prop_map(
            |(
                max_num_seqs,
                max_num_batched_tokens,
                block_size,
                num_blocks,
                max_model_len,
                caching,
            )| {
                SchedulerConfig {
                    max_num_seqs,
                    max_num_batched_tokens,
                    block_size,
                    num_blocks,
                    max_model_len,
                    enable_prefix_caching: caching,
                }
            },
        )
}

/// Position `position` of one of a few endless texts from which prompts take their beginning.
fn shared_token(stream: u32, position: usize) -> u32 {
    (mix(u64::from(stream) << 32 | position as u64) % (VOCAB - 1)) as u32 + 1
}

fn run(engine: &mut Engine, ops: Vec<Op>) {
    for op in ops {
        match op {
            Op::Add {
                stream,
                shared,
                tail,
                key,
                max_tokens,
                logits,
            } => {
                let beginning = (0..shared).map(|position| shared_token(stream, position));
                let prompt: Vec<u32> = beginning.chain(tail).collect();
                if !prompt.is_empty() {
                    engine.add(prompt, key, max_tokens, logits);
                }
            }
            Op::Step => engine.step(None, None),
            Op::StepAborting {
                before_compute,
                before_commit,
            } => {
                engine.step(before_compute, before_commit);
            }
            Op::FailedStep => drop(engine.schedule()),
            Op::StepWithoutTokens => {
                let step = engine.schedule();
                let roots = engine
                    .live
                    .iter()
                    .map(|(&id, live)| (id, live.root))
                    .collect();
                engine.compute(&step, &roots);
                engine.scheduler.commit(&[]);
                engine.scheduler.check_invariants();
            }
            Op::ForgetDuringStep(key) => {
                let step = engine.schedule();
                let roots = engine
                    .live
                    .iter()
                    .map(|(&id, live)| (id, live.root))
                    .collect();
                engine.compute(&step, &roots);
                engine.forget(key);
                engine.commit(&step);
            }
            Op::Abort(n) => engine.abort_nth(n),
            Op::Forget(key) => engine.forget(key),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_reads_only_its_own_keys_and_finishes(
        config in config(),
        ops in prop::collection::vec(op(), 1..80),
        max_draft in prop_oneof![Just(0), 1..6usize],
    ) {
        let mut engine = Engine::new(config);
        engine.max_draft = max_draft;
        run(&mut engine, ops);
        engine.drain();
    }
}

/// The random traffic must really reach what it is meant to test. The bounds are about half of what it reaches.
#[test]
fn random_traffic_hits_prefixes_and_preempts() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = (config(), prop::collection::vec(op(), 40..80));
    let (mut num_hits, mut num_preemptions, mut num_emitted) = (0, 0, 0);
    let mut num_accepted = 0;
    for case in 0..200 {
        let (config, ops) = strategy.new_tree(&mut runner).unwrap().current();
        let mut engine = Engine::new(config);
        engine.max_draft = case % 4;
        run(&mut engine, ops);
        engine.drain();
        num_hits += engine.scheduler.stats().prefix_hits;
        num_preemptions += engine.scheduler.stats().num_preemptions;
        num_emitted += engine.num_emitted;
        num_accepted += engine.num_accepted;
    }
    assert!(
        num_accepted > 400,
        "{num_accepted} tokens of drafts were right"
    );
    assert!(num_hits > 1000, "{num_hits} tokens hit");
    assert!(num_preemptions > 60, "{num_preemptions} preemptions");
    assert!(num_emitted > 4000, "{num_emitted} tokens emitted");
}

/// A large sequence gets its turn although small ones, which would fit at once, keep arriving; and one that needs
/// the whole pool is not starved by those that run.
#[test]
fn a_large_sequence_is_not_starved_by_a_stream_of_small_ones() {
    let mut engine = Engine::new(SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 8,
        block_size: 2,
        num_blocks: 20,
        max_model_len: 64,
        enable_prefix_caching: true,
    });
    let small =
        |engine: &mut Engine, n: u32| engine.add(vec![1 + n % 2, 2, 1 + n / 2 % 2], 0, 6, false);
    for n in 0..6 {
        small(&mut engine, n);
    }
    let large = engine.next_id;
    engine.add(
        (0..38).map(|position| shared_token(0, position)).collect(),
        1,
        3,
        false,
    );
    let mut num_steps = 0;
    while engine.live.contains_key(&large) {
        small(&mut engine, num_steps);
        engine.step(None, None);
        num_steps += 1;
        assert!(num_steps < 6 * 9 + 41, "starved");
    }
    engine.drain();
}

/// As many sequences as a server runs at most.
#[test]
fn many_sequences_stay_consistent() {
    let mut engine = Engine::new(SchedulerConfig {
        max_num_seqs: 256,
        max_num_batched_tokens: 2048,
        block_size: 16,
        num_blocks: 512,
        max_model_len: 256,
        enable_prefix_caching: true,
    });
    engine.max_draft = 5;
    for n in 0..400 {
        let prompt = (0..20 + n % 60)
            .map(|position| shared_token(n as u32 % 3, position))
            .collect();
        engine.add(prompt, n % NUM_KEYS, 40, false);
    }
    engine.drain();
    assert!(engine.scheduler.stats().prefix_hits > 0);
}
