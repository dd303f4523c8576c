//! How adapters come and go while the engine runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use lora_4bit::peft::LoraAdapter;
use tokio::sync::oneshot;

use super::adapter_folder::read_adapter;
use super::adapters::NewAdapter;
use super::error::AdapterError;
use super::handle::EngineHandle;
use super::receiver::{EngineCommand, OnTaken};
use super::worker::Worker;

impl EngineHandle {
    /// Loads the PEFT folder at `path` under `name`.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub async fn load_adapter(&self, name: &str, path: &Path) -> Result<(), AdapterError> {
        self.load(name, path, OnTaken::Refuse).await
    }

    /// The same in place of an adapter `name`, if there is one; sequences that use that one finish with it.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub async fn replace_adapter(&self, name: &str, path: &Path) -> Result<(), AdapterError> {
        self.load(name, path, OnTaken::Replace).await
    }

    /// [`Self::replace_adapter`] for a thread that may block.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub(crate) fn replace_adapter_blocking(
        &self,
        name: &str,
        path: &Path,
    ) -> Result<(), AdapterError> {
        let answer = self.begin_load(name, path, OnTaken::Replace)?;
        answer.blocking_recv().unwrap_or(Err(AdapterError::Stopped))
    }

    async fn load(&self, name: &str, path: &Path, on_taken: OnTaken) -> Result<(), AdapterError> {
        let answer = self.begin_load(name, path, on_taken)?;
        answer.await.unwrap_or(Err(AdapterError::Stopped))
    }

    fn begin_load(
        &self,
        name: &str,
        path: &Path,
        on_taken: OnTaken,
    ) -> Result<oneshot::Receiver<Result<(), AdapterError>>, AdapterError> {
        // The engine looks once more; nothing is read for a name that is taken already.
        let is_taken = || self.adapters().iter().any(|adapter| adapter.name == name);
        if on_taken == OnTaken::Refuse && is_taken() {
            return Err(AdapterError::AlreadyLoaded {
                name: name.to_owned(),
            });
        }
        let (reply, answer) = oneshot::channel();
        let (name, path) = (name.to_owned(), path.to_owned());
        let (commands, shared) = (self.commands.clone(), Arc::clone(&self.shared));
        let read_and_send = move || {
            let turn = shared.reading_adapter.lock();
            let files = Box::new(read_adapter(&path));
            drop(turn);
            // An engine that has ended drops the answer's sender with the command.
            let _ = commands.send(EngineCommand::LoadAdapter {
                name,
                path,
                files,
                on_taken,
                reply,
            });
        };
        let thread = thread::Builder::new().name("adapter".to_owned());
        let spawned = thread.spawn(read_and_send);
        spawned.map_err(|_| AdapterError::Stopped).map(|_| answer)
    }

    /// Lets no further sequence use the adapter `name`; those that do finish.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`] if none is loaded under this name.
    pub async fn unload_adapter(&self, name: &str) -> Result<(), AdapterError> {
        let (reply, answer) = oneshot::channel();
        let command = EngineCommand::UnloadAdapter {
            name: name.to_owned(),
            reply,
        };
        self.commands
            .send(command)
            .map_err(|_| AdapterError::Stopped)?;
        answer.await.unwrap_or(Err(AdapterError::Stopped))
    }
}

impl Worker {
    /// Puts an adapter on the model.
    ///
    /// # Errors
    /// [`AdapterError`], with nothing changed.
    pub(super) fn load_adapter(
        &mut self,
        name: String,
        path: PathBuf,
        files: Result<LoraAdapter, AdapterError>,
        on_taken: OnTaken,
    ) -> Result<(), AdapterError> {
        self.adapters.check_name(&name, on_taken)?;
        let new = NewAdapter {
            name,
            path,
            matrices: files?,
        };
        self.change_adapters(|adapters, model| adapters.load(model, new))?;
        self.release_idle_adapters();
        self.receiver.set_adapters(self.adapters.infos());
        Ok(())
    }

    /// Lets no further request name an adapter. It is taken off the model when the last sequence that uses it has ended.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub(super) fn unload_adapter(&mut self, name: &str) -> Result<(), AdapterError> {
        self.adapters.unload(name)?;
        self.receiver.set_adapters(self.adapters.infos());
        self.release_idle_adapters();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::engine::{EngineLimits, channel};

    /// A load keeps the engine waiting for no disk. (An adapter that has lost its slot is read again by the engine.)
    #[test]
    fn the_files_are_read_before_the_engine_knows_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no");
        let broken = dir.path().join("broken");
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join("adapter_config.json"), "{").unwrap();
        let (handle, receiver) = channel(EngineLimits {
            max_model_len: 8,
            vocab_size: 8,
            max_num_queued_reqs: 1,
            pooling: None,
        });
        for path in [missing, broken] {
            let _answer = handle.begin_load("a", &path, OnTaken::Refuse).unwrap();
            let Some(EngineCommand::LoadAdapter { files, .. }) = receiver.recv() else {
                panic!("expected an adapter");
            };
            let error = files.unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        // The caller of an engine that has ended is told.
        let answer = handle.begin_load("a", dir.path(), OnTaken::Refuse).unwrap();
        drop(receiver);
        let answer = answer.blocking_recv().unwrap_or(Err(AdapterError::Stopped));
        assert!(answer.is_err());
    }
}
