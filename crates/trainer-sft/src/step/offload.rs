//! Inputs of layers that wait in the host's memory between forward and backward.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use burn::tensor::{Device, Tensor, TensorData};

/// Copies tensors to the host, in their order.
///
/// A tensor is read on first access, which waits for the device. So a thread of its own reads it, while the next layer is launched.
/// It takes a tensor only when it has read the one before. So the device holds at most one tensor that is read, and one that waits.
pub(super) struct Offload {
    sender: SyncSender<Tensor<2>>,
    reader: JoinHandle<Vec<TensorData>>,
}

impl Offload {
    /// Waits for tensors.
    pub(super) fn new() -> Self {
        let (sender, receiver) = sync_channel(0);
        Self {
            sender,
            reader: thread::spawn(|| read(receiver)),
        }
    }

    /// Copies `x`, and waits until the tensor before it is on the host.
    pub(super) fn take(&self, x: Tensor<2>) {
        // A reader that is gone has failed, which `finish` tells.
        let _ = self.sender.send(x);
    }

    /// All tensors, when they are on the host.
    pub(super) fn finish(self) -> Vec<TensorData> {
        drop(self.sender);
        // A device that fails ends the run as it does elsewhere.
        self.reader
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    }
}

fn read(tensors: Receiver<Tensor<2>>) -> Vec<TensorData> {
    let read = |tensor: Tensor<2>| {
        let data = tensor.into_data();
        // The bytes are copied when they are looked at.
        let _ = data.as_bytes();
        data
    };
    tensors.into_iter().map(read).collect()
}

/// A tensor that has waited on the host, `[tokens, hidden]`. Nobody waits for the copy but the device.
pub(super) fn bring_back(data: TensorData, device: &Device) -> Tensor<2> {
    let dtype = data.dtype();
    Tensor::from_data(data, (device, dtype))
}
