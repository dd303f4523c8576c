//! This process, with the names of Prometheus' client libraries.

use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System};

use super::exposition::Exposition;

pub(super) fn write(page: &mut Exposition) {
    let pid = Pid::from_u32(std::process::id());
    let mut system = System::new();
    let kind = ProcessRefreshKind::nothing().with_memory().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
    let Some(process) = system.process(pid) else {
        return;
    };
    for (name, help, value) in [
        (
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes",
            process.virtual_memory(),
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            process.memory(),
        ),
        (
            "process_start_time_seconds",
            "Start of the process in Unix seconds",
            process.start_time(),
        ),
    ] {
        page.gauge(name, help, "", value as f64);
    }
    let seconds = process.accumulated_cpu_time() as f64 / 1000.0;
    page.counter(
        "process_cpu_seconds",
        "User and system CPU time in seconds",
        "",
        seconds,
    );
    if let Some(num) = process.open_files() {
        let help = "Open file descriptors";
        page.gauge("process_open_fds", help, "", num as f64);
    }
    if let Some(num) = Process::open_files_limit(process) {
        let help = "Most open file descriptors";
        page.gauge("process_max_fds", help, "", num as f64);
    }
}
