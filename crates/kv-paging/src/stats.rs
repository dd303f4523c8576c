//! What the scheduler reports about itself.

/// State and counters of a scheduler, as the server's metrics need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulerStats {
    /// Sequences that hold blocks and take part in steps.
    pub num_running: usize,
    /// Sequences that wait to be admitted, preempted sequences included.
    pub num_waiting: usize,
    /// Blocks that no sequence holds; a block with cached contents counts as free.
    pub num_free_blocks: usize,
    /// All blocks.
    pub num_blocks: usize,
    /// Preemptions since the start. One sequence may be preempted many times.
    pub num_preemptions: u64,
    /// Tokens looked up in the prefix cache since the start. A sequence counts once, when first admitted.
    pub prefix_queries: u64,
    /// How many of `prefix_queries` were found and not computed again.
    pub prefix_hits: u64,
}

impl SchedulerStats {
    /// Share of blocks that sequences hold, 0 to 1 (`vllm:kv_cache_usage_perc`).
    pub fn kv_cache_usage(&self) -> f64 {
        let num_held = self.num_blocks - self.num_free_blocks;
        num_held as f64 / self.num_blocks.max(1) as f64
    }
}
