//! Commands to the engine thread, and its sleep while there are none.

use std::sync::mpsc::TryRecvError;

use model_qwen::sys::wait_on_device;

use super::receiver::EngineCommand;
use super::request_metrics::Ended;
use super::worker::{DeviceUse, Worker};

impl Worker {
    /// Takes the commands that wait; sleeps for one if nothing else is to be done. `false` at the end.
    pub(super) fn receive(&mut self) -> bool {
        let mut is_new = false;
        if !self.scheduler.has_work() {
            if self.shutting_down {
                return false;
            }
            match self.sleep() {
                Some(command) => {
                    is_new = true;
                    self.handle(command);
                }
                None => return false,
            }
        }
        let goes_on = loop {
            match self.receiver.try_recv() {
                Ok(command) => {
                    is_new = true;
                    self.handle(command);
                }
                Err(TryRecvError::Empty) => break true,
                // Nobody is left to read an answer.
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        // Once for all of them: the step that follows may take long.
        if is_new {
            self.publish();
        }
        goes_on
    }

    /// Sleeps until a command arrives; `None` once every handle is gone.
    fn sleep(&mut self) -> Option<EngineCommand> {
        let receiver = &mut self.receiver;
        match self.device_use {
            DeviceUse::Sole => wait_on_device(&self.device, move || receiver.recv()),
            DeviceUse::Shared => receiver.recv(),
        }
    }

    /// Does what a command says.
    fn handle(&mut self, command: EngineCommand) {
        match command {
            EngineCommand::Submit(submission) => self.submit(*submission),
            EngineCommand::Abort(id) => self.abort(id, Ended::Abort),
            EngineCommand::Complete(id) => self.abort(id, Ended::Stop),
            EngineCommand::LoadAdapter {
                name,
                path,
                files,
                on_taken,
                reply,
            } => {
                // The caller may have gone away; the adapter is loaded all the same.
                let _ = reply.send(self.load_adapter(name, path, *files, on_taken));
            }
            EngineCommand::UnloadAdapter { name, reply } => {
                let _ = reply.send(self.unload_adapter(&name));
            }
            EngineCommand::Shutdown => self.shutting_down = true,
        }
    }
}
