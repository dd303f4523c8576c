//! How much of the processor a thread gets beside the other threads.

/// How a thread stands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// It gets the smallest share of a processor that others want, too.
    Low,
    /// It gets what no other thread wants.
    Idle,
}

/// Lets the calling thread stand back behind all threads of usual priority. A system that refuses is told of in the log, and
/// systems other than Linux know no priorities of threads here.
#[cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "system calls without a safe form")
)]
pub fn stand_back(how: Background) {
    #[cfg(target_os = "linux")]
    {
        let policy = match how {
            Background::Low => libc::SCHED_BATCH,
            Background::Idle => libc::SCHED_IDLE,
        };
        // A C library may lack the function, as musl's does: the system itself has it.
        let parameter = [0 as libc::c_int];
        // SAFETY: 0 is the calling thread; the parameter is a struct of one int, which the system only reads.
        let refused =
            unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, parameter.as_ptr()) };
        if refused != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, ?how, "the system refused a scheduling policy");
        }
        // SAFETY: 0 is the calling thread; there is no other requirement.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST) } != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(%error, "the system refused to lower the priority of a thread");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = how;
}

/// The niceness of whoever yields to everybody.
#[cfg(target_os = "linux")]
const LEAST: libc::c_int = 19;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{Background, stand_back};

    /// Niceness and policy of the calling thread, by the system.
    fn standing() -> (i64, i64) {
        let text = std::fs::read_to_string("/proc/thread-self/stat").expect("of this thread");
        let fields = text.rsplit(')').next().expect("fields").split_whitespace();
        let fields: Vec<i64> = fields
            .skip(1)
            .map(|field| field.parse().unwrap_or(-1))
            .collect();
        // Fields 19 and 41 of proc_pid_stat(5); the first two and the state are left out.
        (fields[15], fields[37])
    }

    #[test]
    fn only_the_calling_thread_stands_back() {
        let before = standing();
        for (how, policy) in [(Background::Low, 3), (Background::Idle, 5)] {
            let thread = std::thread::spawn(move || {
                stand_back(how);
                standing()
            });
            assert_eq!(thread.join().expect("no panic"), (19, policy));
        }
        assert_eq!(standing(), before);
    }
}
