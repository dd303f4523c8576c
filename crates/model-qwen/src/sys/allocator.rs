//! How the C library's allocator treats large buffers.

/// Asks the allocator to keep freed memory for the next allocation.
///
/// For training: a step keeps and frees a gigabyte of activations. By default glibc gives them back to the system, which has
/// to clear every page again at its next use, and each thread has a pool of its own, so that the peak depends on which
/// threads a step runs on. Libraries leave the allocator alone; programs call this first. Does nothing where the C
/// library isn't glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    set(&[
        // One pool for all threads: a step may run on any of them.
        (libc::M_ARENA_MAX, 1),
        // No mapping of its own for a large buffer, and nothing given back from the end of the pool.
        (libc::M_MMAP_MAX, 0),
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
    ]);
}

/// Asks the allocator for one pool of memory for all threads, so that what one has freed is there for the next.
///
/// For serving: a step allocates its activations on whichever thread it runs, and each would keep its own. Programs call
/// this first. Does nothing where the C library isn't glibc.
pub fn share_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    set(&[(libc::M_ARENA_MAX, 1)]);
}

/// Sets parameters of the allocator.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn set(parameters: &[(libc::c_int, libc::c_int)]) {
    for &(name, value) in parameters {
        // SAFETY: sets a parameter of the allocator; no other requirement.
        if unsafe { libc::mallopt(name, value) } == 0 {
            tracing::debug!(name, value, "the allocator refused a setting");
        }
    }
}

/// Asks the allocator to give freed memory back to the system.
///
/// For serving: what building a tokenizer frees lies between what it keeps, and would stay with the process, as would the
/// activations of a long prompt. Programs call this when all is loaded, and after
/// steps of many tokens. Does nothing where the C library isn't glibc.
#[allow(unsafe_code)]
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: looks through the allocator's own lists; no other requirement.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::return_freed_memory;

    /// Resident memory of this process that isn't pages of files, in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("of this process");
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.expect("a number").parse::<usize>().expect("a number") << 10
    }

    #[test]
    fn freed_memory_between_what_is_kept_goes_back() {
        const BYTES: usize = 64 << 10;
        let mut buffers: Vec<Vec<u8>> = (0..2048).map(|_| vec![1; BYTES]).collect();
        let full = resident();
        // Three of four; the others keep the pool from shrinking at its end.
        let mut i = 0;
        buffers.retain(|_| {
            i += 1;
            i % 4 == 0
        });
        return_freed_memory();
        let freed = full.saturating_sub(resident());
        // Other tests of this process allocate, too.
        assert!(freed > 1024 * BYTES, "{freed} bytes");
        assert!(buffers.iter().all(|buffer| buffer[BYTES - 1] == 1));
    }
}
