//! What the engine thread tells the HTTP side after every step.

use super::stats::EngineStats;
use super::worker::Worker;
use crate::kv_events::KvEvents;

impl Worker {
    /// Publishes a snapshot of the engine, and what has changed in the prefix cache.
    pub(super) fn publish(&mut self) {
        if let Some(kv_events) = &mut self.kv_events {
            kv_events.publish(self.scheduler.take_cache_events());
        }
        let stats = self.scheduler.stats();
        let adapters = |started: bool| {
            let mut names: Vec<String> = (self.sequences.values())
                .filter(|sequence| sequence.has_started() == started)
                .filter_map(|sequence| sequence.request.adapter.clone())
                .collect();
            if !started {
                let parked = self.parked.iter();
                names.extend(parked.filter_map(|p| p.submission.request.adapter.clone()));
            }
            names.sort_unstable();
            names.dedup();
            names
        };
        self.receiver.publish_stats(EngineStats {
            num_running: stats.num_running,
            num_waiting: stats.num_waiting + self.parked.len(),
            num_deferred: self.parked.len(),
            num_blocks: stats.num_blocks,
            num_free_blocks: stats.num_free_blocks,
            kv_cache_usage: stats.kv_cache_usage(),
            block_size: self.scheduler.config().block_size,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            num_preemptions: stats.num_preemptions,
            num_steps_ahead: self.num_steps_ahead,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
            running_adapters: adapters(true),
            waiting_adapters: adapters(false),
            max_loras: self.adapters.max_loras(),
            kv_events: self.kv_events.as_ref().map(KvEvents::counts),
            speculation: self.drafts.as_ref().map(|drafts| drafts.stats().clone()),
        });
    }
}
