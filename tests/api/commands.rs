//! Runs the commands of all Markdown pages. Compares the answers to the README's calls with those that the
//! README shows.
//!
//! Commands are in blocks that are fenced as `bash`. If the opening fence also contains
//! `not run here: ` and a reason, only the syntax of the block is checked.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    CHELSEA, ServiceProcess,
    documents::{Block, Document, root},
    is_missing,
};

/// The languages of blocks that are not for a shell.
const OTHER_LANGUAGES: [&str; 9] =
    ["ini", "js", "json", "kotlin", "python", "swift", "text", "xml", "yaml"];

/// The page whose Python programs `.ci/vectors` runs, except those that are marked as not run because
/// they need a server.
const DATABASES_PAGE: &str = "docs/databases.md";

/// The page whose Python program `.ci/clients` runs.
const README: &str = "README.md";

/// A script in place of Cargo. For `cargo run`, it runs the program that was built for the tests;
/// Cargo would build another one. The program gets the arguments after `--`. For any other command
/// of Cargo, the script fails.
const FAKE_CARGO: &str = "#!/bin/sh
[ \"$1\" = run ] || exit 64
while [ \"$#\" -gt 0 ] && [ \"$1\" != -- ]; do shift; done
[ \"$#\" -eq 0 ] || shift
exec \"$PROGRAM\" \"$@\"
";

/// What the commands need: a folder like the repository's root, and a running sandbox.
struct Environment {
    folder: TempDir,
    sandbox: ServiceProcess,
    /// The value of the variable `PATH`. Its first folder contains [`FAKE_CARGO`].
    path: String,
}

impl Environment {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let in_folder = |name: &str| folder.path().join(name);
        symlink(root().join("tests"), in_folder("tests")).unwrap();
        // The README's commands send `image.png`. A small picture is sufficient.
        let thumbnail = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(80, 80);
        thumbnail.save(in_folder("image.png")).unwrap();
        // Makes curl fail if the service answers with an error.
        std::fs::write(in_folder(".curlrc"), "fail-with-body\n").unwrap();
        std::fs::create_dir(in_folder("bin")).unwrap();
        std::fs::write(in_folder("bin/cargo"), FAKE_CARGO).unwrap();
        std::fs::set_permissions(in_folder("bin/cargo"), PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", in_folder("bin").display(), std::env::var("PATH").unwrap());
        let sandbox = ServiceProcess::start(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
        Self { folder, sandbox, path }
    }

    /// Runs a block of commands in a shell, and returns its standard output.
    fn run(&self, block: &Block) -> String {
        let Block { place, text, .. } = block;
        assert!(!text.contains("sudo "), "{place}: a test must not change the machine");
        // The folder in which `imagesvc embed` caches vectors.
        let cache = self.folder.path().join(".cache");
        let variables = [
            ("PATH", self.path.as_str()),
            ("PROGRAM", ServiceProcess::PROGRAM),
            ("XDG_CACHE_HOME", cache.to_str().unwrap()),
        ];
        // Only a command that starts a service ends like this.
        if text.trim_end().ends_with("--sandbox") {
            // The service needs a folder of its own, and is stopped as soon as it listens.
            let folder = tempfile::tempdir().unwrap();
            ServiceProcess::start_in_shell(text.trim_end(), folder.path(), &variables);
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
        let printed = String::from_utf8(shell.stdout).unwrap();
        let errors = String::from_utf8_lossy(&shell.stderr);
        assert!(shell.status.success(), "{place}: {}\n{text}{printed}{errors}", shell.status);
        printed
    }
}

/// The blocks of commands on a page.
fn command_blocks(page: &Document) -> impl Iterator<Item = Block> {
    page.blocks().into_iter().filter(|block| block.language == "bash")
}

#[test]
fn every_fenced_block_keeps_the_rules_for_its_language() {
    for page in Document::all() {
        for Block { place, language, not_run, text } in page.blocks() {
            let is_known = language == "bash" || OTHER_LANGUAGES.contains(&language.as_str());
            assert!(is_known, "{place}: commands must be fenced as bash, not as {language:?}");
            let is_database_program =
                language == "python" && page.path == Path::new(DATABASES_PAGE);
            let may_be_marked_not_run = language == "bash" || is_database_program;
            assert!(
                not_run.is_none() || may_be_marked_not_run,
                "{place}: only commands and programs of {DATABASES_PAGE} may be marked as not run"
            );
            if language == "python" {
                let ci_runs_page = is_database_program || page.path == Path::new(README);
                assert!(
                    ci_runs_page,
                    "{place}: CI must run each program, but runs none of this page"
                );
            }
            if language == "json" {
                let parsed = serde_json::from_str::<Value>(&text);
                assert!(parsed.is_ok(), "{place}: {parsed:?}");
            }
        }
    }
}

#[test]
fn ci_runs_the_programs_on_docs_databases_md() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let runner = read("tests/vectors/recipes.py");
    assert!(read(".ci/run").lines().any(|line| line == ".ci/vectors"));
    assert!(read(".ci/vectors").contains("python tests/vectors/recipes.py "));
    assert!(runner.contains(&format!("PAGE = \"{DATABASES_PAGE}\"\n")));
    let blocks = Document::read(DATABASES_PAGE).blocks();
    let programs: Vec<_> = blocks.iter().filter(|block| block.language == "python").collect();
    let run = programs.iter().filter(|program| program.not_run.is_none()).count();
    // When the runner ends, it compares what it did with these counts. They must be those of the page.
    let counts = format!("{{\"run\": {run}, \"not run\": {}}}", programs.len() - run);
    assert!(runner.contains(&counts), "tests/vectors/recipes.py should expect {counts}");
}

#[test]
fn every_command_on_a_markdown_page_works_unless_it_is_marked_as_not_run() {
    if is_missing("curl") {
        return;
    }
    let environment = Environment::new();
    let mut run_count = 0;
    for block in Document::all().iter().flat_map(command_blocks) {
        if block.not_run.is_some() {
            assert_valid_syntax(&block);
        } else {
            environment.run(&block);
            run_count += 1;
        }
    }
    // If the test found few blocks, it would check little.
    assert!(run_count >= 8, "at least 8 blocks should be run, not {run_count}");
}

/// Asserts that a shell can parse a block. Runs nothing.
fn assert_valid_syntax(block: &Block) {
    let parsed = Command::new("bash").args(["-n", "-c", &block.text]).output().unwrap();
    let errors = String::from_utf8_lossy(&parsed.stderr);
    assert!(parsed.status.success() && errors.is_empty(), "{}: {errors}", block.place);
}

#[test]
fn the_calls_in_the_readme_return_the_answers_that_the_readme_shows() {
    if is_missing("curl") {
        return;
    }
    let environment = Environment::new();
    let readme = Document::read(README);
    let shown_lines =
        readme.text.lines().filter(|line| line.starts_with("{\"status\":\"success\""));
    // The README shortens each vector to its first numbers and `,…`.
    let shown_answers: Vec<Value> =
        shown_lines.map(|line| serde_json::from_str(&line.replace(",…", "")).unwrap()).collect();
    assert_eq!(shown_answers.len(), 2, "the README should show the answers to its first two calls");
    let is_call =
        |block: &Block| block.not_run.is_none() && block.text.contains("/vectorize-image");
    let calls: Vec<_> = command_blocks(&readme).filter(is_call).collect();
    assert_eq!(calls.len(), 4, "the README should have 4 calls that are run, 2 with Base64");
    for (index, call) in calls.iter().enumerate() {
        let answer: Value = serde_json::from_str(&environment.run(call)).unwrap();
        assert_eq!(answer["status"], "success", "{}", call.place);
        let vector = answer["vector"].as_array().unwrap();
        assert_eq!(vector.len(), 1536);
        assert!(vector.iter().all(|number| number.as_f64().is_some_and(f64::is_finite)));
        if let Some(shown) = shown_answers.get(index) {
            assert_same_answer(shown, &answer);
        }
    }
}

/// Asserts that an answer in the README equals the service's answer, except for the fields that
/// differ from run to run.
fn assert_same_answer(shown: &Value, answer: &Value) {
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
    let numbers = |json: &Value| {
        let vector = json["vector"].as_array().unwrap();
        vector.iter().map(|number| number.as_f64().unwrap()).collect::<Vec<_>>()
    };
    // The README shows only the first numbers, so only these are compared.
    for (expected, actual) in numbers(shown).into_iter().zip(numbers(answer)) {
        // The sandbox computes square roots, whose last digits differ from machine to machine.
        assert!((expected - actual).abs() < 1e-5, "the number should be {expected}, not {actual}");
    }
}
