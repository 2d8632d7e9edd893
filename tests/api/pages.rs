//! The pages for operators: everything that they name exists, and the program prints what they
//! quote.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SECURITY: &str = include_str!("../../docs/security.md");
const UPGRADING: &str = include_str!("../../docs/upgrading.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The texts between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of all rows of all tables, without the tables' heads.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().zip(page.lines().skip(1).chain([""]));
    let rows = lines.filter(|(row, next)| row.starts_with('|') && !next.starts_with("|---"));
    let cells = rows.map(|(row, _)| row.trim_matches('|').split('|').map(str::trim).collect());
    cells.filter(|cells: &Vec<&str>| !cells[0].starts_with("---")).collect()
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            _ if path.is_dir() => sources(&path, files),
            Some(extension) if extension == "rs" => files.push(path),
            _ => {}
        }
    }
}

/// The names of all test functions.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root().join(folder), &mut files);
    }
    let texts = files.iter().map(|path| fs::read_to_string(path).unwrap());
    let names_of = |text: String| {
        let mut names = Vec::new();
        let mut is_marked = false;
        for line in text.lines().map(str::trim) {
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_marked = true;
            } else if let Some(function) = function {
                let name = function.split(['(', '<']).next().unwrap().to_owned();
                names.extend(std::mem::take(&mut is_marked).then_some(name));
            }
        }
        names
    };
    texts.flat_map(names_of).collect()
}

#[test]
fn every_guard_on_the_security_page_has_its_code_and_its_test() {
    let tests = tests();
    let rows = rows(SECURITY);
    assert!(rows.len() > 40, "{}", rows.len());
    for row in rows {
        let [threat, guard, proofs] = row[..] else { panic!("{row:?}") };
        assert!(code(guard).any(|word| word.starts_with("src/") || word.starts_with("deploy/")));
        assert!(code(proofs).next().is_some(), "no test: {threat}");
        for proof in code(proofs) {
            assert!(
                tests.contains(proof) || proof.starts_with(".ci/"),
                "no test {proof}: {threat}"
            );
        }
    }
}

#[test]
fn every_file_that_a_page_names_is_there() {
    for page in [SECURITY, UPGRADING] {
        let known = ["src/", "tests/", "deploy/", ".ci/"];
        let named = code(page).filter(|word| known.iter().any(|folder| word.starts_with(folder)));
        let links = page.split("](../").skip(1).map(|rest| rest.split([')', '#']).next().unwrap());
        for path in named.chain(links) {
            assert!(root().join(path).exists(), "{path}");
        }
    }
}

#[test]
fn every_setting_that_a_page_names_is_one() {
    let settings = include_str!("../../.env.example");
    for page in [SECURITY, UPGRADING] {
        let words = page.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
        let named = words.filter(|word| {
            ["IMAGESVC_", "NVIDIA_"]
                .iter()
                .any(|prefix| word.len() > prefix.len() && word.starts_with(prefix))
        });
        for name in named {
            assert!(settings.contains(&format!("\n#{name}=")), "{name}");
        }
    }
}

#[test]
fn the_program_says_what_the_page_on_upgrading_quotes() {
    let key = ("NVIDIA_API_KEY", "nvapi-1");
    let faults = |dotenv: &str, settings: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".env"), dotenv).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_imagesvc"));
        program.env_clear().env(key.0, key.1).envs(settings.iter().copied());
        let output = program.current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{dotenv} {settings:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said: String = [
        faults("IMAGESVC_LOG=pa$word", &[]),
        faults("IMAGESVC_LOG=\"a\\\"b\"", &[]),
        faults("IMAGESVC_API_KEYS=\"a\nb\"", &[]),
        faults("IMAGESVC_LOG='in'fo", &[]),
        faults("", &[("IMAGESVC_API_KEYS", "p@ss!")]),
        faults("", &[("IMAGESVC_API_KEYS", "changeme")]),
        faults("", &[("NVIDIA_API_KEY", "\"nvapi-1\"")]),
        faults("", &[("NVIDIA_API_KEY", "your_actual_api_key_here")]),
        faults("IMAGESVC_API_KEYS=", &[]),
        faults("", &[("IMAGESVC_MAX_DECODE_BYTES", "32MiB")]),
        faults("", &[("IMAGESVC_DOWNLOADS_MAX_BYTES", "0")]),
    ]
    .concat();
    let section = UPGRADING.split("## Faults at start").nth(1).unwrap();
    let rows = rows(section.split("\n## ").next().unwrap());
    assert_eq!(rows.len(), 11);
    for row in rows {
        let quoted = row[1].trim_matches('`');
        assert!(said.contains(quoted), "{quoted}\n{said}");
    }
    for guard in ["API_KEYS", "API_KEYS_FILE", "RATE_LIMIT_PER_MINUTE", "FETCH_HOSTS"]
        .map(|name| format!("IMAGESVC_{name}"))
    {
        assert!(faults("", &[(&guard, "")]).contains(&format!("{guard} is set but empty")));
    }
}
