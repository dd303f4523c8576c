//! One test per rule; `tests/scheduler_properties/main.rs` checks the rules together on random traffic.

use super::*;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        block_size: 4,
        num_blocks: 16,
        max_model_len: 64,
        enable_prefix_caching: true,
    }
}

fn scheduler(config: SchedulerConfig) -> Scheduler {
    Scheduler::new(config).unwrap()
}

fn adapter() -> AdapterKey {
    AdapterKey {
        id: 0,
        name: "a".to_owned(),
    }
}

/// A sequence whose prompt is `from..from + len`.
fn sequence(id: SequenceId, from: u32, len: usize) -> NewSequence {
    NewSequence {
        id,
        prompt: (from..).take(len).collect(),
        cache_key: CacheKey::default(),
        max_tokens: 100,
        skip_reading_prefix_cache: false,
    }
}

/// Samples token 7 for every chunk that is due one, and never finishes.
fn commit(scheduler: &mut Scheduler, step: &Step) {
    let sampled: Vec<_> = (step.chunks.iter().filter(|chunk| chunk.samples))
        .map(|chunk| Sampled {
            id: chunk.id,
            token: 7,
            finished: false,
        })
        .collect();
    scheduler.commit(&sampled);
    scheduler.check_invariants();
}

fn step(scheduler: &mut Scheduler) -> Step {
    let step = scheduler.schedule();
    scheduler.check_invariants();
    commit(scheduler, &step);
    step
}

fn finish(scheduler: &mut Scheduler, id: SequenceId) {
    while scheduler.has_work() {
        let step = scheduler.schedule();
        let is_due = step
            .chunks
            .iter()
            .any(|chunk| chunk.id == id && chunk.samples);
        scheduler.commit(&[Sampled {
            id,
            token: 7,
            finished: true,
        }]);
        if is_due {
            return;
        }
    }
}

/// (id, start, number of tokens) of each chunk.
fn shape(step: &Step) -> Vec<(SequenceId, usize, usize)> {
    step.chunks
        .iter()
        .map(|chunk| (chunk.id, chunk.start, chunk.tokens.len()))
        .collect()
}

#[test]
fn a_long_prompt_is_chunked_beside_decodes() {
    let mut scheduler = scheduler(SchedulerConfig {
        max_num_batched_tokens: 6,
        ..config()
    });
    scheduler.add(sequence(1, 0, 3)).unwrap();
    scheduler.add(sequence(2, 100, 10)).unwrap();
    let first = step(&mut scheduler);
    assert_eq!(shape(&first), [(1, 0, 3), (2, 0, 3)]);
    assert!(first.chunks[0].samples && !first.chunks[1].samples);
    assert_eq!(shape(&step(&mut scheduler)), [(1, 3, 1), (2, 3, 5)]);
    let third = step(&mut scheduler);
    assert_eq!(shape(&third), [(1, 4, 1), (2, 8, 2)]);
    assert!(third.chunks[1].samples);
    assert_eq!(third.num_tokens(), 3);
    assert_eq!(scheduler.schedule().chunks[1].tokens, [7]);
}

#[test]
fn admission_is_first_come_first_served_and_bounded() {
    let mut scheduler = scheduler(SchedulerConfig {
        max_num_seqs: 2,
        num_blocks: 4,
        ..config()
    });
    scheduler.add(sequence(1, 0, 5)).unwrap();
    scheduler.add(sequence(2, 100, 13)).unwrap();
    scheduler.add(sequence(3, 200, 1)).unwrap();
    // 2 does not fit beside 1, and 3 must not overtake it.
    assert_eq!(shape(&step(&mut scheduler)), [(1, 0, 5)]);
    assert!(scheduler.abort(1));
    assert_eq!(shape(&step(&mut scheduler)), [(2, 0, 13)]);
    assert_eq!(scheduler.stats().num_waiting, 1);
}

#[test]
fn full_blocks_are_shared_but_the_last_prompt_token_is_computed() {
    let mut scheduler = scheduler(config());
    scheduler.add(sequence(1, 0, 8)).unwrap();
    let first = step(&mut scheduler);
    assert_eq!(first.chunks[0].num_cached, 0);
    scheduler.add(sequence(2, 0, 8)).unwrap();
    scheduler.add(sequence(3, 0, 9)).unwrap();
    let second = step(&mut scheduler);
    assert_eq!(shape(&second), [(1, 8, 1), (2, 4, 4), (3, 8, 1)]);
    assert_eq!(second.chunks[1].num_cached, 4);
    assert_eq!(
        second.chunks[2].block_table[..2],
        first.chunks[0].block_table[..2]
    );
    let stats = scheduler.stats();
    assert_eq!(
        (stats.prefix_queries, stats.prefix_hits),
        (8 + 8 + 9, 4 + 8)
    );
    // The block that 2 computed again is an equal copy; 2 has gone over to the cached one.
    let third = scheduler.schedule();
    assert_eq!(
        third.chunks[1].block_table[..2],
        first.chunks[0].block_table[..2]
    );
    assert_eq!(scheduler.stats().num_free_blocks, 16 - 2 - 3);
}

