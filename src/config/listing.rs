//! Lists all settings as the documentation has them. `cargo run -- settings env > .env.example`
//! writes that file anew, and `cargo run -- settings markdown` prints the table in
//! `docs/operating.md`; tests compare both. The subcommand is for whoever works on the service, so `--help` does not show it.

use std::{
    io::{self, Write},
    process,
};

use super::settings::SETTINGS;

/// How the settings are listed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// As the table in `docs/operating.md`.
    Markdown,
    /// As `.env.example`.
    Env,
}

impl Form {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "markdown" => Ok(Self::Markdown),
            "env" => Ok(Self::Env),
            _ => Err("must be markdown or env".into()),
        }
    }
}

/// Prints the list and ends the process, as `--help` does: neither needs a key.
pub(super) fn print_and_exit(form: Form) -> ! {
    let text = match form {
        Form::Markdown => markdown(),
        Form::Env => env(),
    };
    let printed = io::stdout().write_all(text.as_bytes());
    process::exit(i32::from(printed.is_err()))
}

const TABLE_HEAD: &str = "| Variable | Default | |\n|---|---|---|\n";

const ENV_HEAD: &str = "\
# Settings of imagesvc. Copy this file to .env and remove the # of what you change.
# Flags win over the environment, which wins over .env. Durations: 10s, 2m or plain seconds;
# sizes: 20MiB or plain bytes; an empty value is an unset one, but for what guards something.
# Nothing is substituted: a value with a $ stands in single quotes.

";

fn markdown() -> String {
    let rows = SETTINGS.iter().map(|row| {
        let default = row.default.map(|default| format!("`{default}`")).unwrap_or_default();
        format!("| `{}` | {default} | {} |\n", row.name, row.help)
    });
    TABLE_HEAD.to_owned() + &rows.collect::<String>()
}

fn env() -> String {
    let rows = SETTINGS.iter().map(|row| {
        format!("# {}\n#{}={}\n", row.plain_help(), row.name, row.default.unwrap_or_default())
    });
    ENV_HEAD.to_owned() + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares line by line, so that a failure shows the first line that differs.
    fn assert_same(held: &str, printed: &str, advice: &str) {
        for (held, printed) in held.lines().zip(printed.lines()) {
            assert_eq!(held, printed, "{advice}");
        }
        assert_eq!(held.lines().count(), printed.lines().count(), "{advice}");
    }

    #[test]
    fn the_page_on_operating_has_the_table_that_is_printed() {
        let page = include_str!("../../docs/operating.md");
        let start = page.find(TABLE_HEAD).expect("the page has a table of settings");
        let table = page[start..].split("\n\n").next().unwrap();
        let advice = "the table of settings in docs/operating.md is out of date: put there what \
                      `cargo run -- settings markdown` prints";
        assert_same(table, &markdown(), advice);
    }

    #[test]
    fn the_environment_example_is_what_is_printed() {
        let advice = ".env.example is out of date: \
                      run `cargo run -- settings env > .env.example`";
        assert_same(include_str!("../../.env.example"), &env(), advice);
    }
}
