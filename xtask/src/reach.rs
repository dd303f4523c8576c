//! What this machine can reach, and whether somebody watches it.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// Whether it is a fault that something of a host could not be had: nobody watches, and the host can be reached.
pub(crate) fn must_reach(host: &str) -> bool {
    is_ci() && reaches(host)
}

/// Whether a connection to a host can be opened.
fn reaches(host: &str) -> bool {
    let addresses = (host, 443).to_socket_addrs().into_iter().flatten();
    let patience = Duration::from_secs(10);
    addresses
        .take(3)
        .any(|address| TcpStream::connect_timeout(&address, patience).is_ok())
}

/// Whether this is a machine that nobody watches: what is missing there would be missing for good.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some()
}
