//! What a device says when it fails in the middle of a computation, as when its memory is full.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lines and characters of what a device says that are of use to anybody.
const MAX_CAUSES: usize = 12;
const MAX_MESSAGE: usize = 800;

/// The result of `work`, or the causes of what made it panic: Burn's operations panic where a kernel or an allocation has failed.
/// What `work` leaves half done is the caller's to replace.
///
/// # Errors
/// The [`device_causes`] of the panic's message.
pub fn catch_device_failure<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(panic.as_ref()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    device_causes(text.unwrap_or("unknown"))
}

/// The causes in a device's report, the first one last: between them it names all that could not be computed for want of
/// something else, and where it could have told a backtrace.
pub fn device_causes(report: &str) -> String {
    let mut in_backtrace = false;
    let lines = report.lines().map(str::trim).filter(|line| {
        // The frames of a backtrace end where the next cause begins.
        in_backtrace = *line == "Backtrace:" || (in_backtrace && *line != "Caused by:");
        !(in_backtrace
            || line.is_empty()
            || line.starts_with("skipped ")
            || line.starts_with('(')
            || ["Caused by:", "Asked at:"].contains(line))
    });
    // Errors of compilers end with the whole source.
    let lines: Vec<&str> = lines.take(MAX_CAUSES).collect();
    lines.join(": ").chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_causes() {
        assert_eq!(catch_device_failure(|| 3), Ok(3));
        let report = "out of memory\n\nCaused by:\n  skipped kernel a\n  an allocation of 8 GiB\nBacktrace:\nNo backtrace";
        let failed = catch_device_failure(|| -> u8 { std::panic::panic_any(report.to_owned()) });
        let expected = "out of memory: an allocation of 8 GiB";
        assert_eq!(failed, Err(expected.to_owned()));
        let failed = catch_device_failure(|| -> u8 { std::panic::panic_any(3) });
        assert_eq!(failed, Err("unknown".to_owned()));
    }

    #[test]
    fn messages_name_the_first_cause() {
        let report = "Error while reading data\nCaused by:\n  Several failures at once\nCaused by:\n  The bytes were never \
            written (failure #3)\n  skipped `ArgmaxRows`: it needed memory 7\n  (70 older skip record(s) were dropped)\n\
            Caused by:\n  can't allocate buffer of size: 43008000\nBacktrace:\nNo backtrace available\n";
        let expected = "Error while reading data: Several failures at once: The bytes were never written (failure #3): \
            can't allocate buffer of size: 43008000";
        assert_eq!(device_causes(report), expected);
    }
}
