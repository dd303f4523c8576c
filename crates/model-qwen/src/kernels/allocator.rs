//! How the C library's allocator treats large buffers.

/// Asks the allocator to keep freed memory for the next allocation.
///
/// For training: a step keeps and frees a gigabyte of activations. By default glibc gives them back to the system, which has
/// to clear every page again at its next use, and each thread has a pool of its own, so that the peak depends on which
/// threads a step runs on. Libraries leave the allocator alone; programs call this first. Does nothing where the C
/// library isn't glibc.
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let settings = [
            // One pool for all threads: a step may run on any of them.
            (libc::M_ARENA_MAX, 1),
            // No mapping of its own for a large buffer, and nothing given back from the end of the pool.
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        ];
        for (name, value) in settings {
            // SAFETY: sets a parameter of the allocator; no other requirement.
            if unsafe { libc::mallopt(name, value) } == 0 {
                tracing::debug!(name, value, "the allocator refused a setting");
            }
        }
    }
}

/// Asks the allocator to give freed memory back to the system.
///
/// For serving: what building a tokenizer frees lies between what it keeps, and would stay with the process. Programs call
/// this when all is loaded. Does nothing where the C library isn't glibc.
#[allow(unsafe_code)]
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: looks through the allocator's own lists; no other requirement.
    unsafe {
        libc::malloc_trim(0);
    }
}
