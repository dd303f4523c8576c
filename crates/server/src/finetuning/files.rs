//! Uploaded files, each in a folder of its own: what it is, and its content under a name that no client chooses.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::job::bare_id;
use super::{FineTuning, disk, disk_error, new_id, now};
use crate::error::ApiError;

/// How ids begin.
const FILE_PREFIX: &str = "file-";
/// What is known of a file.
const RECORD: &str = "file.json";
/// Endings by which the trainer knows the form of a file.
const ENDINGS: [&str; 4] = ["jsonl", "json", "csv", "tsv"];
/// Endings of packed files, after one of these.
const PACKED: [&str; 2] = ["gz", "zst"];
/// The purpose of what clients upload.
pub(crate) const FINE_TUNE: &str = "fine-tune";
/// The purpose of what jobs write.
const RESULTS: &str = "fine-tune-results";
/// The name of a job's result.
const RESULT_NAME: &str = "step_metrics.csv";

/// A file, as OpenAI's API has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileObject {
    /// Its id.
    pub id: String,
    /// `file`.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// When it was uploaded, in Unix seconds.
    pub created_at: u64,
    /// As the client named it.
    pub filename: String,
    /// `fine-tune`, or `fine-tune-results`.
    pub purpose: String,
    /// `processed`.
    pub status: String,
}

/// The files of a folder.
#[derive(Debug)]
pub(super) struct FileStore {
    dir: PathBuf,
    /// The oldest first.
    files: Vec<FileObject>,
}

impl FileStore {
    /// Reads the records of all files.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in disk::entries(&dir)? {
            match disk::read_json::<FileObject>(&entry.join(RECORD)) {
                Ok(file) if entry.ends_with(&file.id) => files.push(file),
                Ok(_) => tracing::warn!(path = %entry.display(), "not the folder of this file"),
                Err(error) => tracing::warn!(%error, "a file is left out"),
            }
        }
        files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(Self { dir, files })
    }

    pub(super) fn get(&self, id: &str) -> Option<&FileObject> {
        self.files.iter().find(|file| file.id == id)
    }

    /// Where the content of a file is.
    pub(super) fn path(&self, file: &FileObject) -> PathBuf {
        self.dir.join(&file.id).join(content_name(&file.filename))
    }
}

/// The name of a file's content: an ending tells the trainer what it is.
fn content_name(filename: &str) -> String {
    let mut endings = filename.rsplit('.');
    let last = endings.next().unwrap_or_default().to_ascii_lowercase();
    let known = |ending: &str| ENDINGS.into_iter().find(|known| *known == ending);
    match PACKED.into_iter().find(|packed| *packed == last) {
        Some(packed) => {
            let inner = endings.next().unwrap_or_default().to_ascii_lowercase();
            format!("content.{}.{packed}", known(&inner).unwrap_or("jsonl"))
        }
        None => format!("content.{}", known(&last).unwrap_or("jsonl")),
    }
}

/// A file that is being uploaded. Without [`Upload::finish`] nothing of it stays.
#[derive(Debug)]
pub struct Upload {
    store: FineTuning,
    record: FileObject,
    folder: PathBuf,
    content: File,
    finished: bool,
}

impl std::fmt::Debug for FineTuning {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FineTuning")
    }
}

