//! The README's own commands, pasted unchanged, and the answers that it shows.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::support::{CHELSEA, Child, is_missing};

const README: &str = include_str!("../../README.md");

/// The blocks of commands in a section of the README.
fn commands(section: &str) -> Vec<String> {
    let (_, text) = README.split_once(section).unwrap();
    let text = text.split("\n## ").next().unwrap();
    text.split("```bash\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

fn paste(command: &str, folder: &Path, address: &str) -> Value {
    let command = command.replace("localhost:8000", address);
    let shell = Command::new("sh")
        .args(["-c", &command])
        .current_dir(folder)
        .env("no_proxy", "*")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&shell.stderr);
    serde_json::from_slice(&shell.stdout).unwrap_or_else(|_| panic!("{command}\n{said}"))
}

#[test]
fn the_three_calls_work_as_they_are_pasted() {
    if is_missing("curl") {
        return;
    }
    // The folder has the repository's fixtures, and a small picture of the reader's own.
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::os::unix::fs::symlink(root.join("tests"), folder.path().join("tests")).unwrap();
    let small = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(80, 80);
    small.save(folder.path().join("image.png")).unwrap();
    let child = Child::start(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
    let address = child.address.to_string();

    let (elsewhere, here): (Vec<_>, Vec<_>) = commands("## The three calls")
        .into_iter()
        .partition(|command| command.contains("wikimedia"));
    assert_eq!((elsewhere.len(), here.len()), (1, 4));
    let shown: Vec<_> =
        README.lines().filter(|line| line.starts_with("{\"status\":\"success\"")).collect();
    for (number, command) in here.iter().enumerate() {
        let answer = paste(command, folder.path(), &address);
        assert_eq!(answer["status"], "success", "{command}\n{answer}");
        let vector = answer["vector"].as_array().unwrap();
        assert_eq!(vector.len(), 1536);
        assert!(vector.iter().all(|number| number.as_f64().is_some_and(f64::is_finite)));
        let Some(shown) = shown.get(number) else { continue };
        let shown: Value = serde_json::from_str(&shown.replace(",…", "")).unwrap();
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
        for (shown, number) in shown["vector"].as_array().unwrap().iter().zip(vector) {
            // The last digits of a square root differ between machines.
            assert!(
                (shown.as_f64().unwrap() - number.as_f64().unwrap()).abs() < 1e-5,
                "{shown} {number}"
            );
        }
    }
}
