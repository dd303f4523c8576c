//! Limits that a process sets for itself, and what it has used so far.

use std::time::Duration;

/// Processor time of the calling process; `None` where the system does not tell.
#[cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "a system call without a safe form")
)]
pub(crate) fn processor_time() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the clock exists, and `time` is a place for its answer.
        let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).ok()?;
        let nanos = u32::try_from(time.tv_nsec).ok()?;
        (status == 0).then(|| Duration::new(seconds, nanos))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Lets the calling process take so many bytes of memory more than it has; `None` ends the limit. What it asks for beyond
/// that is refused, which ends a Rust program. Systems other than Linux have no such limit here.
pub(crate) fn limit_memory(more: Option<u64>) {
    #[cfg(target_os = "linux")]
    {
        let in_use = |more| Some(data_bytes()?.saturating_add(more));
        let limit = match more {
            Some(more) => in_use(more),
            None => Some(libc::RLIM_INFINITY),
        };
        if let Some(limit) = limit {
            set_soft_limit(libc::RLIMIT_DATA, limit);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = more;
}

/// A process that ends by a signal leaves no file.
pub(crate) fn leave_no_core() {
    #[cfg(target_os = "linux")]
    set_soft_limit(libc::RLIMIT_CORE, 0);
}

/// Leaves it to whoever started the process to end it.
#[cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "a system call without a safe form")
)]
pub(crate) fn ignore_signals_to_end() {
    #[cfg(target_os = "linux")]
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: nothing handles the signal, and nobody else changes that.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "system calls without a safe form")]
fn set_soft_limit(resource: libc::__rlimit_resource_t, wanted: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a place for the answer.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return;
    }
    limit.rlim_cur = wanted.min(limit.rlim_max);
    // SAFETY: the system only reads `limit`. One that refuses leaves the limits as they are.
    unsafe { libc::setrlimit(resource, &raw const limit) };
}

/// What counts for the limit: writable memory of its own.
#[cfg(target_os = "linux")]
fn data_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let data = status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))?;
    let kib: u64 = data.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_what_is_in_use() {
        assert!(processor_time().is_some());
        assert!(data_bytes().is_some_and(|bytes| bytes > 100 << 10));
    }
}
