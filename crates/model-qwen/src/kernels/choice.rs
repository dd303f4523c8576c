//! Tokens and logits that a GPU sends to the host.

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::cube::{PendingWords, queues, top_logits_of};
use crate::sampling::TopLogits;

/// Token ids on their way from the device.
#[derive(Debug)]
pub struct PendingIds(PendingWords);

impl PendingIds {
    /// Waits for them.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub fn wait(self) -> Result<Vec<u32>, String> {
        self.0.wait()
    }
}

/// Whether [`device_read_ids`] returns at once, so that the device can go on meanwhile. Tests on a CPU's Vulkan device say so
/// of it, too, by the variable that turns on its other missing features.
pub fn device_queues_reads(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => {
            queues(device) || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
        }
        _ => false,
    }
}

/// Starts to copy token ids of a GPU to the host. What this thread gives the device to do afterwards doesn't delay them.
pub fn device_read_ids(ids: &Tensor<1, Int>) -> PendingIds {
    let ids = ids.clone().into_dispatch();
    PendingIds(<Dispatch as super::DeviceModelOps>::device_read_ids(ids))
}

/// The largest logits of some rows on their way from the device.
#[derive(Debug)]
pub struct PendingTop(PendingWords);

impl PendingTop {
    /// Waits for them.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub fn wait(self) -> Result<Vec<TopLogits>, String> {
        Ok(top_logits_of(&self.0.wait()?))
    }
}

/// Starts to find the largest logits of each row on a GPU, for samplers with these scales
/// ([`Sampler::scale`](crate::Sampler::scale)).
///
/// # Shapes
/// logits `[rows, vocab]`; a scale for each row.
pub fn device_top_logits(logits: Tensor<2>, scales: &[f32]) -> PendingTop {
    let rows = logits.dims()[0];
    assert_eq!(rows, scales.len(), "scales of the rows");
    let data = TensorData::new(scales.to_vec(), [rows]);
    let on_device = Tensor::<1>::from_data(data, (&logits.device(), DType::F32));
    let (logits, on_device) = (logits.into_dispatch(), on_device.into_dispatch());
    PendingTop(<Dispatch as super::DeviceModelOps>::device_top_logits(
        logits, on_device,
    ))
}
