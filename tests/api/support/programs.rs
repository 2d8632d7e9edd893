//! Skips tests whose programs are not installed.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
    sync::{LazyLock, Mutex},
};

/// Returns whether a program is missing. If it is, prints that the test is skipped, or fails in CI.
pub fn is_missing(program: &str) -> bool {
    let is_installed = quiet_command(program).arg("--version").status().is_ok();
    if !is_installed {
        report_skip(program);
    }
    !is_installed
}

/// Returns whether the interpreter `python` lacks any of the `packages`. These complete the statement
/// `import …`: names separated by commas, and then perhaps `; assert …` with a version. If a package is
/// missing, prints that the test is skipped, or fails in CI.
pub fn python_lacks(python: &str, packages: &str) -> bool {
    /// Whether this interpreter has these packages. Kept, because an import takes half a second.
    static KNOWN: LazyLock<Mutex<HashMap<(String, String), bool>>> = LazyLock::new(Mutex::default);
    let key = (python.to_owned(), packages.to_owned());
    let has_packages = *KNOWN.lock().unwrap().entry(key).or_insert_with(|| {
        let import = quiet_command(python).args(["-c", &format!("import {packages}")]).status();
        import.is_ok_and(|status| status.success())
    });
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

/// Prints that the test is skipped, or fails in CI.
pub fn report_skip(missing: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "in CI, no test may be skipped: there is no {missing}"
    );
    println!("skipped: there is no {missing} on this machine");
}
