//! The kernels of attention one token at a time.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::operands::{KeysValues, NewRows, Parts, Splits, StepList};
use super::super::rope::turn;
use super::super::scores::LOWEST;
use super::super::splits::Merged;
use super::shape::{CHUNK, Heads, LANES, MIN_PART, Merge, UNITS, UNROLL};

#[cube(launch_unchecked)]
pub(super) fn attend_token<E: Float, O: Float, N: Size>(
    q: &[Vector<f32, N>],
    cache: &mut KeysValues<E, N>,
    new: &NewRows<N, N>,
    step: &StepList,
    out: &mut [Vector<O, N>],
    parts: &mut Parts<N>,
    scale: f32,
    #[comptime] heads: Heads,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    let token = CUBE_POS_X as usize;
    let kv_head = CUBE_POS_Y as usize;
    let split = CUBE_POS_Z as usize;
    let unit = UNIT_POS as usize;
    let group = comptime!(heads.group);
    let vectors = comptime!(heads.vectors);
    let half = comptime!(heads.vectors / 2);
    let block_size = comptime!(heads.block_size);
    let kv_heads = comptime!(heads.kv_heads);
    let lanes = comptime!(LANES as usize);

    let context = step.context(token);
    let table = step.table(token);
    let num_splits = CUBE_COUNT_Z as usize;
    let split_len = split_len(context, num_splits);
    let mut chunk = split * split_len;
    let end = min(context, chunk + split_len);
    // A part that has no keys counts for nothing; the first one exists in any case.
    let used = max(context.div_ceil(split_len), 1);

    if split < used {
        let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(group * vectors));
        let mut scores = Shared::<[f32]>::new_slice(comptime!(group * CHUNK));
        let mut starts = Shared::<[u32]>::new_slice(CHUNK);
        let mut maxima = Shared::<[f32]>::new_slice(group);
        let mut sums = Shared::<[f32]>::new_slice(group);
        let mut factors = Shared::<[f32]>::new_slice(group);
        let mut shares =
            Shared::<[Vector<f32, N>]>::new_slice(comptime!(heads.heads_at_once() * UNITS));

        let first_query = (token * kv_heads + kv_head) * group * vectors;
        if comptime!(heads.is_step) {
            let mut i = unit;
            while i < group * half {
                let (g, pair) = (i / half, i % half);
                let at = first_query + g * vectors + pair;
                let c = new.angles.cos[token * half + pair];
                let s = new.angles.sin[token * half + pair];
                let (first, second) = turn::<N>(q[at], q[at + half], c, s);
                queries[g * vectors + pair] = first * Vector::new(scale);
                queries[g * vectors + half + pair] = second * Vector::new(scale);
                i += UNITS;
            }
            // The cube that sees the last key, the token's own, writes it first.
            if split + 1 == used && context > 0 {
                let from = (token * kv_heads + kv_head) * vectors;
                let to = (step.slot(token) * kv_heads + kv_head) * vectors;
                let mut i = unit;
                while i < half {
                    let c = new.angles.cos[token * half + i];
                    let s = new.angles.sin[token * half + i];
                    let keys = &new.rows.keys;
                    let (first, second) = turn::<N>(keys[from + i], keys[from + half + i], c, s);
                    cache.keys[to + i] = Vector::cast_from(first);
                    cache.keys[to + half + i] = Vector::cast_from(second);
                    i += UNITS;
                }
                let mut i = unit;
                while i < vectors {
                    cache.values[to + i] = Vector::cast_from(new.rows.values[from + i]);
                    i += UNITS;
                }
                sync_storage();
            }
        } else {
            let mut i = unit;
            while i < group * vectors {
                queries[i] = q[first_query + i] * Vector::new(scale);
                i += UNITS;
            }
        }
        if unit < group {
            maxima[unit] = LOWEST;
            sums[unit] = 0.0;
        }

        // For the scores, some units share a key; for the output, some share a vector of all heads.
        let lane = unit % lanes;
        let key_unit = unit / lanes;
        let vector = unit % vectors;
        let value_unit = unit / vectors;
        let value_units = comptime!(UNITS / heads.vectors);
        let values_at_once = comptime!(CHUNK.div_ceil(UNITS / heads.vectors));
        let mut output = Array::<Vector<f32, N>>::new(group);
        #[unroll]
        for g in 0..group {
            output[g] = Vector::new(0.0);
        }

        let plane = (UNIT_POS / PLANE_DIM) as usize;
        let num_planes = (CUBE_DIM / PLANE_DIM) as usize;
        while chunk < end {
            let len = min(end - chunk, CHUNK);
            // Where the rows of the chunk start; past the last key, that of the last one.
            if unit < CHUNK {
                let position = min(chunk + unit, end - 1);
                let row = step.list[table + position / block_size] as usize * block_size
                    + position % block_size;
                starts[unit] = ((row * kv_heads + kv_head) * vectors) as u32;
            }
            sync_cube();
            let keys_at_once = comptime!(UNITS / LANES as usize);
            let key_parts = comptime!(heads.vectors / LANES as usize);
            let mut keys =
                Array::<Vector<E, N>>::new(comptime!(UNROLL * heads.vectors / LANES as usize));
            #[unroll]
            for load in 0..UNROLL {
                let start = starts[load * keys_at_once + key_unit] as usize;
                #[unroll]
                for part in 0..key_parts {
                    keys[load * key_parts + part] = cache.keys[start + part * lanes + lane];
                }
            }
            // The values are under way while the scores are computed.
            let mut rows = Array::<Vector<E, N>>::new(values_at_once);
            #[unroll]
            for load in 0..values_at_once {
                let key = min(load * value_units + value_unit, CHUNK - 1);
                rows[load] = cache.values[starts[key] as usize + vector];
            }
            #[unroll]
            for load in 0..UNROLL {
                let mut dots = Array::<Vector<f32, N>>::new(group);
                #[unroll]
                for g in 0..group {
                    dots[g] = Vector::new(0.0);
                }
                #[unroll]
                for part in 0..key_parts {
                    let key = Vector::<f32, N>::cast_from(keys[load * key_parts + part]);
                    #[unroll]
                    for g in 0..group {
                        dots[g] += key * queries[g * vectors + part * lanes + lane];
                    }
                }
                #[unroll]
                for g in 0..group {
                    let mut dot = add_up::<N>(dots[g]);
                    dot += plane_shuffle_xor(dot, 1u32);
                    dot += plane_shuffle_xor(dot, 2u32);
                    dot += plane_shuffle_xor(dot, 4u32);
                    if lane == 0 {
                        let key = load * keys_at_once + key_unit;
                        scores[g * CHUNK + key] = select(key < len, dot, LOWEST);
                    }
                }
            }
            sync_cube();

            // A plane for each head: the new maximum, the weights, their sum.
            let mut base = 0usize;
            while base < group {
                let g = min(base + plane, group - 1);
                let mine = base + plane < group;
                let mut highest = f32::new(LOWEST);
                let mut old = f32::new(LOWEST);
                // A plane without a head reads no score: another plane may be writing it.
                let (mut len, mut keys) = (len, CHUNK.runtime());
                if mine {
                    // Who writes it reads it, for all of the plane.
                    if UNIT_POS_PLANE == 0 {
                        old = maxima[g];
                    }
                } else {
                    len = 0usize;
                    keys = 0usize;
                }
                let mut i = UNIT_POS_PLANE as usize;
                while i < len {
                    highest = max(highest, scores[g * CHUNK + i]);
                    i += PLANE_DIM as usize;
                }
                let new = plane_max(max(old, highest));
                let mut sum = 0.0f32;
                let mut i = UNIT_POS_PLANE as usize;
                while i < keys {
                    // Nothing for keys past the last one.
                    let weight = select(i < len, (scores[g * CHUNK + i] - new).exp(), 0.0f32);
                    sum += weight;
                    scores[g * CHUNK + i] = weight;
                    i += PLANE_DIM as usize;
                }
                let sum = plane_sum(sum);
                if mine && UNIT_POS_PLANE == 0 {
                    let factor = (old - new).exp();
                    factors[g] = factor;
                    sums[g] = sums[g] * factor + sum;
                    maxima[g] = new;
                }
                base += num_planes;
            }
            sync_cube();

            #[unroll]
            for g in 0..group {
                output[g] *= Vector::new(factors[g]);
            }
            #[unroll]
            for load in 0..values_at_once {
                let value = Vector::<f32, N>::cast_from(rows[load]);
                let key = load * value_units + value_unit;
                #[unroll]
                for g in 0..group {
                    let weight = scores[g * CHUNK + min(key, CHUNK - 1)];
                    let weight = select(key < CHUNK, weight, 0.0f32);
                    output[g] += value * Vector::new(weight);
                }
            }
            sync_cube();
            chunk += CHUNK;
        }

        // Units with the same vector hold sums over different keys. Some heads are added up at a time.
        let first_head = ((token * num_splits + split) * kv_heads + kv_head) * group;
        let at_once = comptime!(heads.heads_at_once());
        #[unroll]
        for first in 0..comptime!(heads.group.div_ceil(heads.heads_at_once())) {
            #[unroll]
            for g in 0..at_once {
                if comptime!(first * heads.heads_at_once() + g < heads.group) {
                    shares[g * UNITS + unit] = output[first * at_once + g];
                }
            }
            sync_cube();
            let mut i = unit;
            while i < at_once * vectors {
                let (g, vector) = (i / vectors, i % vectors);
                let head = first * at_once + g;
                if head < group {
                    let mut total = shares[g * UNITS + vector];
                    for other in 1..value_units {
                        total += shares[g * UNITS + other * vectors + vector];
                    }
                    if comptime!(heads.merge == Merge::None) {
                        let to = first_query + head * vectors + vector;
                        out[to] = Vector::cast_from(total / Vector::new(at_least_some(sums[head])));
                    } else {
                        let to = first_head + head;
                        parts.sums[to * vectors + vector] = total;
                        if vector == 0 {
                            parts.stats[to * 2] = maxima[head];
                            parts.stats[to * 2 + 1] = sums[head];
                        }
                    }
                }
                i += UNITS;
            }
            sync_cube();
        }

        if comptime!(heads.merge == Merge::InPlace) {
            sync_storage();
            let mut last = Shared::<[u32]>::new_slice(1usize);
            if unit == 0 {
                let counter = token * kv_heads + kv_head;
                let before = parts.arrived[counter].fetch_add(1u32) as usize;
                last[0] = u32::cast_from(before + 1 == used);
                if before + 1 == used {
                    parts.arrived[counter].store(0u32);
                }
            }
            sync_storage();
            if last[0] == 1u32 {
                let splits = Splits {
                    token,
                    kv_head,
                    used,
                    num: num_splits,
                };
                merge_heads::<O, N>(&*parts, out, &splits, comptime!(heads.merged()));
            }
        }
    }
}

