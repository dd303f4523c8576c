//! What the device says when it fails to compute a step.

use model_qwen::{catch_device_failure, device_causes};

/// Failed steps in a row after which the engine gives up: the device needs a new process then.
pub(super) const MAX_FAILURES: usize = 3;

/// The result of `step`, or what the device said: Burn's operations panic where a kernel or an allocation has failed, and reads
/// of this project's own have an error.
pub(super) fn catch<T>(step: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What a step leaves half done is replaced in `Worker::recover`.
    catch_device_failure(step)?.map_err(|report| device_causes(&report))
}
