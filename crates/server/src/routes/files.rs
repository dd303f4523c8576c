//! `/v1/files`: what jobs learn from, and what they leave.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use multer::{Field, Multipart};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::finetuning::{QueryFields, page, require_own_page, service};
use crate::blocking::blocking;
use crate::error::ApiError;
use crate::finetuning::{FINE_TUNE, FileObject, FineTuning, Upload};
use crate::route::Route;
use crate::state::AppState;

/// Longest wait for the next bytes of a file.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest value of a field that is no file.
const MAX_TEXT: usize = 1 << 10;
/// Longest name of a file, in characters.
const MAX_NAME: usize = 255;
/// Pieces of a file between client and disk.
const PIECES: usize = 16;
/// Bytes of a piece that is sent.
const PIECE: usize = 64 << 10;
/// The most files of one answer, as at OpenAI.
const MAX_LIMIT: usize = 10_000;

/// The endpoints.
pub(crate) fn routes() -> [Route; 3] {
    [
        Route::other("/v1/files", get(list).post(upload)),
        Route::other("/v1/files/{id}", get(retrieve).delete(delete)),
        Route::other("/v1/files/{id}/content", get(content)),
    ]
}

/// Keeps a file. Its bytes go to the disk as they come.
async fn upload(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<FileObject>, ApiError> {
    let own = service(&state)?.clone();
    require_own_page(&state, request.headers())?;
    let mut form = form(request)?;
    let (mut purpose, mut file) = (None, None);
    while let Some(field) = next(form.next_field()).await? {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "purpose" => purpose = Some(text(field).await?),
            "file" if file.is_none() => file = Some(receive(&own, field).await?),
            "file" => {
                return Err(ApiError::bad_request(
                    "file",
                    "`file`: expected one file, found two.",
                ));
            }
            name if name.starts_with("expires_after") => {
                let message =
                    "`expires_after` is not supported: files stay until they are deleted.";
                return Err(ApiError::bad_request("expires_after", message));
            }
            name => {
                let name: String = name.chars().take(64).collect();
                let message = format!("`{name}`: there is no such field.");
                return Err(ApiError::bad_request(name, message));
            }
        }
    }
    let missing = |name: &str| ApiError::bad_request(name, format!("`{name}`: missing field."));
    match purpose.as_deref() {
        Some(FINE_TUNE) => {}
        None => return Err(missing("purpose")),
        Some(found) => {
            let expected = format!("`{FINE_TUNE}`");
            return Err(ApiError::expected(
                "purpose",
                &expected,
                &format!("{found:?}"),
            ));
        }
    }
    let upload = file.ok_or_else(|| missing("file"))?;
    blocking(move || upload.finish()).await.map(Json)
}

/// The body as a form.
fn form(request: Request) -> Result<Multipart<'static>, ApiError> {
    let given = request.headers().get(header::CONTENT_TYPE);
    let given = given
        .and_then(|value| value.to_str().ok())
        .unwrap_or("none");
    let boundary = multer::parse_boundary(given).map_err(|_| {
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "The `Content-Type` must be multipart/form-data with a boundary, found {given}."
            ),
        )
    })?;
    Ok(Multipart::new(
        request.into_body().into_data_stream(),
        boundary,
    ))
}

/// What a form has next, in time.
async fn next<T>(read: impl Future<Output = multer::Result<T>>) -> Result<T, ApiError> {
    let read = tokio::time::timeout(PATIENCE, read).await.map_err(|_| {
        let message = format!("No more of the request body came for {PATIENCE:?}.");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    })?;
    read.map_err(|error| {
        let message = format!(
            "The request body cannot be read: {}",
            model_qwen::with_causes(&error)
        );
        ApiError::new(StatusCode::BAD_REQUEST, message)
    })
}

async fn text(mut field: Field<'static>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next(field.chunk()).await? {
        if bytes.len() + chunk.len() > MAX_TEXT {
            let name = field.name().unwrap_or_default().to_owned();
            let expected = format!("at most {MAX_TEXT} bytes");
            return Err(ApiError::expected(name, &expected, "more"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Brings a file to the disk, where nothing of it stays if the client leaves before its end.
async fn receive(own: &FineTuning, mut field: Field<'static>) -> Result<Upload, ApiError> {
    let name = field.file_name().unwrap_or("upload");
    let plain = name.chars().filter(|c| !c.is_control()).take(MAX_NAME);
    let name: String = plain.collect();
    let own = own.clone();
    let (sender, mut chunks) = mpsc::channel::<Bytes>(PIECES);
    let written = tokio::spawn(blocking(move || {
        let mut upload = own.upload(&name)?;
        while let Some(chunk) = chunks.blocking_recv() {
            upload.write(&chunk)?;
        }
        Ok(upload)
    }));
    while let Some(chunk) = next(field.chunk()).await? {
        // The other end is gone when the disk has failed.
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    drop(sender);
    written
        .await
        .unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
}

async fn list(State(state): State<AppState>, asked: QueryFields) -> Result<Json<Value>, ApiError> {
    let own = service(&state)?;
    asked.refuse_other_than(&["purpose", "limit", "order", "after"])?;
    let mut files = own.files();
    match asked.get("order") {
        None | Some("desc") => files.reverse(),
        Some("asc") => {}
        Some(other) => {
            return Err(ApiError::expected(
                "order",
                "`asc` or `desc`",
                &format!("`{other}`"),
            ));
        }
    }
    if let Some(purpose) = asked.get("purpose") {
        files.retain(|file| file.purpose == purpose);
    }
    page(files, &asked, (MAX_LIMIT, MAX_LIMIT), |file| &file.id).map(Json)
}

async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<FileObject>, ApiError> {
    let (file, _) = service(&state)?.file(&id)?;
    Ok(Json(file))
}

async fn delete(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let own = service(&state)?.clone();
    require_own_page(&state, &headers)?;
    let deleted = json!({ "id": id, "object": "file", "deleted": true });
    blocking(move || own.delete_file(&id)).await?;
    Ok(Json(deleted))
}

/// The bytes of a file, as they come from the disk.
async fn content(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (file, path) = service(&state)?.file(&id)?;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read_pieces(&path, &sender) {
            // Breaks the answer off. The client may be gone already.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, file.bytes.to_string()),
        // A browser must not take it for a page.
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    Ok((headers, body).into_response())
}

fn read_pieces(
    path: &PathBuf,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let mut piece = vec![0; PIECE];
    loop {
        let num = file.read(&mut piece)?;
        if num == 0
            || sender
                .blocking_send(Ok(Bytes::copy_from_slice(&piece[..num])))
                .is_err()
        {
            return Ok(());
        }
    }
}