/// Keys of a part of a context that is cut into at most `splits` parts.
#[cube]
fn split_len(context: usize, splits: usize) -> usize {
    let len = max(context.div_ceil(splits), 1);
    len.div_ceil(MIN_PART) * MIN_PART
}

/// Combines the parts of each head.
#[cube(launch_unchecked)]
pub(super) fn merge<O: Float, N: Size>(
    parts: &Parts<N>,
    step: &StepList,
    out: &mut [Vector<O, N>],
    num_splits: usize,
    #[comptime] heads: Heads,
    #[define(O)] _dtype: ElemType,
) {
    let (token, kv_head) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let context = step.context(token);
    let splits = Splits {
        token,
        kv_head,
        used: max(context.div_ceil(split_len(context, num_splits)), 1),
        num: num_splits,
    };
    merge_heads::<O, N>(parts, out, &splits, comptime!(heads.merged()));
}

/// Parts that are loaded together.
const BATCH: usize = 4;

/// Combines the parts of the heads of a group: a unit for each vector.
#[cube]
pub(in super::super) fn merge_heads<O: Float, N: Size>(
    parts: &Parts<N>,
    out: &mut [Vector<O, N>],
    splits: &Splits,
    #[comptime] heads: Merged,
) {
    let group = comptime!(heads.group);
    let vectors = comptime!(heads.vectors);
    let kv_heads = comptime!(heads.kv_heads);
    let mut i = UNIT_POS as usize;
    while i < group * vectors {
        let head = splits.kv_head * group + i / vectors;
        let mut highest = f32::new(LOWEST);
        let mut sum = 0.0f32;
        let mut total = Vector::<f32, N>::new(0.0);
        // Some parts at a time, so that they are loaded together.
        let mut next = 0usize;
        while next < splits.used {
            let mut maxima = Array::<f32>::new(BATCH);
            let mut part_sums = Array::<f32>::new(BATCH);
            let mut values = Array::<Vector<f32, N>>::new(BATCH);
            #[unroll]
            for j in 0..BATCH {
                let split = min(next + j, splits.used - 1);
                let at = (splits.token * splits.num + split) * kv_heads * group + head;
                maxima[j] = parts.stats[at * 2];
                part_sums[j] = parts.stats[at * 2 + 1];
                values[j] = parts.sums[at * vectors + i % vectors];
            }
            #[unroll]
            for j in 0..BATCH {
                if next + j < splits.used {
                    let new = max(highest, maxima[j]);
                    let (old_factor, factor) = ((highest - new).exp(), (maxima[j] - new).exp());
                    sum = sum * old_factor + part_sums[j] * factor;
                    total = total * Vector::new(old_factor) + values[j] * Vector::new(factor);
                    highest = new;
                }
            }
            next += BATCH;
        }
        let to = (splits.token * kv_heads * group + head) * vectors + i % vectors;
        out[to] = Vector::cast_from(total / Vector::new(at_least_some(sum)));
        i += UNITS;
    }
}

/// The sum of a row's weights, which is 1 or more; without any key, not zero.
#[cube]
fn at_least_some(sum: f32) -> f32 {
    max(sum, f32::new(1e-30))
}

/// Sum of the values of a vector.
#[cube]
fn add_up<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..vector.vector_size() {
        sum += vector.extract(i);
    }
    sum
}