#[test]
fn nothing_is_found_before_it_is_computed() {
    let mut scheduler = scheduler(config());
    scheduler.add(sequence(1, 0, 9)).unwrap();
    scheduler.add(sequence(2, 0, 9)).unwrap();
    assert_eq!(shape(&scheduler.schedule()), [(1, 0, 9), (2, 0, 9)]);
    // The step failed and is scheduled again.
    let again = step(&mut scheduler);
    assert_eq!(shape(&again), [(1, 0, 9), (2, 0, 9)]);
    assert_eq!(scheduler.stats().prefix_hits, 0);
}

#[test]
fn finished_sequences_leave_their_blocks_cached_and_free() {
    let mut scheduler = scheduler(config());
    scheduler.add(sequence(1, 0, 8)).unwrap();
    finish(&mut scheduler, 1);
    assert_eq!(scheduler.stats().num_free_blocks, 16);
    // 8 prompt tokens are computed, the generated one is not.
    let mut longer = sequence(2, 0, 8);
    longer.prompt.extend([7, 7, 7, 7, 7]);
    scheduler.add(longer).unwrap();
    assert_eq!(shape(&step(&mut scheduler)), [(2, 8, 5)]);
}

#[test]
fn keys_and_prompt_logits_prevent_hits() {
    let mut scheduler = scheduler(config());
    scheduler.add(sequence(1, 0, 9)).unwrap();
    step(&mut scheduler);
    let adapter = CacheKey {
        adapter: Some(adapter()),
        salt: None,
    };
    let salt = CacheKey {
        adapter: None,
        salt: Some("a".to_owned()),
    };
    scheduler
        .add(NewSequence {
            cache_key: adapter,
            ..sequence(2, 0, 9)
        })
        .unwrap();
    scheduler
        .add(NewSequence {
            cache_key: salt,
            ..sequence(3, 0, 9)
        })
        .unwrap();
    scheduler
        .add(NewSequence {
            skip_reading_prefix_cache: true,
            ..sequence(4, 0, 9)
        })
        .unwrap();
    let expected = [(1, 9, 1), (2, 0, 9), (3, 0, 9), (4, 0, 9)];
    assert_eq!(shape(&step(&mut scheduler)), expected);
    assert_eq!(scheduler.stats().prefix_queries, 27);
}

#[test]
fn caching_can_be_switched_off() {
    let mut scheduler = scheduler(SchedulerConfig {
        enable_prefix_caching: false,
        ..config()
    });
    scheduler.add(sequence(1, 0, 9)).unwrap();
    step(&mut scheduler);
    scheduler.add(sequence(2, 0, 9)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)), [(1, 9, 1), (2, 0, 9)]);
    assert_eq!(scheduler.stats().prefix_queries, 0);
}

#[test]
fn the_last_running_sequence_is_preempted_and_resumes_where_it_was() {
    let mut scheduler = scheduler(SchedulerConfig {
        num_blocks: 4,
        enable_prefix_caching: false,
        ..config()
    });
    scheduler.add(sequence(1, 0, 7)).unwrap();
    scheduler.add(sequence(2, 100, 7)).unwrap();
    scheduler.add(sequence(3, 200, 1)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)), [(1, 0, 7), (2, 0, 7)]);
    step(&mut scheduler);
    // Both need a third block.
    let preempting = step(&mut scheduler);
    assert_eq!(
        (shape(&preempting), &preempting.preempted[..]),
        (vec![(1, 8, 1)], &[2][..])
    );
    assert_eq!(scheduler.stats().num_preemptions, 1);
    assert_eq!(scheduler.stats().num_waiting, 2);
    finish(&mut scheduler, 1);
    let resumed = step(&mut scheduler);
    assert_eq!(shape(&resumed), [(2, 0, 9), (3, 0, 1)]);
    assert_eq!(
        resumed.chunks[0].tokens,
        [100, 101, 102, 103, 104, 105, 106, 7, 7]
    );
    assert!(resumed.chunks[0].samples);
}

