//! Files and fine-tuning jobs.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::operation::{Answer, Operation, of};
use super::requests::request;
use crate::finetuning::{Checkpoint, Event, FileObject, JobObject};
use crate::protocol::fields::Endpoint;

pub(super) fn operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let file = of::<FileObject>(schemas);
    let job = of::<JobObject>(schemas);
    let list = |entry: Value| {
        Answer::Json(json!({
            "type": "object",
            "required": ["object", "data", "has_more"],
            "properties": { "data": { "type": "array", "items": entry } },
        }))
    };
    let operation = |method, path, summary, answer| Operation {
        path,
        method,
        summary,
        request: None,
        answer,
    };
    let asks = |path, summary, request, answer| Operation {
        request: Some(request),
        ..operation("post", path, summary, answer)
    };
    let object = Answer::Json(json!({ "type": "object" }));
    let form = json!({
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": { "type": "string", "contentMediaType": "application/octet-stream" },
            "purpose": { "const": "fine-tune" },
        },
    });
    let jobs = "/v1/fine_tuning/jobs";
    let events = Answer::Stream(json!({ "type": "object", "properties": {
        "data": { "type": "array", "items": of::<Event>(schemas) } } }));
    let checkpoints = list(of::<Checkpoint>(schemas));
    let own = || Answer::Json(job.clone());
    vec![
        asks(
            "/v1/files",
            "Uploads a file",
            form,
            Answer::Json(file.clone()),
        ),
        operation("get", "/v1/files", "Files", list(file.clone())),
        operation("get", "/v1/files/{id}", "A file", Answer::Json(file)),
        operation("delete", "/v1/files/{id}", "Deletes a file", object.clone()),
        operation(
            "delete",
            "/v1/models/{id}",
            "Deletes a fine-tuned model",
            object.clone(),
        ),
        operation(
            "get",
            "/v1/files/{id}/content",
            "The content of a file",
            Answer::Text,
        ),
        asks(
            jobs,
            "Queues a fine-tuning job",
            request(Endpoint::FineTuningJob),
            own(),
        ),
        operation(
            "get",
            jobs,
            "Fine-tuning jobs, the newest first",
            list(job.clone()),
        ),
        operation(
            "get",
            "/v1/fine_tuning/jobs/{id}",
            "A fine-tuning job",
            own(),
        ),
        operation(
            "post",
            "/v1/fine_tuning/jobs/{id}/cancel",
            "Ends a job for good",
            own(),
        ),
        operation(
            "post",
            "/v1/fine_tuning/jobs/{id}/pause",
            "Stops a job, with a checkpoint",
            own(),
        ),
        operation(
            "post",
            "/v1/fine_tuning/jobs/{id}/resume",
            "Lets a paused job go on",
            own(),
        ),
        operation(
            "get",
            "/v1/fine_tuning/jobs/{id}/events",
            "What a job tells",
            events,
        ),
        operation(
            "get",
            "/v1/fine_tuning/jobs/{id}/checkpoints",
            "Checkpoints of a job",
            checkpoints,
        ),
        asks(
            "/v1/fine_tuning/preview",
            "Examples with what a job would learn of them",
            request(Endpoint::FineTuningPreview),
            object,
        ),
    ]
}
