//! Programs that may be missing on a machine.

use std::process::{Command, Stdio};

/// Whether a program is missing. If so, it prints that the test is skipped; in CI it fails instead.
pub fn is_missing(program: &str) -> bool {
    let has_it = quiet(program).arg("--version").status().is_ok();
    !has_it && is_skipped_without(program)
}

/// The same for packages of Python, given as `import` takes them.
pub fn python_lacks(python: &str, packages: &str) -> bool {
    let tried = quiet(python).args(["-c", &format!("import {packages}")]).status();
    !tried.is_ok_and(|status| status.success())
        && is_skipped_without(&format!("Python with {packages}"))
}

fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn is_skipped_without(what: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "CI must have {what}");
    println!("skipped: there is no {what} on this machine");
    true
}
