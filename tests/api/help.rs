//! The help of the program and of its commands.

use std::{
    fs,
    process::{Command, Output},
};

use imagesvc::config::command_line;

use crate::support::documents::root;

/// The settings that have no flag.
const KEYS: [&str; 2] = ["NVIDIA_API_KEY", "IMAGESVC_API_KEYS"];

/// Runs the program without any settings.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagesvc"));
    command.env_clear().args(arguments).output().unwrap()
}

fn help(arguments: &[&str]) -> String {
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

/// The names of all settings, from `.env.example`, by their headings.
fn settings() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join(".env.example")).unwrap();
    let groups = text.split("\n# --- ").skip(1).map(|group| {
        let (heading, lines) = group.split_once(" ---\n").unwrap();
        let names = lines.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
        let names = names.map(|(name, _)| name.to_owned());
        (heading.to_owned(), names.filter(|name| !name.starts_with(' ')).collect())
    });
    groups.collect()
}

#[test]
fn the_help_of_every_command_fits_80_columns_also_if_it_is_not_written_to_a_terminal() {
    let commands = commands();
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands.iter().map(|name| Some(name.as_str())).chain([None]) {
        for flag in ["-h", "--help"] {
            let arguments: Vec<_> = command.into_iter().chain([flag]).collect();
            let help = help(&arguments);
            assert!(help.contains("\nUsage: imagesvc"), "{arguments:?}: {help}");
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
            }
        }
    }
}

#[test]
fn the_short_help_lists_the_commands_and_only_the_five_settings_that_come_first() {
    let help = help(&["-h"]);
    for line in ["\n  check ", "\n  embed ", "\n  nearest ", "  -h, --help ", "  -V, --version "] {
        assert!(help.contains(line), "{line}: {help}");
    }
    let (_, first_settings) = help.split_once("\nSettings to start with:\n").unwrap();
    let flags = ["--sandbox[=<BOOL>]", "--port <VALUE>", "--downloads-dir <VALUE>"];
    let is_entry =
        |line: &&str| line.starts_with("--") || KEYS.iter().any(|key| line.starts_with(key));
    let entries: Vec<_> = first_settings.lines().map(str::trim_start).filter(is_entry).collect();
    assert_eq!(entries.len(), 5, "{help}");
    for (entry, start) in entries.iter().zip(flags.into_iter().chain(KEYS)) {
        assert!(entry.starts_with(start), "{start}: {entry}");
    }
    assert_eq!(settings()[0].1.len(), 5, "the first group should have the same five settings");
}

#[test]
fn the_long_help_lists_every_setting_under_the_heading_of_its_group() {
    for command in [None, Some("check"), Some("embed"), Some("nearest")] {
        let arguments: Vec<_> = command.into_iter().chain(["--help"]).collect();
        let help = help(&arguments);
        let mut rest = help.as_str();
        for (heading, names) in settings() {
            let (_, group) = rest.split_once(&format!("\n{heading}:\n")).unwrap_or_else(|| {
                panic!("{arguments:?}: the heading {heading} should come next: {rest}")
            });
            let (group, _) = group.split_once("\n\nSettings ").unwrap_or((group, ""));
            let group = group.split_whitespace().collect::<Vec<_>>().join(" ");
            for name in &names {
                // A key has no flag. It is explained at the end.
                let is_listed = match KEYS.contains(&name.as_str()) {
                    true => help.contains(&format!("\n  {name} ")),
                    false => group.contains(&format!("[env: {name}]")),
                };
                assert!(is_listed, "{arguments:?}: {name} should be under {heading}: {group}");
            }
            rest = &rest[rest.find(&heading).unwrap() + heading.len()..];
        }
    }
}
