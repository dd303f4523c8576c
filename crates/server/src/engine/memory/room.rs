//! Whether there is room for an int8 copy of lm_head beside the KV cache.

/// A KV cache is at least so many times as large as a copy that it has to share its room with.
const CACHE_PER_COPY: u64 = 8;

/// Where an int8 copy of lm_head, which makes steps faster, can be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// The KV cache gets what the copy leaves.
    ToShare,
    /// The KV cache has a size of its own; so many bytes are left.
    Beside(u64),
}

impl Room {
    /// Whether it is worth it: a KV cache of `cache` bytes, which holds a sequence of `longest` bytes still if it did, loses
    /// little of what it can use, `useful` bytes at most.
    pub(super) fn holds(self, copy: u64, cache: u64, longest: u64, useful: u64) -> bool {
        match self {
            Self::ToShare => {
                let holds_longest = copy + longest <= cache || longest > cache;
                let loses_little = copy <= cache / CACHE_PER_COPY || copy + useful <= cache;
                holds_longest && loses_little
            }
            Self::Beside(free) => copy <= free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_lm_head_leaves_most_of_the_cache() {
        let share = |copy, longest, useful| Room::ToShare.holds(copy, 80, longest, useful);
        assert!(share(10, 70, 1000) && share(10, 81, 1000));
        assert!(!share(11, 1, 1000), "more than an eighth");
        assert!(share(40, 1, 40), "of what nobody uses");
        assert!(!share(10, 71, 1000), "too little for the longest sequence");
        assert!(Room::Beside(10).holds(10, 1, 1, 1) && !Room::Beside(9).holds(10, 1000, 1, 1));
    }
}
