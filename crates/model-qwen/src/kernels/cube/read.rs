//! Values on their way from the device to the host.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::future::reader::read_sync;
use cubecl::server::{CopyDescriptor, ServerError};

type Bytes = Result<Vec<cubecl::bytes::Bytes>, ServerError>;

/// 32-bit values on their way from the device.
///
/// CUDA and ROCm queue the copy at once. Other devices would copy what is there when somebody waits, so that they are waited
/// for at once.
pub(crate) struct PendingWords(Option<Pin<Box<dyn Future<Output = Bytes> + Send>>>);

impl std::fmt::Debug for PendingWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingWords").finish_non_exhaustive()
    }
}

impl PendingWords {
    pub(super) fn new(values: CubeTensor) -> Self {
        let (shape, strides) = (values.meta.shape().clone(), values.meta.strides().clone());
        let (client, elem_size) = (lasting_client(&values), values.elem_size());
        let queues = queues(&values.device);
        let descriptor = CopyDescriptor::new(values.handle.binding(), shape, strides, elem_size);
        let bytes = client.read_tensor_async(vec![descriptor]);
        Self(Some(match queues {
            true => Box::pin(bytes),
            false => Box::pin(std::future::ready(read_sync(bytes))),
        }))
    }

    /// Waits for them.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub(crate) fn wait(mut self) -> Result<Vec<u32>, String> {
        let Some(bytes) = self.0.take() else {
            unreachable!("taken here or when dropped");
        };
        let bytes = read_sync(bytes).map_err(|error| format!("{error:?}"))?;
        let words = bytes[0].chunks_exact(4);
        Ok(words
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            .collect())
    }
}

/// Whether copies are queued, so that a device can go on while they are waited for.
pub(in super::super) fn queues(device: &CubeDevice) -> bool {
    matches!(device, CubeDevice::Cuda(_) | CubeDevice::Hip(_))
}

/// A client of the tensor's device that is never dropped, as the device isn't: a read borrows it until it ends.
fn lasting_client(tensor: &CubeTensor) -> &'static Client {
    static CLIENTS: Mutex<Vec<(CubeDevice, &'static Client)>> = Mutex::new(Vec::new());
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, client)) = clients.iter().find(|(device, _)| *device == tensor.device) {
        return client;
    }
    let client: &'static Client = Box::leak(Box::new(tensor.client.clone()));
    clients.push((tensor.device.clone(), client));
    client
}

impl Drop for PendingWords {
    /// The device writes to memory of the host until the copy ends.
    fn drop(&mut self) {
        if let Some(bytes) = self.0.take() {
            let _ = read_sync(bytes);
        }
    }
}
