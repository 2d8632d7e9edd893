//! Defines the command line: the subcommands, and a flag for every setting but the secrets.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    listing::Format,
    row::{Kind, Row},
    settings::SETTINGS,
    upstream,
};

/// The subcommand that checks what the service needs.
pub(super) const CHECK: &str = "check";

/// The flag of `check` that makes one paid call.
pub(super) const LIVE: &str = "live";

/// The hidden subcommand that lists all settings.
pub(super) const LIST: &str = "settings";

/// The argument of `settings`: the format of the list.
const FORMAT: &str = "format";

/// What the process should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Serve requests.
    Serve,
    /// Check everything that the service needs.
    Check {
        /// Whether to make one paid call, too.
        live: bool,
    },
}

/// Builds the command line, with a flag for every setting but the secrets.
pub fn command() -> Command {
    let command = Command::new("imagesvc")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(format!(
            "Every flag is also an environment variable, and may be set in a .env file in the \
            working directory. Keys have no flags, only variables: {}.",
            upstream::API_KEY.row.name
        ));
    let check = Command::new(CHECK)
        .about("Checks everything that the service needs, and says how to mend each fault")
        .arg(
            Arg::new(LIVE)
                .long(LIVE)
                .action(ArgAction::SetTrue)
                .help("Also ask NVIDIA for one embedding, which is paid for"),
        );
    let list = Command::new(LIST)
        .hide(true)
        .about("Lists all settings in the format of the documentation")
        .arg(
            Arg::new(FORMAT)
                .required(true)
                .value_parser(Format::parse)
                .help("markdown: the table in docs/operating.md; env: .env.example"),
        );
    command
        .subcommands([check, list])
        .args(SETTINGS.iter().filter(|row| row.kind != Kind::Secret).map(flag))
}

/// The format that the arguments of `settings` ask for.
pub(super) fn format(list: &ArgMatches) -> Format {
    #[allow(clippy::expect_used)]
    *list.get_one(FORMAT).expect("clap requires it")
}

fn flag(row: &'static Row) -> Arg {
    let mut help = format!("{} [env: {}]", row.plain_help(), row.name);
    if let Some(default) = row.default {
        help.push_str(&format!(" [default: {default}]"));
    }
    let arg = Arg::new(row.name).long(row.flag()).help(help).action(ArgAction::Set).global(true);
    match row.kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL"),
        Kind::Value | Kind::Secret => arg.value_name("VALUE"),
    }
}
