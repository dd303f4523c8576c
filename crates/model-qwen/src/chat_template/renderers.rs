//! Processes that render templates for this one.

use std::io::{self, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::TemplateError;
use super::frames::{self, Work};
use super::renderer::{MAX_MEMORY, MAX_TIME, TOO_SLOW};

/// The argument that makes a program a renderer.
pub const RENDER_TEMPLATES: &str = "__render-templates";
/// How long a template waits for its turn. One that is rendered has half a second of the processor.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of work after which a process is not used again: it keeps the memory.
const MAX_KEPT: usize = 1 << 20;

static RENDERERS: OnceLock<Renderers> = OnceLock::new();

/// From now on, templates of strangers ([`super::ChatTemplate::from_stranger`]) are rendered by processes of their own, which end
/// when a template takes too long or needs too much memory. The process is this program, started again with [`RENDER_TEMPLATES`]: `main` has to call
/// [`super::serve_renders`] then, and to do nothing else.
///
/// # Errors
/// When the system does not tell which program this is, or does not start it.
pub fn render_in_processes() -> io::Result<()> {
    // Another program may be at the path by now.
    let itself = PathBuf::from("/proc/self/exe");
    render_in_processes_of(match itself.exists() {
        true => itself,
        false => std::env::current_exe()?,
    })
}

/// [`render_in_processes`] with another program.
///
/// # Errors
/// When the program cannot be started, or is no renderer.
pub fn render_in_processes_of(program: PathBuf) -> io::Result<()> {
    let renderers = Renderers {
        program,
        max_running: thread::available_parallelism().map_or(1, |num| num.get().clamp(1, 4)),
        pool: Mutex::default(),
        freed: Condvar::new(),
    };
    let mut first = renderers.start()?;
    let work = Work {
        source: "{{ x }}".to_owned(),
        fuel: super::fuel::BASE,
        variables: Some(serde_json::Map::from_iter([("x".to_owned(), 1.into())])),
    };
    match first
        .exchange(&work.to_bytes()?)
        .map(|answer| frames::answer_from_bytes(&answer))
    {
        Ok(Some(Ok(text))) if text == "1" => {}
        Ok(_) => return Err(io::Error::other("it renders no templates")),
        Err(error) => return Err(error),
    }
    renderers.lock().idle.push(first);
    // A second call changes nothing.
    let _ = RENDERERS.set(renderers);
    Ok(())
}

/// The processes, if templates are rendered there.
pub(super) fn renderers() -> Option<&'static Renderers> {
    RENDERERS.get()
}

#[derive(Debug)]
pub(super) struct Renderers {
    program: PathBuf,
    max_running: usize,
    pool: Mutex<Pool>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Renderer>,
    num_running: usize,
}

/// The place of a process that works.
struct Turn<'a> {
    renderers: &'a Renderers,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.renderers.lock().num_running -= 1;
        self.renderers.freed.notify_one();
    }
}

impl Renderers {
    /// The text of a template, by a process that has nothing else to do.
    pub(super) fn render(&self, work: &Work) -> Result<String, TemplateError> {
        let failed = |error: io::Error| {
            let program = self.program.display();
            TemplateError::NoProcess(format!("{program}: {error}"))
        };
        let bytes = work.to_bytes().map_err(failed)?;
        let (_turn, idle) = self.wait_for_turn()?;
        let mut renderer = match idle {
            Some(renderer) => renderer,
            None => self.start().map_err(failed)?,
        };
        let answer = match renderer.exchange(&bytes) {
            Ok(answer) => answer,
            // It was ended while it had nothing to do.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                renderer = self.start().map_err(failed)?;
                match renderer.exchange(&bytes) {
                    Ok(answer) => answer,
                    Err(_) => return Err(renderer.why_it_ended()),
                }
            }
            Err(_) => return Err(renderer.why_it_ended()),
        };
        let is_kept = bytes.len() + answer.len() < MAX_KEPT;
        let answer = frames::answer_from_bytes(&answer);
        if is_kept && answer.is_some() {
            // There are at most as many as may run.
            self.lock().idle.push(renderer);
        }
        answer.unwrap_or_else(|| Err(failed(io::Error::other("its answer has another form"))))
    }

    /// A place among those that render.
    fn wait_for_turn(&self) -> Result<(Turn<'_>, Option<Renderer>), TemplateError> {
        let pool = self.lock();
        let full = |pool: &mut Pool| pool.num_running >= self.max_running;
        let waited = self.freed.wait_timeout_while(pool, PATIENCE, full);
        let (mut pool, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            let error = format!("all are busy for {} s", PATIENCE.as_secs());
            return Err(TemplateError::NoProcess(error));
        }
        pool.num_running += 1;
        Ok((Turn { renderers: self }, pool.idle.pop()))
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> io::Result<Renderer> {
        let mut command = Command::new(&self.program);
        command.arg(RENDER_TEMPLATES);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // A process that is out of memory says so there.
        command.stderr(Stdio::null());
        // Control-C ends the server, which may still have to render.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or_else(|| io::Error::other("it has no pipes"))?;
        Ok(Renderer {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }
}

/// A process. Dropping it ends it.
#[derive(Debug)]
struct Renderer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Renderer {
    fn exchange(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        frames::write(&mut self.stdin, bytes)?;
        frames::read(&mut self.stdout)
    }

    /// Why there is no answer.
    fn why_it_ended(&mut self) -> TemplateError {
        match self.child.wait() {
            Ok(status) if status.code() == Some(TOO_SLOW) => TemplateError::TooSlow {
                milliseconds: MAX_TIME.as_millis(),
            },
            Ok(status) if is_out_of_memory(status) => TemplateError::TooLarge {
                mib: MAX_MEMORY >> 20,
            },
            Ok(status) => TemplateError::NoProcess(format!("it ended: {status}")),
            Err(error) => TemplateError::NoProcess(format!("it ended: {error}")),
        }
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process without memory aborts, and one without stack is ended by the system.
#[cfg(unix)]
fn is_out_of_memory(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    matches!(status.signal(), Some(libc::SIGABRT | libc::SIGSEGV))
}

#[cfg(not(unix))]
fn is_out_of_memory(status: ExitStatus) -> bool {
    !status.success()
}