#[test]
fn found_blocks_are_not_evicted_to_make_room_for_their_own_sequence() {
    let mut scheduler = scheduler(SchedulerConfig {
        num_blocks: 3,
        ..config()
    });
    scheduler.add(sequence(1, 0, 9)).unwrap();
    finish(&mut scheduler, 1);
    // All three blocks are free; two hold the prefix, one is left for the rest.
    scheduler.add(sequence(2, 0, 12)).unwrap();
    let step = step(&mut scheduler);
    assert_eq!(shape(&step), [(2, 8, 4)]);
    assert_eq!(step.chunks[0].block_table.len(), 3);
}

#[test]
fn aborting_frees_at_once_and_commit_ignores_the_aborted() {
    let mut scheduler = scheduler(config());
    scheduler.add(sequence(1, 0, 9)).unwrap();
    scheduler.add(sequence(2, 100, 9)).unwrap();
    let in_flight = scheduler.schedule();
    scheduler.add(sequence(3, 200, 9)).unwrap();
    assert!(scheduler.abort(1) && scheduler.abort(3) && !scheduler.abort(4));
    assert_eq!(scheduler.stats().num_free_blocks, 13);
    // The id may be used again at once.
    scheduler.add(sequence(1, 0, 9)).unwrap();
    commit(&mut scheduler, &in_flight);
    assert_eq!(shape(&step(&mut scheduler)), [(2, 9, 1), (1, 0, 9)]);
    assert!(scheduler.abort(1) && scheduler.abort(2) && !scheduler.has_work());
    assert_eq!(scheduler.stats().num_free_blocks, 16);
}

#[test]
fn forgotten_keys_never_hit_again_even_from_sequences_in_flight() {
    let mut scheduler = scheduler(SchedulerConfig {
        num_blocks: 64,
        ..config()
    });
    let key = CacheKey {
        adapter: Some(adapter()),
        salt: Some("s".to_owned()),
    };
    let with_key = |id| NewSequence {
        cache_key: key.clone(),
        ..sequence(id, 0, 9)
    };
    scheduler.add(with_key(1)).unwrap();
    step(&mut scheduler);
    scheduler.add(with_key(2)).unwrap();
    let in_flight = scheduler.schedule();
    assert_eq!(shape(&in_flight), [(1, 9, 1), (2, 8, 1)]);
    scheduler.forget_adapter(&adapter());
    commit(&mut scheduler, &in_flight);
    for _ in 0..8 {
        step(&mut scheduler);
    }
    scheduler.add(with_key(3)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)).last(), Some(&(3, 0, 9)));
    // Those added since share again.
    scheduler.add(with_key(4)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)).last(), Some(&(4, 8, 1)));
    let reloaded = AdapterKey { id: 1, ..adapter() };
    scheduler.forget_adapter(&reloaded);
    scheduler.add(with_key(5)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)).last(), Some(&(5, 8, 1)));
    scheduler.reset_prefix_cache();
    scheduler.add(with_key(6)).unwrap();
    assert_eq!(shape(&step(&mut scheduler)).last(), Some(&(6, 0, 9)));
}

#[test]
fn a_sequence_ends_at_its_limit_even_if_the_engine_goes_on() {
    let mut scheduler = scheduler(SchedulerConfig {
        max_model_len: 6,
        ..config()
    });
    scheduler.add(sequence(1, 0, 4)).unwrap();
    assert!(!step(&mut scheduler).chunks[0].reaches_max_len);
    assert!(step(&mut scheduler).chunks[0].reaches_max_len);
    assert!(!scheduler.has_work());
    assert_eq!(scheduler.stats().num_free_blocks, 16);
}

#[test]
fn a_due_token_that_does_not_come_is_asked_for_again() {
    let mut scheduler = scheduler(config());
    scheduler.add(sequence(1, 0, 8)).unwrap();
    scheduler.schedule();
    scheduler.commit(&[]);
    scheduler.check_invariants();
    let again = scheduler.schedule();
    assert_eq!(shape(&again), [(1, 7, 1)]);
    assert!(again.chunks[0].samples);
    // Tokens nobody asked for are ignored.
    let stray = Sampled {
        id: 99,
        token: 1,
        finished: true,
    };
    scheduler.commit(&[
        stray,
        Sampled {
            id: 1,
            token: 5,
            finished: false,
        },
    ]);
    scheduler.commit(&[Sampled {
        id: 1,
        token: 6,
        finished: true,
    }]);
    assert_eq!(scheduler.schedule().chunks[0].tokens, [5]);
}

