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

/// Returns whether the interpreter `python` cannot run `import {imports}`. `imports` are names separated by
/// commas. `; assert …` may follow them, to require a version. If the interpreter cannot run the import,
/// prints that the test is skipped, or fails in CI.
pub fn python_lacks(python: &str, imports: &str) -> bool {
    /// Whether an interpreter can run an import. The results are kept: an import takes half a second.
    static KNOWN: LazyLock<Mutex<HashMap<(String, String), bool>>> = LazyLock::new(Mutex::default);
    let key = (python.to_owned(), imports.to_owned());
    let can_import = *KNOWN.lock().unwrap().entry(key).or_insert_with(|| {
        let import = quiet_command(python).args(["-c", &format!("import {imports}")]).status();
        import.is_ok_and(|status| status.success())
    });
    if !can_import {
        report_skip(&format!("Python with {imports}"));
    }
    !can_import
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
