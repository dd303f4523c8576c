//! `/v1/fine_tuning`: jobs, and a look at what one would learn.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::stream;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::blocking::blocking;
use crate::config::Allowed;
use crate::error::ApiError;
use crate::finetuning::{Asks, FineTuning, JobObject, JobRequest, MethodPart, PreviewRequest};
use crate::protocol::body::Body;
use crate::protocol::fields::{self, Endpoint};
use crate::route::Route;
use crate::state::AppState;

/// Entries of an answer unless the request says otherwise, as at OpenAI, and the most.
const LIMITS: (usize, usize) = (20, 1000);

/// The endpoints.
pub(crate) fn routes() -> [Route; 8] {
    [
        Route::other("/v1/fine_tuning/jobs", get(list).post(create)),
        Route::other("/v1/fine_tuning/jobs/{id}", get(retrieve)),
        Route::other("/v1/fine_tuning/jobs/{id}/cancel", post(cancel)),
        Route::other("/v1/fine_tuning/jobs/{id}/pause", post(pause)),
        Route::other("/v1/fine_tuning/jobs/{id}/resume", post(resume)),
        Route::other("/v1/fine_tuning/jobs/{id}/events", get(events)),
        Route::other("/v1/fine_tuning/jobs/{id}/checkpoints", get(checkpoints)),
        Route::other("/v1/fine_tuning/preview", post(preview)),
    ]
}

/// What works on jobs.
///
/// # Errors
/// 404 where the server trains nothing.
pub(super) fn service(state: &AppState) -> Result<&FineTuning, ApiError> {
    state.finetuning().ok_or_else(|| {
        let message = "Fine-tuning is off; start the server with --enable-finetuning (and --enable-lora to serve the results).";
        ApiError::new(StatusCode::NOT_FOUND, message)
    })
}

/// A web page may change something only if it is this server's own, or its origin was allowed by name.
pub(super) fn require_own_page(state: &AppState, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authority = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    let is_own = text("sec-fetch-site") == Some("same-origin")
        || authority.is_some_and(|(_, authority)| text("host") == Some(authority));
    let is_allowed = match &state.api().cors.origins {
        Allowed::Any => false,
        Allowed::Only(origins) => origins.contains(origin),
    };
    match is_own || is_allowed {
        true => Ok(()),
        false => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "A web page may change files and jobs only from an origin that --allowed-origins names.",
        )),
    }
}

/// What the address asks for after its `?`.
#[derive(Debug)]
pub(super) struct QueryFields(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for QueryFields {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        let query =
            query.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.body_text()));
        query.map(|Query(pairs)| Self(pairs))
    }
}

impl QueryFields {
    /// The last value of a parameter that says something.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().rev();
        let value = values.find(|(own, value)| own == name && !value.is_empty());
        value.map(|(_, value)| value.as_str())
    }

    /// Refuses parameters that nobody reads. A name that ends with `[` is that of any key.
    pub(super) fn refuse_other_than(&self, known: &[&str]) -> Result<(), ApiError> {
        let is_known = |name: &str| {
            let mut known = known.iter();
            known.any(|known| name == *known || known.ends_with('[') && name.starts_with(known))
        };
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                let message = format!("`{name}`: there is no such parameter.");
                Err(ApiError::bad_request(name, message))
            }
        }
    }
}

/// The entries after `after`, as a list. `limits` are the usual number of them and the most.
pub(super) fn page<T: Serialize>(
    mut all: Vec<T>,
    asked: &QueryFields,
    limits: (usize, usize),
    id: impl Fn(&T) -> &str,
) -> Result<Value, ApiError> {
    let limit = match asked.get("limit") {
        None => limits.0,
        Some(given) => match given.parse() {
            Ok(limit) if (1..=limits.1).contains(&limit) => limit,
            _ => {
                let expected = format!("a number from 1 to {}", limits.1);
                return Err(ApiError::expected(
                    "limit",
                    &expected,
                    &format!("`{given}`"),
                ));
            }
        },
    };
    if let Some(after) = asked.get("after") {
        let place = all.iter().position(|entry| id(entry) == after);
        let place = place.ok_or_else(|| {
            ApiError::expected(
                "after",
                "the id of an entry of this list",
                &format!("`{after}`"),
            )
        })?;
        all.drain(..=place);
    }
    let has_more = all.len() > limit;
    all.truncate(limit);
    let (first, last) = (all.first().map(&id), all.last().map(&id));
    let ids = json!({ "first_id": first, "last_id": last });
    Ok(json!({
        "object": "list", "data": all, "first_id": ids["first_id"], "last_id": ids["last_id"], "has_more": has_more,
    }))
}

/// The method of a request, whose hyperparameters are all known.
fn method(
    method: Option<&serde_json::Map<String, Value>>,
    older: Option<&serde_json::Map<String, Value>>,
) -> Result<MethodPart, ApiError> {
    let mut part = MethodPart::of(method, older)?;
    let checked = fields::check(Endpoint::FineTuningSettings, &mut part.hyperparameters);
    checked.map_err(|mut error| {
        if let Some(name) = &mut error.param {
            let place = format!("{}.{name}", part.place);
            error.message = error.message.replacen(name.as_str(), &place, 1);
            *name = place;
        }
        error
    })?;
    Ok(part)
}

