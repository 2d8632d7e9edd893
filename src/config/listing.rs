//! Prints all settings in the formats of the documentation. `cargo run -- settings env` prints
//! `.env.example`, and `cargo run -- settings markdown` prints the tables in `docs/operating.md`.
//! Tests compare both outputs with these files. Only developers need this command, so `--help` does
//! not list it.

use std::{
    io::{self, Write},
    process,
};

use super::settings::{GROUPS, Group};

/// The output format.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    /// The tables in `docs/operating.md`.
    Markdown,
    /// The content of `.env.example`.
    Env,
}

impl Format {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "markdown" => Ok(Self::Markdown),
            "env" => Ok(Self::Env),
            _ => Err("must be markdown or env".into()),
        }
    }
}

/// Prints all settings and exits. The settings are not checked before that, so no key is needed.
pub(super) fn print_and_exit(format: Format) -> ! {
    let text = match format {
        Format::Markdown => markdown(),
        Format::Env => env(),
    };
    let result = io::stdout().write_all(text.as_bytes());
    process::exit(i32::from(result.is_err()))
}

const ENV_HEAD: &str = "\
# Settings of imagesvc. Copy this file to .env, and remove the # before each setting that you change.
# A flag wins over an environment variable, which wins over .env. Write durations as 10s, 2m or a
# number of seconds, and sizes as 20MiB or a number of bytes. An empty value counts as unset, but is
# an error for settings that protect the service. Put a value that contains a $ in single quotes. The
# service does not substitute variables, but other programs that read this file do.
";

fn markdown() -> String {
    let tables = GROUPS.iter().map(|Group { heading, settings }| {
        let rows = settings.iter().map(|setting| {
            let default = setting.default.map(|default| format!("`{default}`"));
            let default = default.unwrap_or_default();
            format!("| `{}` | {default} | {} |\n", setting.name, setting.help)
        });
        let rows: String = rows.collect();
        format!("### {heading}\n\n| Variable | Default | |\n|---|---|---|\n{rows}\n")
    });
    tables.collect()
}

fn env() -> String {
    let groups = GROUPS.iter().map(|Group { heading, settings }| {
        let lines = settings.iter().map(|setting| {
            let (name, default) = (setting.name, setting.default.unwrap_or_default());
            format!("# {}\n#{name}={default}\n", setting.plain_help())
        });
        format!("\n# --- {heading} ---\n\n{}", lines.collect::<String>())
    });
    ENV_HEAD.to_owned() + &groups.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares line by line, so that a failed test shows the first line that differs.
    fn assert_same(file: &str, printed: &str, advice: &str) {
        for (line_in_file, printed_line) in file.lines().zip(printed.lines()) {
            assert_eq!(line_in_file, printed_line, "{advice}");
        }
        assert_eq!(file.lines().count(), printed.lines().count(), "{advice}");
    }

    #[test]
    fn the_tables_in_operating_md_are_the_printed_tables() {
        let page = include_str!("../../docs/operating.md");
        // The heading of every group begins with `Settings `.
        let start =
            page.find("\n### Settings ").expect("docs/operating.md must contain the tables");
        let tables = page[start + 1..].split("\n## ").next().unwrap();
        let advice = "the tables of settings in docs/operating.md are out of date: replace them by the \
                      output of `cargo run -- settings markdown`";
        assert_same(tables, markdown().trim_end(), advice);
    }

    #[test]
    fn the_file_env_example_is_the_printed_text() {
        let advice = ".env.example is out of date: \
                      run `cargo run -- settings env > .env.example`";
        assert_same(include_str!("../../.env.example"), &env(), advice);
    }
}