impl Upload {
    /// Appends bytes.
    ///
    /// # Errors
    /// 413 above `--max-file-size`, and what the disk says.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.record.bytes += bytes.len() as u64;
        let limit = self.store.max_file_size();
        if self.record.bytes > limit {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The file is larger than {limit} bytes (--max-file-size)."),
            ));
        }
        self.content
            .write_all(bytes)
            .map_err(|error| disk_error(&error))
    }

    /// Makes it a file.
    ///
    /// # Errors
    /// An empty file, and what the disk says.
    pub fn finish(mut self) -> Result<FileObject, ApiError> {
        if self.record.bytes == 0 {
            return Err(ApiError::bad_request("file", "`file`: the file is empty."));
        }
        self.publish().map_err(|error| disk_error(&error))
    }

    fn publish(&mut self) -> io::Result<FileObject> {
        self.content.sync_all()?;
        disk::write_json(&self.folder.join(RECORD), &self.record)?;
        let mut state = self.store.state();
        fs::rename(&self.folder, state.files.dir.join(&self.record.id))?;
        state.files.files.push(self.record.clone());
        drop(state);
        self.finished = true;
        Ok(self.record.clone())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is removed at the next start.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl FineTuning {
    /// Begins a file.
    ///
    /// # Errors
    /// What the disk says.
    pub fn upload(&self, filename: &str) -> Result<Upload, ApiError> {
        self.begin_file(new_id(FILE_PREFIX), filename, FINE_TUNE)
            .map_err(|error| disk_error(&error))
    }

    fn begin_file(&self, id: String, filename: &str, purpose: &str) -> io::Result<Upload> {
        let folder = self.state().files.dir.join(format!(".part-{id}"));
        fs::create_dir(&folder)?;
        let content = File::create(folder.join(content_name(filename)))?;
        Ok(Upload {
            store: self.clone(),
            record: FileObject {
                id,
                object: "file".to_owned(),
                bytes: 0,
                created_at: now(),
                filename: filename.to_owned(),
                purpose: purpose.to_owned(),
                status: "processed".to_owned(),
            },
            folder,
            content,
            finished: false,
        })
    }

    /// Keeps the one result of a job as a file. A server that was killed between this and the record of the job has kept it already.
    pub(super) fn add_result(&self, job: &str, content: &[u8]) -> io::Result<FileObject> {
        let id = format!("{FILE_PREFIX}{}", bare_id(job));
        if let Some(kept) = self.state().files.get(&id) {
            return Ok(kept.clone());
        }
        let mut upload = self.begin_file(id, RESULT_NAME, RESULTS)?;
        upload.record.bytes = content.len() as u64;
        upload.content.write_all(content)?;
        upload.publish()
    }

    /// All files, the oldest first.
    pub fn files(&self) -> Vec<FileObject> {
        self.state().files.files.clone()
    }

    /// A file, and where its content is.
    ///
    /// # Errors
    /// 404.
    pub fn file(&self, id: &str) -> Result<(FileObject, PathBuf), ApiError> {
        let state = self.state();
        let file = state.files.get(id).ok_or_else(|| no_file("file_id", id))?;
        Ok((file.clone(), state.files.path(file)))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// 404, and 409 where a job still needs it.
    pub fn delete_file(&self, id: &str) -> Result<(), ApiError> {
        let mut state = self.state();
        if state.files.get(id).is_none() {
            return Err(no_file("file_id", id));
        }
        let needs = |entry: &&super::JobEntry| entry.job.needs(id);
        if let Some(entry) = state.jobs.iter().find(needs) {
            let message = format!(
                "The file `{id}` cannot be deleted: the job `{}` needs it. Cancel the job first.",
                entry.job.id
            );
            return Err(ApiError {
                param: Some("file_id".to_owned()),
                ..ApiError::new(StatusCode::CONFLICT, message)
            });
        }
        let folder = state.files.dir.join(id);
        disk::remove(&folder).map_err(|error| disk_error(&error))?;
        state.files.files.retain(|file| file.id != id);
        Ok(())
    }
}

/// 404 for an id that came in a field.
pub(super) fn no_file(param: &str, id: &str) -> ApiError {
    let message = format!("`{param}`: there is no file `{id}`.");
    ApiError {
        status: StatusCode::NOT_FOUND,
        ..ApiError::bad_request(param, message)
    }
}

/// A message about a file on the disk, with the name that its uploader knows.
pub(super) fn with_filename(message: &str, path: &Path, filename: &str) -> String {
    message.replace(&path.display().to_string(), filename)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_no_paths() {
        for (name, content) in [
            ("train.jsonl", "content.jsonl"),
            ("a.JSON", "content.json"),
            ("b.csv", "content.csv"),
            ("b.csv.gz", "content.csv.gz"),
            ("data.zst", "content.jsonl.zst"),
            ("../../etc/passwd", "content.jsonl"),
            ("x.json/../../y", "content.jsonl"),
            ("", "content.jsonl"),
        ] {
            assert_eq!(content_name(name), content, "{name}");
        }
    }
}
