//! A wait that lets a device rest.

use burn::tensor::Device;

/// The result of `wait`. On a GPU it is called on the device's own thread: CubeCL gives each GPU a thread that otherwise looks
/// for work some thousand times a second, for as long as the process lives.
///
/// Meanwhile other threads that use the GPU wait, too.
pub fn wait_on_device<R: Send + 'static>(device: &Device, wait: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "gpu")]
    if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
        let mut wait = Some(wait);
        let mut take = || wait.take().map(|wait| wait());
        let waited = device.client().exclusive(&mut take);
        // A device that can't be had has not called it.
        return match waited.ok().flatten().or_else(take) {
            Some(result) => result,
            None => panic!("what was waited for on the device's thread has failed"),
        };
    }
    // Without a GPU there is no thread to stop.
    let _ = device;
    wait()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_waits_where_it_is_asked_to() {
        let here = std::thread::current().id();
        let thread = wait_on_device(&Device::flex(), || std::thread::current().id());
        assert_eq!(thread, here, "a CPU has no such thread");
    }

    #[cfg(feature = "gpu")]
    #[test]
    fn a_gpu_waits_on_its_own_thread_and_works_on() {
        use burn::tensor::Tensor;
        let gpu = crate::kernels::first_gpu();
        let (sender, receiver) = std::sync::mpsc::channel();
        sender.send(7).unwrap();
        let wait = move || (std::thread::current().id(), receiver.recv());
        let (thread, received) = wait_on_device(&gpu, wait);
        assert_eq!(received, Ok(7));
        assert_ne!(thread, std::thread::current().id());
        let sum = Tensor::<1>::ones([64], &gpu).sum().into_scalar::<f32>();
        assert_eq!(sum, 64.0);
    }
}
