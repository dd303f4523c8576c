//! Signals that whoever starts a program has it ignore.

/// Whether this process was started with a signal ignored, as `nohup` does with SIGHUP; where `/proc` says so.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal)
        .ok()
        .and_then(|signal| signal.checked_sub(1));
    let bit = bit.and_then(|bit| 1u64.checked_shl(bit)).unwrap_or(0);
    mask.is_some_and(|mask| mask & bit != 0)
}
