//! `--help`, the man pages, and the completions for bash and zsh.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use imagesvc::config::command_line;

use crate::support::{documents::root, is_missing};

#[path = "../../deploy/manual.rs"]
#[allow(dead_code, reason = "its `main` is not called")]
mod manual;

/// The settings that have no flag.
const SECRETS: [&str; 3] = ["NVIDIA_API_KEY", "IMAGESVC_API_KEYS", "IMAGESVC_VALKEY_URL"];

/// Runs the program without any settings.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagesvc"));
    command.env_clear().args(arguments).output().unwrap()
}

fn help_text(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of all commands, hidden ones included.
fn commands() -> Vec<String> {
    let command_line = command_line();
    let names = command_line.get_subcommands().map(|command| command.get_name().to_owned());
    names.collect()
}

/// The headings of `.env.example`, each with the names of the settings below it.
fn setting_groups() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join(".env.example")).unwrap();
    let groups = text.split("\n# --- ").skip(1).map(|group| {
        let (heading, lines) = group.split_once(" ---\n").unwrap();
        let names = lines.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
        let names = names.map(|(name, _)| name.to_owned());
        // A line that begins with `# ` describes a setting.
        (heading.to_owned(), names.filter(|name| !name.starts_with(' ')).collect())
    });
    groups.collect()
}

/// Writes the man pages and the completions into `new`, a folder that does not exist yet. Returns
/// the temporary folder that contains it.
fn write_manual() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    manual::write(&folder.path().join("new")).unwrap();
    folder
}

/// The text of a man page, without the escapes of roff.
fn page_text(folder: &Path, name: &str) -> String {
    let text = fs::read_to_string(folder.join("new").join(name)).unwrap();
    text.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\-", "-")
}

#[test]
fn the_help_of_every_command_fits_80_columns_when_it_is_not_written_to_a_terminal() {
    let commands = commands();
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands.iter().map(|name| Some(name.as_str())).chain([None]) {
        for flag in ["-h", "--help"] {
            let arguments: Vec<_> = command.into_iter().chain([flag]).collect();
            let help = help_text(&arguments);
            assert!(help.contains("\nUsage: imagesvc"), "{arguments:?}: {help}");
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
            }
        }
    }
}

#[test]
fn the_short_help_lists_the_commands_and_only_the_five_settings_that_come_first() {
    let help = help_text(&["-h"]);
    for line in ["\n  check ", "\n  embed ", "\n  nearest ", "  -h, --help ", "  -V, --version "] {
        assert!(help.contains(line), "{line}: {help}");
    }
    let (_, rest_of_help) = help.split_once("\nSettings to start with:\n").unwrap();
    let starts = [
        "--sandbox[=<BOOL>]",
        "--port <VALUE>",
        "--downloads-dir <VALUE>",
        "NVIDIA_API_KEY",
        "IMAGESVC_API_KEYS",
    ];
    let is_entry =
        |line: &&str| line.starts_with("--") || SECRETS.iter().any(|name| line.starts_with(name));
    let entries: Vec<_> = rest_of_help.lines().map(str::trim_start).filter(is_entry).collect();
    assert_eq!(entries.len(), 5, "{help}");
    for (entry, start) in entries.iter().zip(starts) {
        assert!(entry.starts_with(start), "{start}: {entry}");
    }
    assert_eq!(
        setting_groups()[0].1.len(),
        5,
        "the first group of .env.example should have five settings, too"
    );
}

#[test]
fn the_long_help_lists_every_flag_under_the_heading_of_its_group_and_also_the_secrets() {
    for command in [None, Some("check"), Some("embed"), Some("nearest")] {
        let arguments: Vec<_> = command.into_iter().chain(["--help"]).collect();
        let help = help_text(&arguments);
        let mut rest = help.as_str();
        for (heading, names) in setting_groups() {
            let (_, group) = rest.split_once(&format!("\n{heading}:\n")).unwrap_or_else(|| {
                panic!("{arguments:?}: the heading {heading} should come next: {rest}")
            });
            // Every heading begins with "Settings", so the next one ends the group.
            let (group, _) = group.split_once("\n\nSettings ").unwrap_or((group, ""));
            let group = group.split_whitespace().collect::<Vec<_>>().join(" ");
            for name in &names {
                // A secret has no flag. The end of the help lists it.
                let is_listed = match SECRETS.contains(&name.as_str()) {
                    true => help.contains(&format!("\n  {name} ")),
                    false => group.contains(&format!("[env: {name}]")),
                };
                assert!(is_listed, "{arguments:?}: {name} of {heading} should be listed: {help}");
            }
            rest = &rest[rest.find(&heading).unwrap() + heading.len()..];
        }
    }
}

