//! Skips tests whose programs are not installed.

use std::process::{Command, Stdio};

/// Returns whether a program is missing. If it is, prints that the test is skipped, or fails in CI.
pub fn is_missing(program: &str) -> bool {
    let is_installed = quiet_command(program).arg("--version").status().is_ok();
    if !is_installed {
        report_skip(program);
    }
    !is_installed
}

/// Returns whether the interpreter `python` lacks any of the `packages`, whose names are separated
/// by commas. If so, prints that the test is skipped, or fails in CI.
pub fn python_lacks(python: &str, packages: &str) -> bool {
    let import = quiet_command(python).args(["-c", &format!("import {packages}")]).status();
    let has_packages = import.is_ok_and(|status| status.success());
    if !has_packages {
        report_skip(&format!("Python with {packages}"));
    }
    !has_packages
}

fn quiet_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn report_skip(missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI, {missing} must be installed");
    println!("skipped: there is no {missing} on this machine");
}
