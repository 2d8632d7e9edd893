//! Checks the Markdown pages at the repository's root and in `docs/`: the files, links, settings and
//! tests that they mention exist, and the program prints the messages that `docs/upgrading.md` quotes for
//! refused settings.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::documents::{Document, root};

/// The texts between backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of all rows in the tables of a page, without the header rows.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().zip(page.lines().skip(1).chain([""]));
    let row_lines = lines.filter(|(row, next)| row.starts_with('|') && !next.starts_with("|---"));
    let cells = row_lines.map(|(row, _)| row.trim_matches('|').split('|').map(str::trim).collect());
    cells.filter(|cells: &Vec<&str>| !cells[0].starts_with("---")).collect()
}

/// Adds the Rust files below a folder to `files`.
fn add_rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.extension() {
            _ if path.is_dir() => add_rust_files(&path, files),
            Some(extension) if extension == "rs" => files.push(path),
            _ => {}
        }
    }
}

/// The names of all test functions.
fn test_names() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        add_rust_files(&root().join(folder), &mut files);
    }
    let texts = files.iter().map(|path| fs::read_to_string(path).unwrap());
    let names_of = |text: String| {
        let mut names = Vec::new();
        let mut has_test_attribute = false;
        for line in text.lines().map(str::trim) {
            let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                has_test_attribute = true;
            } else if let Some(function) = function {
                let name = function.split(['(', '<']).next().unwrap().to_owned();
                names.extend(std::mem::take(&mut has_test_attribute).then_some(name));
            }
        }
        names
    };
    texts.flat_map(names_of).collect()
}

#[test]
fn every_row_of_docs_security_md_lists_a_file_and_existing_tests() {
    let tests = test_names();
    let page = Document::read("docs/security.md").text;
    let threats = rows(&page);
    // If fewer are found, `rows` does not understand the page.
    assert!(threats.len() > 40, "more than 40 rows should be found, not {}", threats.len());
    for row in threats {
        let [threat, guard, proofs] = row[..] else { panic!("a row must have 3 cells: {row:?}") };
        let mut words = code_spans(guard);
        assert!(
            words.any(|word| word.starts_with("src/") || word.starts_with("deploy/")),
            "a file of src/ or deploy/ should be listed for this threat: {threat}"
        );
        assert!(
            code_spans(proofs).next().is_some(),
            "a test should be listed for this threat: {threat}"
        );
        for proof in code_spans(proofs) {
            // A script of CI may be the proof instead of a test.
            assert!(
                tests.contains(proof) || proof.starts_with(".ci/"),
                "the test {proof} should exist, because it is listed for this threat: {threat}"
            );
        }
    }
}

#[test]
fn every_file_that_a_markdown_page_mentions_exists() {
    let folders = ["src/", "tests/", "benches/", "docs/", "deploy/", ".ci/"];
    for page in Document::all() {
        let prose = page.prose();
        let paths =
            code_spans(&prose).filter(|word| folders.iter().any(|folder| word.starts_with(folder)));
        // `src/debug/` is a folder of an Android project in docs/api.md.
        for path in paths.filter(|path| !path.starts_with("src/debug/")) {
            let page = page.path.display();
            assert!(root().join(path).exists(), "{path} should exist, because {page} mentions it");
        }
    }
}

/// The anchor that GitHub derives from a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn every_link_between_the_markdown_pages_has_an_existing_target() {
    let mut link_count = 0;
    for page in Document::all() {
        let prose = page.prose();
        let targets = prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.contains("://")) {
            let place = format!("{}: {target}", page.path.display());
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => root().join(&page.path),
                path => root().join(page.path.parent().unwrap()).join(path),
            };
            assert!(file.exists(), "this file should exist: {place}");
            if !heading.is_empty() {
                let text = Document::read(file).prose();
                let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(
                    headings.any(|anchor| anchor == heading),
                    "this heading should exist: {place}"
                );
            }
            link_count += 1;
        }
    }
    // If fewer are found, this test does not find all links.
    assert!(link_count > 40, "more than 40 links should be found, not {link_count}");
}

