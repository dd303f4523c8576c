//! The engine: one thread that owns the device, the model and the KV cache.

mod active;
mod adapters;
#[cfg(feature = "gpu")]
mod ahead;
mod builder;
#[cfg(feature = "gpu")]
mod decode;
pub mod error;
pub mod handle;
mod memory;
pub mod receiver;
mod recovery;
pub mod request;
mod sample;
mod start;
pub mod stats;
mod worker;

pub use builder::EngineBuilder;
pub use error::{AdapterError, SubmitError};
pub use handle::{EngineHandle, OutputStream, channel};
pub use memory::MemoryError;
pub use receiver::{EngineCommand, EngineReceiver, OutputSink, QueuePermit, RequestId, Submission};
pub use request::{EngineOutput, FinishReason, GenerateRequest, TokenLogprobs};
pub use start::{Engine, StartError};
pub use stats::{AdapterInfo, EngineLimits, EngineStats};
