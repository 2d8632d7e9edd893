//! The command line: what the process is to do, and a flag for every setting that may be one.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    listing::Form,
    row::{Kind, Row},
    settings::SETTINGS,
    upstream,
};

/// The subcommand that looks at what the service needs.
pub(super) const CHECK: &str = "check";

/// Its flag that makes one paid call.
pub(super) const LIVE: &str = "live";

/// The hidden subcommand that lists all settings.
pub(super) const LIST: &str = "settings";

/// Its argument: how they are written.
const FORM: &str = "form";

/// What the process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Serve.
    Serve,
    /// Look at all that serving needs.
    Check {
        /// Also make one paid call.
        live: bool,
    },
}

/// The command line: a flag for every setting that may be one.
pub fn command() -> Command {
    let command = Command::new("imagesvc")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(format!(
            "Every flag is also an environment variable, and may stand in a .env file in the \
             working directory. Keys are variables only: {}.",
            upstream::API_KEY.row.name
        ));
    let check = Command::new(CHECK)
        .about("Looks at all that the service needs, and says what to do about each fault")
        .arg(
            Arg::new(LIVE)
                .long(LIVE)
                .action(ArgAction::SetTrue)
                .help("Also ask NVIDIA for one embedding, which is paid for"),
        );
    let list = Command::new(LIST)
        .hide(true)
        .about("Lists all settings as the documentation has them")
        .arg(
            Arg::new(FORM)
                .required(true)
                .value_parser(Form::parse)
                .help("markdown: the table in docs/operating.md; env: .env.example"),
        );
    command
        .subcommands([check, list])
        .args(SETTINGS.iter().filter(|row| row.kind != Kind::Secret).map(flag))
}

/// How the settings are to be listed.
pub(super) fn form(list: &ArgMatches) -> Form {
    #[allow(clippy::expect_used)]
    *list.get_one(FORM).expect("clap requires it")
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