async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Json<JobObject>, ApiError> {
    let own = service(&state)?.clone();
    require_own_page(&state, &headers)?;
    body.check(Endpoint::FineTuningJob)?;
    let request: JobRequest = body.read()?;
    let part = method(request.method.as_ref(), request.hyperparameters.as_ref())?;
    let (_, adapter) = state.resolve_model(Some(&request.model))?;
    blocking(move || own.create(request, &part, adapter.as_deref()))
        .await
        .map(Json)
}

async fn list(State(state): State<AppState>, asked: QueryFields) -> Result<Json<Value>, ApiError> {
    let own = service(&state)?;
    asked.refuse_other_than(&["after", "limit", "metadata", "metadata["])?;
    let mut jobs = own.jobs();
    for (name, value) in &asked.0 {
        let key = name
            .strip_prefix("metadata[")
            .and_then(|key| key.strip_suffix(']'));
        match key {
            Some(key) => jobs.retain(|job| job.metadata_of(key) == Some(value)),
            // OpenAI's way to ask for jobs without any.
            None if name == "metadata" && value == "null" => jobs.retain(|job| !job.has_metadata()),
            None if name.starts_with("metadata") => {
                let expected = "`metadata=null` or `metadata[KEY]=VALUE`";
                let found = format!("`{name}={value}`");
                return Err(ApiError::expected("metadata", expected, &found));
            }
            None => {}
        }
    }
    page(jobs, &asked, LIMITS, JobObject::id).map(Json)
}

async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    service(&state)?.job(&id).map(Json)
}

/// Does something with a job, and answers with it.
async fn change(
    state: &AppState,
    headers: &HeaderMap,
    work: impl FnOnce(&FineTuning) -> Result<JobObject, ApiError> + Send + 'static,
) -> Result<Json<JobObject>, ApiError> {
    let own = service(state)?.clone();
    require_own_page(state, headers)?;
    blocking(move || work(&own)).await.map(Json)
}

async fn cancel(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    change(&state, &headers, move |own| own.cancel(&id)).await
}

async fn pause(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    change(&state, &headers, move |own| own.pause(&id)).await
}

async fn resume(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<JobObject>, ApiError> {
    change(&state, &headers, move |own| own.resume(&id)).await
}

/// Events of a job: the newest first, or with `stream=true` from the oldest on, until the job has ended.
async fn events(
    State(state): State<AppState>,
    Path(id): Path<String>,
    asked: QueryFields,
) -> Result<Response, ApiError> {
    let own = service(&state)?;
    asked.refuse_other_than(&["after", "limit", "stream"])?;
    let (mut events, _) = own.events(&id, 0)?;
    match asked.get("stream") {
        None | Some("false") => {
            events.reverse();
            let page = page(events, &asked, LIMITS, |event| &event.id)?;
            Ok(Json(page).into_response())
        }
        Some("true") => {
            asked.refuse_other_than(&["after", "stream"])?;
            let from = match asked.get("after") {
                None => 0,
                Some(after) => {
                    let place = events.iter().position(|event| event.id == after);
                    let found = || {
                        ApiError::expected(
                            "after",
                            "the id of an event of this job",
                            &format!("`{after}`"),
                        )
                    };
                    place.ok_or_else(found)? + 1
                }
            };
            Ok(follow(own, id, from))
        }
        Some(other) => Err(ApiError::expected(
            "stream",
            "true or false",
            &format!("`{other}`"),
        )),
    }
}

/// A stream of events that goes on as long as the job.
struct Follower {
    own: FineTuning,
    id: String,
    from: usize,
    changes: watch::Receiver<u64>,
    ready: VecDeque<String>,
    is_over: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            self.changes.borrow_and_update();
            let (events, goes_on) = self.own.events(&self.id, self.from).ok()?;
            self.from += events.len();
            let events = events
                .iter()
                .filter_map(|event| serde_json::to_string(event).ok());
            self.ready.extend(events);
            if !goes_on {
                self.ready.push_back("[DONE]".to_owned());
                self.is_over = true;
            } else if self.ready.is_empty() {
                self.changes.changed().await.ok()?;
            }
        }
    }
}

fn follow(own: &FineTuning, id: String, from: usize) -> Response {
    let follower = Follower {
        own: own.clone(),
        id,
        from,
        changes: own.changes(),
        ready: VecDeque::new(),
        is_over: false,
    };
    let events = stream::unfold(follower, |mut follower| async {
        let data = follower.next().await?;
        Some((
            Ok::<_, Infallible>(sse::Event::default().data(data)),
            follower,
        ))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

async fn checkpoints(
    State(state): State<AppState>,
    Path(id): Path<String>,
    asked: QueryFields,
) -> Result<Json<Value>, ApiError> {
    let own = service(&state)?.clone();
    asked.refuse_other_than(&["after", "limit"])?;
    let checkpoints = blocking(move || own.checkpoints(&id)).await?;
    page(checkpoints, &asked, LIMITS, |checkpoint| &checkpoint.id).map(Json)
}

async fn preview(State(state): State<AppState>, mut body: Body) -> Result<Json<Value>, ApiError> {
    let own = service(&state)?.clone();
    body.check(Endpoint::FineTuningPreview)?;
    let request: PreviewRequest = body.read()?;
    let part = method(request.method.as_ref(), request.hyperparameters.as_ref())?;
    let memory = body.take_memory();
    let asks = Asks::default();
    let has_left = Arc::clone(&asks.0);
    let shown = blocking(move || own.preview(request, &part, &has_left)).await;
    drop(memory);
    shown.map(Json)
}
