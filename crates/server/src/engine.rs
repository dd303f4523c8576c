//! The engine: one thread that owns the device, the model and the KV cache.

mod active;
mod adapter_folder;
mod adapter_loads;
mod adapters;
mod commands;
pub mod error;
pub mod handle;
mod launch;
mod memory;
mod model_info;
mod overlap;
mod parked;
mod pooling;
mod pooling_model;
mod progress;
mod publish;
pub mod receiver;
mod recovery;
pub mod request;
pub mod request_metrics;
mod speculation;
mod start;
pub mod stats;
mod submit;
mod verify;
mod warm_up;
mod worker;

pub use error::{AdapterError, SequenceError, SubmitError};
pub use handle::{EngineHandle, OutputStream, channel};
pub use memory::{MemoryError, MemoryTable};
pub use model_info::{ModelDetails, ModelInfo};
pub use pooling_model::{PoolingInfo, ScoreTemplate, WhyPooling};
pub(crate) use progress::StartPart;
pub use progress::StartProgress;
pub use receiver::{
    EngineCommand, EngineReceiver, OnTaken, OutputSink, QueuePermit, RequestId, Submission,
};
pub use request::{EngineOutput, FinishReason, GenerateRequest, PoolRequest, TokenLogprobs};
pub use request_metrics::{Ended, RequestMetrics};
pub(crate) use start::DeviceUse;
pub use start::{Engine, StartError};
pub use stats::{AdapterInfo, EngineLimits, EngineStats, SpeculationStats};
