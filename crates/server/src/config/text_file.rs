//! Files that flags name, which may be pipes.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long whoever writes into a pipe may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes: a device gives bytes without end.
const MAX_BYTES: u64 = 16 << 20;

/// The text of a file, or of a pipe that is written and closed within half a minute. `Err` holds the reason.
pub(super) fn read(path: &Path) -> Result<String, String> {
    read_within(path, PATIENCE)
}

/// The text of a file, or of a pipe that is written and closed in time, such as `<(…)` of a shell. `Err` holds the reason.
fn read_within(path: &Path, patience: Duration) -> Result<String, String> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    // Opening waits for a writer, and nothing ends that: the thread stays behind, and the program ends with the error.
    let reading = thread::Builder::new().spawn(move || {
        let mut text = String::new();
        let read = File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
            .map(|_| text);
        let _ = sender.send(read);
    });
    reading.map_err(|error| error.to_string())?;
    match receiver.recv_timeout(patience) {
        Ok(Ok(text)) if text.len() as u64 > MAX_BYTES => {
            Err(format!("expected at most {MAX_BYTES} bytes"))
        }
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "it could not be read to its end in {} seconds; expected a file, or a pipe that is written at once and closed",
            patience.as_secs_f32()
        )),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn pipes_have_some_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = dir.path().join(name);
            let made = Command::new("mkfifo").arg(&path).status();
            assert!(made.unwrap().success());
            path
        };
        let error = read_within(&pipe("silent"), Duration::from_millis(100)).unwrap_err();
        assert!(error.contains("a pipe that is written at once"), "{error}");
        let path = pipe("written");
        let writer = thread::spawn({
            let path = path.clone();
            move || fs::write(path, "sk-a\n").unwrap()
        });
        assert_eq!(
            read_within(&path, Duration::from_secs(60)).unwrap(),
            "sk-a\n"
        );
        writer.join().unwrap();
        let error = read_within(Path::new("/dev/zero"), Duration::from_secs(60)).unwrap_err();
        assert!(error.contains("at most"), "{error}");
        assert!(read_within(dir.path(), Duration::from_secs(60)).is_err());
    }
}
