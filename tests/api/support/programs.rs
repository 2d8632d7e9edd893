//! Programs that may be missing on a machine.

use std::process::{Command, Stdio};

/// Whether a program is missing. If so, it prints that the test is skipped; in CI it fails instead.
pub fn is_missing(program: &str) -> bool {
    let tried =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if tried.is_ok() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "CI must have {program}");
    println!("skipped: there is no {program} on this machine");
    true
}
