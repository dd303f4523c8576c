//! The gradients that a step holds, by what they are of.

use std::collections::BTreeMap;

use super::ledger::{Held, Ledger, Use};

/// A tensor that is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ParameterKey {
    /// A decoder layer; what is of the model as a whole comes after the last one.
    pub(super) layer: usize,
    /// A place in [`model_qwen::linear_features`], or behind it.
    pub(super) module: usize,
    pub(super) tensor: ModuleTensor,
}

/// A tensor of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ModuleTensor {
    Weight,
    Bias,
    LoraA,
    LoraB,
    /// DoRA's.
    Magnitude,
}

/// Gradients that are added over micro-batches.
#[derive(Debug, Default)]
pub(super) struct Gradients(BTreeMap<ParameterKey, Held>);

impl Gradients {
    fn has(&self, key: ParameterKey) -> bool {
        self.0.contains_key(&key)
    }

    /// Adds a gradient; a sum takes the place of one of its parts.
    pub(super) fn add(&mut self, ledger: &mut Ledger, key: ParameterKey, bytes: usize) {
        let part = ledger.take(Use::Trained, bytes);
        match self.has(key) {
            false => drop(self.0.insert(key, part)),
            true => ledger.free([part]),
        }
    }

    pub(super) fn into_held(self) -> impl Iterator<Item = Held> {
        self.0.into_values()
    }
}

/// The gradients of one layer.
pub(super) struct LayerGradientLedger<'a> {
    pub(super) layer: usize,
    pub(super) gradients: &'a mut Gradients,
}

impl LayerGradientLedger<'_> {
    fn key(&self, module: usize, tensor: ModuleTensor) -> ParameterKey {
        ParameterKey {
            layer: self.layer,
            module,
            tensor,
        }
    }

    /// Whether there is such a gradient already.
    pub(super) fn has(&self, module: usize, tensor: ModuleTensor) -> bool {
        self.gradients.has(self.key(module, tensor))
    }

    pub(super) fn add(
        &mut self,
        ledger: &mut Ledger,
        module: usize,
        tensor: ModuleTensor,
        bytes: usize,
    ) {
        let key = self.key(module, tensor);
        self.gradients.add(ledger, key, bytes);
    }
}