#[test]
fn every_rust_version_on_a_markdown_page_equals_that_of_cargo_toml() {
    let expected = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or newer");
    // For each mention of a Rust version: the rest of its page, from the mention on.
    let mentions: Vec<_> = Document::all()
        .iter()
        .flat_map(|page| {
            page.text
                .match_indices("Rust 1.")
                .map(|(at, _)| page.text[at..].to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(mentions.len() >= 2, "at least 2 mentions should be found, not {}", mentions.len());
    assert!(
        mentions.iter().all(|text| text.starts_with(expected)),
        "every mention of a Rust version should be {expected:?}"
    );
}

#[test]
fn the_readme_has_at_most_260_lines() {
    let lines = Document::read("README.md").text.lines().count();
    assert!(
        lines <= 260,
        "the README has {lines} lines: move what only some readers need to docs/"
    );
}

#[test]
fn the_rpm_contains_the_licenses_and_every_markdown_page_for_users() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let build_script = fs::read_to_string(root().join("deploy/build-rpm")).unwrap();
    let pages = Document::all().into_iter().map(|page| page.path.to_str().unwrap().to_owned());
    let pages = pages.filter(|page| page != "CONTRIBUTING.md");
    let page_paths = |page: String| (page.clone(), format!("/usr/share/doc/imagesvc/{page}"));
    let license_paths =
        |name: &str| (name.to_owned(), format!("/usr/share/licenses/imagesvc/{name}"));
    let licenses = ["LICENSE-MIT", "LICENSE-APACHE"].map(license_paths);
    for (source, installed) in pages.map(page_paths).chain(licenses) {
        let asset = format!("{{ source = \"{source}\", dest = \"{installed}\", mode = \"644\"");
        assert!(manifest.contains(&asset), "Cargo.toml should package {source}");
        assert!(
            build_script.contains(&format!(" {installed}\n")),
            "deploy/build-rpm should expect {source} in the package"
        );
    }
}

#[test]
fn every_setting_that_a_markdown_page_mentions_exists() {
    let settings = fs::read_to_string(root().join(".env.example")).unwrap();
    // The changelog may mention settings of earlier versions.
    let pages = Document::all().into_iter().filter(|page| page.path != Path::new("CHANGELOG.md"));
    for page in pages {
        let words = page.text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
        let mentioned = words.filter(|word| {
            ["IMAGESVC_", "NVIDIA_"]
                .iter()
                .any(|prefix| word.len() > prefix.len() && word.starts_with(prefix))
        });
        // `IMAGESVC_API_KEY` is the key that `imagesvc embed --to` sends, and no setting of the service.
        for name in mentioned.filter(|name| *name != "IMAGESVC_API_KEY") {
            // In `.env.example`, every setting is commented out.
            assert!(
                settings.contains(&format!("\n#{name}=")),
                "the setting {name} should exist, because a page mentions it"
            );
        }
    }
}

#[test]
fn the_program_prints_the_messages_that_docs_upgrading_md_quotes_for_refused_settings() {
    // The key for NVIDIA is valid, but `settings` may replace it.
    let errors_with = |dotenv: &str, settings: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".env"), dotenv).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_imagesvc"));
        command.env_clear().env("NVIDIA_API_KEY", "nvapi-1").envs(settings.iter().copied());
        let output = command.current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{dotenv} {settings:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // What the program prints at a start, once for each row of the page.
    let outputs = [
        errors_with("IMAGESVC_LOG=pa$word", &[]),
        errors_with("IMAGESVC_LOG=\"a\\\"b\"", &[]),
        errors_with("IMAGESVC_API_KEYS=\"a\nb\"", &[]),
        errors_with("IMAGESVC_LOG='in'fo", &[]),
        errors_with("", &[("IMAGESVC_API_KEYS", "p@ss!")]),
        errors_with("", &[("IMAGESVC_API_KEYS", "changeme")]),
        errors_with("", &[("NVIDIA_API_KEY", "\"nvapi-1\"")]),
        errors_with("", &[("NVIDIA_API_KEY", "your_actual_api_key_here")]),
        errors_with("IMAGESVC_API_KEYS=", &[]),
        errors_with("", &[("IMAGESVC_MAX_DECODE_BYTES", "32MiB")]),
        errors_with("", &[("IMAGESVC_DOWNLOADS_MAX_BYTES", "0")]),
    ];
    let printed = outputs.concat();
    let page = Document::read("docs/upgrading.md").text;
    let section = page.split("## Settings that are refused").nth(1).unwrap();
    let messages = rows(section.split("\n## ").next().unwrap());
    assert_eq!(messages.len(), outputs.len(), "each row of the page should have an output above");
    for row in messages {
        // The second cell is the message.
        let quoted = row[1].trim_matches('`');
        assert!(printed.contains(quoted), "the program should print {quoted}\n{printed}");
    }
    // One row is about empty values. It concerns all four settings that protect the service.
    for setting in ["API_KEYS", "API_KEYS_FILE", "RATE_LIMIT_PER_MINUTE", "FETCH_HOSTS"]
        .map(|name| format!("IMAGESVC_{name}"))
    {
        let errors = errors_with("", &[(&setting, "")]);
        assert!(errors.contains(&format!("{setting} is set but empty")), "{errors}");
    }
}
