//! For how many rows steps are recorded.

/// Rows that are computed for `num_rows` rows: few recorded steps, little waste.
pub(super) fn bucket(num_rows: usize) -> usize {
    match num_rows {
        0..=4 => num_rows.next_power_of_two(),
        5..=32 => num_rows.next_multiple_of(8),
        33..=128 => num_rows.next_multiple_of(16),
        _ => num_rows.next_multiple_of(32),
    }
}
