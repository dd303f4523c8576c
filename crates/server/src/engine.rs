//! The engine: one thread that owns the device, the model and the KV cache.

mod active;
mod adapter_folder;
mod adapter_loads;
mod adapter_slots;
mod adapters;
mod commands;
mod device_failure;
pub mod error;
pub mod handle;
mod launch;
mod launched;
mod memory;
mod model_info;
mod overlap;
mod parked;
mod pooler;
mod pooling;
mod pooling_model;
mod progress;
mod publish;
pub mod receiver;
mod recovery;
pub mod request;
pub mod request_metrics;
mod shared;
mod speculation;
mod start;
mod start_error;
pub mod stats;
mod step_ahead;
mod submit;
mod verify;
mod warm_up;
mod why_pooling;
mod worker;

pub use error::{AdapterError, SequenceError, SubmitError};
pub use handle::{EngineHandle, OutputStream, channel};
pub use memory::{MemoryError, MemoryTable};
pub use model_info::{ModelDetails, ModelInfo};
pub use pooling_model::{PoolingInfo, ScoreTemplate};
pub(crate) use progress::StartPart;
pub use progress::StartProgress;
pub use receiver::{
    EngineCommand, EngineReceiver, OnTaken, OutputSink, QueuePermit, RequestId, Submission,
};
pub use request::{EngineOutput, FinishReason, GenerateRequest, PoolRequest, TokenLogprobs};
pub use request_metrics::{Ended, RequestMetrics};
pub use start::Engine;
pub use start_error::StartError;
pub use stats::{AdapterInfo, EngineLimits, EngineStats, SpeculationStats};
pub use why_pooling::WhyPooling;
pub(crate) use worker::DeviceUse;