#[test]
fn impossible_sequences_are_refused_and_leave_no_trace() {
    let mut scheduler = scheduler(SchedulerConfig {
        num_blocks: 2,
        ..config()
    });
    scheduler.add(sequence(1, 0, 8)).unwrap();
    assert_eq!(
        scheduler.add(sequence(1, 0, 3)),
        Err(AddError::DuplicateId { id: 1 })
    );
    assert!(matches!(
        scheduler.add(sequence(2, 0, 9)),
        Err(AddError::PoolTooSmall {
            num_needed: 3,
            num_blocks: 2,
            ..
        })
    ));
    assert_eq!(scheduler.stats().num_waiting, 1);
    // The pool holds the prompt exactly, so that one token can be sampled.
    assert!(step(&mut scheduler).chunks[0].reaches_max_len);
    assert!(!scheduler.has_work());
}

/// An engine that computes a step ahead gets the blocks that the next step will have, and takes none from others.
#[test]
fn room_for_a_token_more_is_that_of_the_next_step() {
    let mut scheduler = scheduler(SchedulerConfig {
        num_blocks: 6,
        ..config()
    });
    // Blocks hold four tokens: the second sequence's next token is the first of a block.
    for (id, len) in [(1, 5), (2, 8), (3, 6)] {
        scheduler.add(sequence(id, 100 * id as u32, len)).unwrap();
    }
    let chunks = scheduler.schedule().chunks;
    assert_eq!(chunks.len(), 3);
    assert_eq!(scheduler.stats().num_free_blocks, 0);
    assert_eq!(scheduler.reserve_next(&[1, 3]).unwrap().len(), 2);
    assert_eq!(scheduler.reserve_next(&[1, 2, 3]), None, "no block is left");
    scheduler.check_invariants();

    // One that is unknown, or in another order than the step's, is no sequence of it.
    assert_eq!(scheduler.reserve_next(&[1, 9]), None);
    let token = |id, finished| Sampled {
        id,
        token: 7,
        finished,
    };
    scheduler.commit(&[token(1, true), token(2, false), token(3, false)]);
    scheduler.schedule();
    let reserved = scheduler.reserve_next(&[2, 3]).unwrap();
    scheduler.check_invariants();
    scheduler.commit(&[token(2, false), token(3, false)]);
    let next = scheduler.schedule();
    let tables: Vec<_> = (next.chunks.into_iter())
        .map(|chunk| chunk.block_table)
        .collect();
    assert_eq!(tables, reserved);
    assert!(next.preempted.is_empty());
}

/// A draft is cut to the token budget, to free blocks and to the tokens that may still come, and takes nothing from others.
#[test]
fn drafts_take_what_is_left() {
    let mut scheduler = scheduler(SchedulerConfig {
        num_blocks: 5,
        max_num_batched_tokens: 8,
        max_model_len: 12,
        ..config()
    });
    scheduler.add(sequence(1, 0, 3)).unwrap();
    scheduler.add(sequence(2, 100, 5)).unwrap();
    let mut first = scheduler.schedule();
    assert_eq!(shape(&first), [(1, 0, 3), (2, 0, 5)]);
    assert_eq!(scheduler.add_draft(&mut first, 1, &[7]), 0, "a prompt");
    commit(&mut scheduler, &first);

    // Three of five blocks are taken. The first draft gets a block, the second is cut to the token budget.
    let mut second = scheduler.schedule();
    assert_eq!(scheduler.add_draft(&mut second, 0, &[7, 8, 7, 7]), 4);
    assert_eq!(second.chunks[0].block_table.len(), 2);
    assert_eq!(scheduler.add_draft(&mut second, 1, &[7, 7, 7, 7]), 2);
    assert_eq!(second.num_tokens(), 8);
    scheduler.check_invariants();
    let token = |id, token| Sampled {
        id,
        token,
        finished: false,
    };
    // What follows a wrong token is ignored; so is the rest of the draft.
    let tokens = [
        token(1, 7),
        token(2, 7),
        token(2, 7),
        token(2, 7),
        token(1, 9),
        token(1, 5),
    ];
    scheduler.commit(&tokens);
    scheduler.check_invariants();
    let mut third = scheduler.schedule();
    assert_eq!(shape(&third), [(1, 5, 1), (2, 8, 1)]);
    assert_eq!(third.chunks[0].tokens, [9]);
    // No block is left: the second sequence's own has room for three tokens more.
    assert_eq!(scheduler.stats().num_free_blocks, 0);
    assert_eq!(
        scheduler.add_draft(&mut third, 1, &[1, 2, 3, 4]),
        2,
        "12 tokens are all"
    );
    assert!(third.chunks[1].reaches_max_len && !third.chunks[0].reaches_max_len);
    assert_eq!(
        scheduler.add_draft(&mut third, 0, &[1, 2, 3]),
        2,
        "8 tokens fit"
    );
    // A step that failed leaves no draft behind.
    assert!(
        scheduler
            .schedule()
            .chunks
            .iter()
            .all(|chunk| chunk.draft.is_empty())
    );
}
