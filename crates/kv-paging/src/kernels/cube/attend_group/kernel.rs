//! The kernel of attention in steps of one token per sequence.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::attend::kernel::merge_heads;
use super::super::blocks::{BlockLoad, KEYS, end_group, place, wait_for_groups};
use super::super::operands::{KeysValues, NewRows, Parts, Splits, StepList};
use super::super::rope::turn;
use super::super::scores::LOWEST;
use super::super::splits::Merged;
use super::load::{OwnToken, load_known};
use super::shape::{Heads, PLANE, PLANES, STAGES, UNITS};

#[cube(launch_unchecked)]
pub(super) fn attend_group<E: Float, O: Float>(
    q: &[Vector<f32, Const<2>>],
    cache: &mut KeysValues<E, Const<8>>,
    new: &NewRows<Const<8>, Const<2>>,
    step: &StepList,
    out: &mut [Vector<O, Const<4>>],
    parts: &mut Parts<Const<4>>,
    scale: f32,
    #[comptime] heads: Heads,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    let token = CUBE_POS_X as usize;
    let kv_head = CUBE_POS_Y as usize;
    let split = CUBE_POS_Z as usize;
    let num_splits = CUBE_COUNT_Z as usize;
    let unit = UNIT_POS as usize;
    let lane = unit % PLANE;
    let plane = unit / PLANE;
    let group = comptime!(heads.group);
    let blocks = comptime!(heads.blocks);
    let chunks = comptime!(heads.blocks.chunks());
    let head_cores = comptime!(heads.blocks.head_dim / 16);
    let kv_heads = comptime!(heads.blocks.kv_heads);
    let stage_len = comptime!(heads.blocks.len());

    let context = step.context(token);
    let table = step.table(token);
    let split_len = max(context.div_ceil(num_splits), 1).div_ceil(KEYS) * KEYS;
    let first = split * split_len;
    let end = min(context, first + split_len);
    // A part that has no keys counts for nothing; the first one exists in any case.
    let used = max(context.div_ceil(split_len), 1);

    if split < used {
        // Blocks of keys, then as many of values; in the end the planes' sums.
        let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
            comptime!(2 * STAGES * heads.blocks.len()),
            128usize,
        );
        let mut sums_memory = Shared::<[Vector<f32, Const<2>>]>::new_slice(comptime!(
            PLANES * heads.group * heads.blocks.head_dim / 2
        ));
        let mut stats_memory = Shared::<[f32]>::new_slice(comptime!(PLANES * heads.group * 2));
        let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);

        // The token's own key and value, the last of its context, are not in the cache yet. The cube that sees them takes
        // them from here, and writes them for the steps to come.
        let sees_own = split + 1 == used && context > 0;
        let known = select(sees_own, end - 1, end);
        let mut own = OwnToken::<E> {
            key: Vector::new(E::new(0.0)),
            value: Vector::new(E::new(0.0)),
        };
        if sees_own {
            let half = comptime!(heads.blocks.chunks() / 2);
            let chunk = unit % chunks;
            let pair = chunk % half;
            let from = (token * kv_heads + kv_head) * chunks;
            let (a, b) = (
                new.rows.keys[from + pair],
                new.rows.keys[from + half + pair],
            );
            let value = new.rows.values[from + chunk];
            let is_low = chunk < half;
            let mut key = Vector::<f32, Const<8>>::new(0.0);
            #[unroll]
            for i in 0..4usize {
                let at = (token * half + pair) * 4 + i;
                let (c, s) = (new.angles.cos[at], new.angles.sin[at]);
                let (first, second) = turn(pair_of(a, i), pair_of(b, i), c, s);
                #[unroll]
                for j in 0..2usize {
                    let value = select(is_low, first.extract(j), second.extract(j));
                    key.insert(i * 2 + j, value);
                }
            }
            own.key = Vector::cast_from(key);
            own.value = Vector::cast_from(value);
            if unit < chunks {
                let to = (step.slot(token) * kv_heads + kv_head) * chunks + chunk;
                cache.keys[to] = own.key;
                cache.values[to] = own.value;
            }
        }

        #[unroll]
        for stage in 0..comptime!(STAGES - 1) {
            if first + stage * KEYS < end {
                let start = first + stage * KEYS;
                let load = BlockLoad {
                    table,
                    kv_head,
                    start,
                    end: known,
                    stage,
                };
                load_known::<E>(&*cache, step, &mut memory, &load, &own, blocks);
            }
            end_group();
        }

        // The group's queries as rows, rotated; in a fragment, a unit has the rows `row` and `row + 8` and pairs of
        // columns, `column` and `column + 8` of each core. Rows past the group repeat its last one.
        let row = lane / 4;
        let column = lane % 4;
        let half_cores = comptime!(head_cores / 2);
        let quarter = comptime!(heads.blocks.head_dim / 4);
        let factor = Vector::<f32, Const<2>>::new(scale);
        let mut queries = Sequence::<Array<Vector<E, Const<2>>>>::new();
        #[unroll]
        for _ in 0..head_cores {
            queries.push(Array::<Vector<E, Const<2>>>::new(4usize));
        }
        #[unroll]
        for core in 0..half_cores {
            #[unroll]
            for i in 0..4usize {
                // Fragments 0 and 2 are of the first row, 1 and 3 of the second; 2 and 3 of the later columns.
                let head = kv_head * group + min(row + i % 2 * 8, group - 1);
                let pair = core * 8 + i / 2 * 4 + column;
                let at =
                    (token * kv_heads * group + head) * comptime!(heads.blocks.head_dim / 2) + pair;
                let c = new.angles.cos[token * quarter + pair];
                let s = new.angles.sin[token * quarter + pair];
                let (first, second) = turn(q[at], q[at + quarter], c, s);
                let low = &mut queries[core];
                low[i] = Vector::cast_from(first * factor);
                let high = &mut queries[core + half_cores];
                high[i] = Vector::cast_from(second * factor);
            }
        }

        let mut output = Sequence::<Array<Vector<f32, Const<2>>>>::new();
        #[unroll]
        for _ in 0..comptime!(heads.blocks.head_dim / 8) {
            let mut part = Array::<Vector<f32, Const<2>>>::new(2usize);
            part[0] = Vector::new(0.0);
            part[1] = Vector::new(0.0);
            output.push(part);
        }
        let mut highest = Array::<f32>::new(2usize);
        let mut sums = Array::<f32>::new(2usize);
        #[unroll]
        for half in 0..2usize {
            highest[half] = f32::new(LOWEST);
            sums[half] = 0.0f32;
        }

        let mut start = first;
        let mut full = 0usize;
        let mut free = comptime!(STAGES - 1).runtime();
        while start < end {
            wait_for_groups(comptime!(STAGES - 2));
            // All units' loads have arrived, and no unit reads the block before any more.
            sync_cube();
            let next = start + comptime!((STAGES - 1) * KEYS);
            if next < end {
                let load = BlockLoad {
                    table,
                    kv_head,
                    start: next,
                    end: known,
                    stage: free,
                };
                load_known::<E>(&*cache, step, &mut memory, &load, &own, blocks);
            }
            end_group();

            // Scores of the plane's 16 keys.
            let mut scores = Sequence::<Array<Vector<f32, Const<2>>>>::new();
            #[unroll]
            for _ in 0..2usize {
                let mut part = Array::<Vector<f32, Const<2>>>::new(2usize);
                part[0] = Vector::new(0.0);
                part[1] = Vector::new(0.0);
                scores.push(part);
            }
            let keys_at = full * stage_len;
            let key = plane * 16 + lane / 16 * 8 + lane % 8;
            #[unroll]
            for core in 0..head_cores {
                let at = keys_at + place(key, core * 2 + lane / 8 % 2, blocks);
                let loaded = instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
                    &memory[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    false,
                );
                #[unroll]
                for half in 0..2usize {
                    let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
                    right[0] = loaded[half * 2];
                    right[1] = loaded[half * 2 + 1];
                    instruction.execute_inplace(&queries[core], &right, &mut scores[half]);
                }
            }
            #[unroll]
            for half in 0..2usize {
                let mut new = highest[half];
                #[unroll]
                for block in 0..2usize {
                    let part = &mut scores[block];
                    let position = start + plane * 16 + block * 8 + column * 2;
                    let score = part[half];
                    let one = select(position < end, score.extract(0usize), LOWEST);
                    let two = select(position + 1 < end, score.extract(1usize), LOWEST);
                    let mut masked = Vector::<f32, Const<2>>::new(one);
                    masked.insert(1usize, two);
                    part[half] = masked;
                    new = max(new, max(one, two));
                }
                new = max(new, plane_shuffle_xor(new, 1u32));
                new = max(new, plane_shuffle_xor(new, 2u32));
                let rescale = (highest[half] - new).exp();
                highest[half] = new;
                let mut sum = 0.0f32;
                #[unroll]
                for block in 0..2usize {
                    let part = &mut scores[block];
                    let position = start + plane * 16 + block * 8 + column * 2;
                    let weights = (part[half] - Vector::new(new)).exp();
                    // Where a plane has seen no key yet, the maximum is the lowest value too.
                    let one = select(position < end, weights.extract(0usize), 0.0f32);
                    let two = select(position + 1 < end, weights.extract(1usize), 0.0f32);
                    let mut weights = Vector::<f32, Const<2>>::new(one);
                    weights.insert(1usize, two);
                    sum += one + two;
                    part[half] = weights;
                }
                sums[half] = sums[half] * rescale + sum;
                #[unroll]
                for block in 0..comptime!(heads.blocks.head_dim / 8) {
                    let part = &mut output[block];
                    part[half] *= Vector::new(rescale);
                }
            }
            let (low, high) = (&scores[0], &scores[1]);
            let mut left = Array::<Vector<E, Const<2>>>::new(4usize);
            left[0] = Vector::cast_from(low[0]);
            left[1] = Vector::cast_from(low[1]);
            left[2] = Vector::cast_from(high[0]);
            left[3] = Vector::cast_from(high[1]);
            let values_at = (comptime!(STAGES) + full) * stage_len;
            #[unroll]
            for pair in 0..head_cores {
                let at = values_at + place(plane * 16 + lane % 16, pair * 2 + lane / 16, blocks);
                let loaded = instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
                    &memory[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    true,
                );
                #[unroll]
                for half in 0..2usize {
                    let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
                    right[0] = loaded[half * 2];
                    right[1] = loaded[half * 2 + 1];
                    instruction.execute_inplace(&left, &right, &mut output[pair * 2 + half]);
                }
            }
            start += KEYS;
            full += 1;
            if full == STAGES {
                full = 0usize;
            }
            free += 1;
            if free == STAGES {
                free = 0usize;
            }
        }

        // What the planes have summed up.
        let pairs = comptime!(heads.blocks.head_dim / 2);
        #[unroll]
        for half in 0..2usize {
            let mut sum = sums[half];
            sum += plane_shuffle_xor(sum, 1u32);
            sum += plane_shuffle_xor(sum, 2u32);
            let r = plane * group + row + half * 8;
            if row + half * 8 < group {
                if column == 0 {
                    stats_memory[r * 2] = highest[half];
                    stats_memory[r * 2 + 1] = sum;
                }
                #[unroll]
                for block in 0..comptime!(heads.blocks.head_dim / 8) {
                    let part = &output[block];
                    sums_memory[r * pairs + block * 4 + column] = part[half];
                }
            }
        }
        sync_cube();
        let quads = comptime!(heads.blocks.head_dim / 4);
        let first_head = ((token * num_splits + split) * kv_heads + kv_head) * group;
        let first_out = (token * kv_heads + kv_head) * group;
        let mut i = unit;
        while i < group * quads {
            let (head, quad) = (i / quads, i % quads);
            let mut highest = f32::new(LOWEST);
            #[unroll]
            for other in 0..PLANES {
                highest = max(highest, stats_memory[(other * group + head) * 2]);
            }
            let mut sum = 0.0f32;
            let mut total = Vector::<f32, Const<4>>::new(0.0);
            #[unroll]
            for other in 0..PLANES {
                let r = other * group + head;
                let factor = (stats_memory[r * 2] - highest).exp();
                sum += stats_memory[r * 2 + 1] * factor;
                let (a, b) = (
                    sums_memory[r * pairs + quad * 2],
                    sums_memory[r * pairs + quad * 2 + 1],
                );
                let mut part = Vector::<f32, Const<4>>::new(0.0);
                part.insert(0usize, a.extract(0usize));
                part.insert(1usize, a.extract(1usize));
                part.insert(2usize, b.extract(0usize));
                part.insert(3usize, b.extract(1usize));
                total += part * Vector::new(factor);
            }
            if comptime!(heads.is_split) {
                parts.sums[(first_head + head) * quads + quad] = total;
                if quad == 0 {
                    parts.stats[(first_head + head) * 2] = highest;
                    parts.stats[(first_head + head) * 2 + 1] = sum;
                }
            } else {
                let whole = total / Vector::new(max(sum, f32::new(1e-30)));
                out[(first_out + head) * quads + quad] = Vector::cast_from(whole);
            }
            i += UNITS;
        }

        if comptime!(heads.is_split) {
            let mut last = Shared::<[u32]>::new_slice(1usize);
            sync_cube();
            if unit == 0 {
                // For what all units have written: they have met above.
                fence();
                let counter = token * kv_heads + kv_head;
                let before = parts.arrived[counter].fetch_add(1u32) as usize;
                last[0] = u32::cast_from(before + 1 == used);
                if before + 1 == used {
                    parts.arrived[counter].store(0u32);
                }
                fence();
            }
            sync_cube();
            if last[0] == 1u32 {
                let splits = Splits {
                    token,
                    kv_head,
                    used,
                    num: num_splits,
                };
                let merged = comptime!(Merged {
                    kv_heads: heads.blocks.kv_heads,
                    group: heads.group,
                    vectors: heads.blocks.head_dim / 4,
                });
                merge_heads::<O, Const<4>>(&*parts, out, &splits, merged);
            }
        }
    }
}

/// Elements `2i` and `2i + 1`.
#[cube]
fn pair_of(of: Vector<f32, Const<8>>, #[comptime] i: usize) -> Vector<f32, Const<2>> {
    let mut pair = Vector::<f32, Const<2>>::new(of.extract(i * 2));
    pair.insert(1usize, of.extract(i * 2 + 1));
    pair
}

/// What this unit knows to be written is seen by all who know of its later writes, and the other way round.
///
/// CubeCL doesn't know that it orders anything: a `sync_cube` must lie between it and the loads and stores that it orders.
#[cube]
fn fence() {
    gpu_asm!("fence.acq_rel.gpu;", options(explicit_mem));
}
