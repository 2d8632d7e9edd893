//! The pages: everything that they name exists, and the program prints what they
//! quote.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::documents::{Document, root};

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
    let page = Document::read("docs/security.md").text;
    let rows = rows(&page);
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
    let known = ["src/", "tests/", "benches/", "docs/", "deploy/", ".ci/"];
    for page in Document::all() {
        let prose = page.prose();
        let named = code(&prose).filter(|word| known.iter().any(|folder| word.starts_with(folder)));
        // Files of an Android project are called so, too.
        for path in named.filter(|path| !path.starts_with("src/debug/")) {
            assert!(root().join(path).exists(), "{}: {path}", page.path.display());
        }
    }
}

/// What a heading is linked by, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let mut links = 0;
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
            assert!(file.exists(), "{place}");
            if !heading.is_empty() {
                let text = Document::read(file).prose();
                let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.any(|anchor| anchor == heading), "{place}");
            }
            links += 1;
        }
    }
    assert!(links > 40, "{links}");
}

#[test]
fn every_page_names_the_rust_version_that_the_manifest_does() {
    let expected = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or newer");
    let named: Vec<_> = Document::all()
        .iter()
        .flat_map(|page| {
            page.text
                .match_indices("Rust 1.")
                .map(|(at, _)| page.text[at..].to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(named.len() >= 2 && named.iter().all(|text| text.starts_with(expected)), "{expected}");
}

#[test]
fn the_readme_stays_a_front_door() {
    let lines = Document::read("README.md").text.lines().count();
    assert!(lines <= 260, "{lines} lines: what is for one kind of reader belongs into docs/");
}

#[test]
fn the_package_holds_the_licenses_and_every_page_that_its_readme_leads_to() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let expected = fs::read_to_string(root().join("deploy/build-rpm")).unwrap();
    let pages = Document::all().into_iter().map(|page| page.path.to_str().unwrap().to_owned());
    let pages = pages.filter(|page| page != "CONTRIBUTING.md");
    let doc = |page: String| (page.clone(), format!("/usr/share/doc/imagesvc/{page}"));
    let license = |name: &str| (name.to_owned(), format!("/usr/share/licenses/imagesvc/{name}"));
    let licenses = ["LICENSE-MIT", "LICENSE-APACHE"].map(license);
    for (source, installed) in pages.map(doc).chain(licenses) {
        let asset = format!("{{ source = \"{source}\", dest = \"{installed}\", mode = \"644\"");
        assert!(manifest.contains(&asset), "Cargo.toml: {source}");
        assert!(expected.contains(&format!(" {installed}\n")), "deploy/build-rpm: {source}");
    }
}

#[test]
fn every_setting_that_a_page_names_is_one() {
    let settings = fs::read_to_string(root().join(".env.example")).unwrap();
    // What was a setting once may stand in the changelog.
    let pages = Document::all().into_iter().filter(|page| page.path != Path::new("CHANGELOG.md"));
    for page in pages {
        let words = page.text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
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
    let page = Document::read("docs/upgrading.md").text;
    let section = page.split("## Faults at start").nth(1).unwrap();
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