#[test]
fn the_man_pages_list_every_command_every_argument_and_every_setting() {
    let folder = write_manual();
    let main_page = page_text(folder.path(), "imagesvc.1");
    let mut setting_count = 0;
    for (heading, names) in setting_groups() {
        assert!(main_page.contains(&format!(".SH \"{}\"\n", heading.to_uppercase())), "{heading}");
        for name in names {
            let has_flag = main_page.contains(&format!("[env: {name}]"));
            let is_secret = main_page.contains(&format!(".TP\n{name}\n"));
            assert!(has_flag != is_secret, "{name} should be listed once: {main_page}");
            setting_count += 1;
        }
    }
    assert!(setting_count > 40, "only {setting_count} settings were found");
    for command in command_line().get_subcommands() {
        let name = command.get_name();
        let file = format!("imagesvc-{name}.1");
        assert_eq!(main_page.contains(&format!("\nimagesvc-{name}(1)\n")), !command.is_hide_set());
        if command.is_hide_set() {
            assert!(!folder.path().join("new").join(file).exists(), "{name} is hidden");
            continue;
        }
        let page = page_text(folder.path(), &file);
        for argument in command.get_arguments() {
            let shown = match argument.get_long() {
                Some(flag) => format!("\n--{flag}"),
                None => format!("\n<{}>", argument.get_value_names().unwrap()[0]),
            };
            assert!(page.contains(&shown), "{shown}: {page}");
        }
        assert!(page.contains("see imagesvc(1)"), "the page should refer to the settings: {page}");
        assert!(!page.contains("[env: "), "only the main page should list the settings: {page}");
    }
}

#[test]
fn man_shows_the_pages_without_a_warning() {
    if is_missing("groff") {
        return;
    }
    let folder = write_manual();
    let files = fs::read_dir(folder.path().join("new")).unwrap().map(|entry| entry.unwrap().path());
    let pages: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "1")).collect();
    assert_eq!(pages.len(), 4, "there should be a main page, and a page for each of 3 commands");
    for page in pages {
        let mut groff = Command::new("groff");
        let output = groff.args(["-ww", "-man", "-Tascii"]).arg(&page).output().unwrap();
        let warnings = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", page.display());
    }
}

/// What bash completes for these words, of which the last is incomplete.
fn complete_in_bash(folder: &Path, words: &[&str]) -> BTreeSet<String> {
    let script = r#"
        source "$1" && shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _imagesvc imagesvc "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash"]).arg(folder.join("new/imagesvc.bash")).args(words);
    let output = bash.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_their_flags_and_the_flags_of_settings() {
    let folder = write_manual();
    let completions = |words: &[&str]| complete_in_bash(folder.path(), words);
    assert_eq!(completions(&["imagesvc", "em"]), BTreeSet::from(["embed".into()]));
    assert_eq!(completions(&["imagesvc", "--sand"]), BTreeSet::from(["--sandbox".into()]));
    assert_eq!(completions(&["imagesvc", "check", "--li"]), BTreeSet::from(["--live".into()]));
    let flags = completions(&["imagesvc", "nearest", "--"]);
    assert!(flags.contains("--count") && flags.contains("--port"), "{flags:?}");
    // The command `settings` is hidden.
    let commands = completions(&["imagesvc", ""]);
    assert!(commands.contains("check") && !commands.contains("settings"), "{commands:?}");
}

#[test]
fn zsh_completes_a_flag_of_a_command() {
    if is_missing("zsh") {
        return;
    }
    let folder = write_manual();
    // A pseudo-terminal in which zsh loads the completions, and lists those of a line. The terminal
    // echoes each command. The quotes in `rea""dy` keep the echo from matching `*ready*`.
    let script = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PROMPT= fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D"
        zpty -w shell 'zstyle ":completion:*" list-prompt ""; echo rea""dy'
        zpty -r shell output '*ready*'
        zpty -w -n shell $'imagesvc check --li\t'
        zpty -r shell output '*--live*'
        zpty -d shell
    "#;
    let mut zsh = Command::new("timeout");
    zsh.args(["20", "zsh", "-f", "-c", script, "zsh"]).arg(folder.path().join("new"));
    let output = zsh.env("TERM", "dumb").current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "zsh should complete --li to --live: {output:?}");
}

#[test]
fn the_rpms_manifest_and_build_script_list_every_man_page_and_completion() {
    let folder = write_manual();
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let build_script = fs::read_to_string(root().join("deploy/build-rpm")).unwrap();
    let files = fs::read_dir(folder.path().join("new")).unwrap().map(|entry| entry.unwrap());
    let names: Vec<_> = files.map(|file| file.file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 6, "there should be 4 pages and 2 completions: {names:?}");
    for name in names {
        let installed = match name.as_str() {
            "imagesvc.bash" => "/usr/share/bash-completion/completions/imagesvc".into(),
            "_imagesvc" => "/usr/share/zsh/site-functions/_imagesvc".into(),
            page => format!("/usr/share/man/man1/{page}"),
        };
        // cargo-generate-rpm replaces `target/release` with the folder of its `--profile`.
        let asset = format!("{{ source = \"target/release/manual/{name}\", dest = \"{installed}\"");
        assert!(manifest.contains(&asset), "Cargo.toml should package {name}");
        let is_expected = build_script.contains(&format!(" {installed}\n"));
        assert!(is_expected, "deploy/build-rpm should expect {name} in the package");
    }
}
