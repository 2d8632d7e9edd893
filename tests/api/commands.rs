//! The commands of all pages, pasted as they stand, and what the README shows of their answers.
//!
//! A block of commands is fenced as `bash`. It is run here, unless its fence goes on with `not run
//! here: ` and the reason.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    CHELSEA, Child,
    documents::{Block, Document, root},
    is_missing,
};

/// What else is fenced: nothing that a reader pastes into a shell.
const NO_COMMANDS: [&str; 9] =
    ["ini", "js", "json", "kotlin", "python", "swift", "text", "xml", "yaml"];

/// In place of `cargo run`, which would build the program anew: the tests' own build.
const CARGO: &str = "#!/bin/sh
[ \"$1\" = run ] || exit 64
while [ \"$#\" -gt 0 ] && [ \"$1\" != -- ]; do shift; done
[ \"$#\" -eq 0 ] || shift
exec \"$PROGRAM\" \"$@\"
";

/// A folder like the repository's root, beside a running sandbox.
struct Desk {
    folder: TempDir,
    sandbox: Child,
    path: String,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink(root().join("tests"), at("tests")).unwrap();
        // A small picture of the reader's.
        let small = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(80, 80);
        small.save(at("image.png")).unwrap();
        // An error of the service is to be an error of curl's, too.
        std::fs::write(at(".curlrc"), "fail-with-body\n").unwrap();
        std::fs::create_dir(at("bin")).unwrap();
        std::fs::write(at("bin/cargo"), CARGO).unwrap();
        std::fs::set_permissions(at("bin/cargo"), PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
        let sandbox = Child::start(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
        Self { folder, sandbox, path }
    }

    /// Pastes a block of commands into a shell, and gives what is printed.
    fn paste(&self, block: &Block) -> String {
        let Block { place, text, .. } = block;
        assert!(!text.contains("sudo "), "{place}: this would change the machine that tests it");
        let variables = [("PATH", self.path.as_str()), ("PROGRAM", Child::PROGRAM)];
        if text.trim_end().ends_with("--sandbox") {
            // It runs until it is stopped. A folder has one owner, so it gets one of its own.
            let folder = tempfile::tempdir().unwrap();
            Child::start_pasted(text.trim_end(), folder.path(), &variables);
            return String::new();
        }
        let text = text.replace("localhost:8000", &self.sandbox.address.to_string());
        let shell = Command::new("bash")
            .args(["-e", "-o", "pipefail", "-c", &text])
            .current_dir(self.folder.path())
            .envs(variables)
            .envs([("CURL_HOME", self.folder.path().to_str().unwrap()), ("no_proxy", "*")])
            .output()
            .unwrap();
        let said = String::from_utf8(shell.stdout).unwrap();
        let errors = String::from_utf8_lossy(&shell.stderr);
        assert!(shell.status.success(), "{place}: {}\n{text}{said}{errors}", shell.status);
        said
    }
}

/// The blocks of commands on a page.
fn commands(page: &Document) -> impl Iterator<Item = Block> {
    page.blocks().into_iter().filter(|block| block.language == "bash")
}

#[test]
fn every_block_is_of_commands_or_is_known_to_hold_none() {
    for page in Document::all() {
        for Block { place, language, not_run, text } in page.blocks() {
            let is_known = language == "bash" || NO_COMMANDS.contains(&language.as_str());
            assert!(is_known, "{place}: commands are fenced as bash, not as {language:?}");
            assert!(not_run.is_none() || language == "bash", "{place}: this holds no commands");
            if language == "json" {
                let parsed = serde_json::from_str::<Value>(&text);
                assert!(parsed.is_ok(), "{place}: {parsed:?}");
            }
        }
    }
}

#[test]
fn every_command_on_a_page_works_as_it_is_pasted_or_is_said_not_to_be_run_here() {
    if is_missing("curl") {
        return;
    }
    let desk = Desk::new();
    let mut pasted = 0;
    for block in Document::all().iter().flat_map(commands) {
        match &block.not_run {
            Some(_) => assert_is_read_by_a_shell(&block),
            None => {
                desk.paste(&block);
                pasted += 1;
            }
        }
    }
    assert!(pasted >= 8, "{pasted}");
}

/// Has a shell read a block and run nothing of it.
fn assert_is_read_by_a_shell(block: &Block) {
    let read = Command::new("bash").args(["-n", "-c", &block.text]).output().unwrap();
    let errors = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success() && errors.is_empty(), "{}: {errors}", block.place);
}

#[test]
fn the_three_calls_answer_as_the_readme_shows() {
    if is_missing("curl") {
        return;
    }
    let desk = Desk::new();
    let readme = Document::read(Path::new("README.md"));
    let shown = readme.text.lines().filter(|line| line.starts_with("{\"status\":\"success\""));
    let mut shown: Vec<Value> =
        shown.map(|line| serde_json::from_str(&line.replace(",…", "")).unwrap()).collect();
    assert_eq!(shown.len(), 2);
    let is_run = |block: &Block| block.not_run.is_none() && block.text.contains("/vectorize-image");
    let calls: Vec<_> = commands(&readme).filter(is_run).collect();
    assert_eq!(calls.len(), 4);
    for call in calls {
        let answer: Value = serde_json::from_str(&desk.paste(&call)).unwrap();
        assert_eq!(answer["status"], "success", "{}", call.place);
        let vector = answer["vector"].as_array().unwrap();
        assert_eq!(vector.len(), 1536);
        assert!(vector.iter().all(|number| number.as_f64().is_some_and(f64::is_finite)));
        if !shown.is_empty() {
            assert_shows(&shown.remove(0), &answer);
        }
    }
}

/// Asserts that a page shows what is answered, but for what differs from run to run.
fn assert_shows(shown: &Value, answer: &Value) {
    for field in [
        "content_type",
        "width",
        "height",
        "sha256",
        "prepared",
        "model",
        "dimensions",
        "original_filename",
    ] {
        assert_eq!(shown.get(field), answer.get(field), "{field}");
    }
    let numbers = |answer: &Value| {
        let vector = answer["vector"].as_array().unwrap();
        vector.iter().map(|number| number.as_f64().unwrap()).collect::<Vec<_>>()
    };
    for (shown, number) in numbers(shown).into_iter().zip(numbers(answer)) {
        // Machines differ in the last digits of a root.
        assert!((shown - number).abs() < 1e-5, "{shown} {number}");
    }
}
