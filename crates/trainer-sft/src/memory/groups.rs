//! Groups of layers that share an input, as [`lora_4bit::training::Group`] holds them.

use lora_4bit::training::RANKS;
use model_qwen::linear_features;

use super::ledger::{Held, Ledger, Use};
use super::shape::StepShape;

/// The layers that share an input, by their places in [`linear_features`].
const GROUPS: [&[usize]; 4] = [&[0, 1, 2], &[3], &[4, 5], &[6]];

/// A group of layers with their weights unpacked.
pub(super) struct GroupAllocation {
    pub(super) held: Vec<Held>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) ranks: usize,
    pub(super) layers: Vec<LinearPart>,
    /// Of the layers that have an adapter.
    pub(super) parts: Vec<AdapterPart>,
}

/// A layer of a group.
pub(super) struct LinearPart {
    /// Its place in [`linear_features`].
    pub(super) module: usize,
    pub(super) outputs: usize,
}

/// The adapter of a layer of a group.
pub(super) struct AdapterPart {
    /// The layer's place in [`linear_features`].
    pub(super) module: usize,
    pub(super) rank: usize,
    pub(super) outputs: usize,
}

impl StepShape<'_> {
    pub(super) fn groups(&self, ledger: &mut Ledger) -> [GroupAllocation; 4] {
        GROUPS.map(|modules| self.group(ledger, modules))
    }

    fn group(&self, ledger: &mut Ledger, modules: &[usize]) -> GroupAllocation {
        let features = linear_features(self.model);
        let inputs = features[modules[0]].1[0];
        let layers = modules.iter().map(|&module| LinearPart {
            module,
            outputs: features[module].1[1],
        });
        let layers: Vec<LinearPart> = layers.collect();
        let outputs = layers.iter().map(|layer| layer.outputs).sum();
        let parts = layers.iter().map(|layer| AdapterPart {
            module: layer.module,
            rank: self.ranks[layer.module],
            outputs: layer.outputs,
        });
        let parts: Vec<AdapterPart> = parts.filter(|part| part.rank > 0).collect();
        let ranks = parts.iter().map(|part| part.rank).sum::<usize>();
        let ranks = ranks.next_multiple_of(RANKS);
        let mut held = Vec::new();
        let mut take = |bytes| held.extend(ledger.take_some(Use::Layer, bytes));
        if ranks > 0 {
            take(ranks * inputs * self.value);
            take(outputs * ranks * self.value);
        }
        if layers.len() > 1 || !self.weights_as_they_are {
            take(outputs * inputs * self.value);
        }
        if self.model.attention_bias && layers.len() == 3 {
            take(4 * outputs);
        }
        if self.dora && ranks > 0 {
            // Factors and lengths.
            take(4 * outputs);
            take(4 * outputs);
        }
        GroupAllocation {
            held,
            inputs,
            outputs,
            ranks,
            layers,
            parts,
        }
    }
}
