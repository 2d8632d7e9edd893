//! Defines the command line: the commands, and a flag for every setting that is not secret.

use clap::{Arg, ArgAction, ArgMatches};

use super::{
    embed_command::{self, EmbedArguments},
    listing::Format,
    nearest_command::{self, NearestArguments},
    setting::{Kind, SettingInfo},
    settings::SETTINGS,
    upstream,
};

/// The command that checks what the service needs.
pub(super) const CHECK: &str = "check";

/// The flag of `check` that allows one paid call.
pub(super) const LIVE: &str = "live";

/// The hidden command that prints all settings.
pub(super) const LIST_SETTINGS: &str = "settings";

/// The argument of `settings`: the output format.
const FORMAT: &str = "format";

/// The command that the arguments select.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Serve requests. This is the default.
    Serve,
    /// Check everything that the service needs.
    Check {
        /// Whether to also make one paid call to NVIDIA.
        live: bool,
    },
    /// Embed the pictures of folders and lists.
    Embed(Box<EmbedArguments>),
    /// Find the vectors nearest to that of a picture.
    Nearest(Box<NearestArguments>),
}

/// Builds the parser of the command line.
pub fn command_line() -> clap::Command {
    let imagesvc = clap::Command::new("imagesvc")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(format!(
            "Every flag can also be set by an environment variable, or in a .env file in the \
            working directory. Keys have no flags, only variables: {}.",
            upstream::API_KEY.info.name
        ));
    let check = clap::Command::new(CHECK)
        .about("Checks everything that the service needs, and explains how to fix each fault")
        .arg(
            Arg::new(LIVE)
                .long(LIVE)
                .action(ArgAction::SetTrue)
                .help("Also request one embedding from NVIDIA, which is a paid call"),
        );
    let list = clap::Command::new(LIST_SETTINGS)
        .hide(true)
        .about("Prints all settings in the format of the documentation")
        .arg(
            Arg::new(FORMAT)
                .required(true)
                .value_parser(Format::parse)
                .help("markdown: the table in docs/operating.md; env: .env.example"),
        );
    imagesvc
        .subcommands([check, embed_command::command(), nearest_command::command(), list])
        .args(SETTINGS.iter().filter(|setting| setting.kind != Kind::Secret).map(flag))
}

/// Returns the output format that the arguments of `settings` select.
pub(super) fn format(arguments: &ArgMatches) -> Format {
    #[allow(clippy::expect_used)]
    *arguments.get_one(FORMAT).expect("clap refuses `settings` without a format")
}

fn flag(setting: &'static SettingInfo) -> Arg {
    let mut help = format!("{} [env: {}]", setting.plain_help(), setting.name);
    if let Some(default) = setting.default {
        help.push_str(&format!(" [default: {default}]"));
    }
    let arg = Arg::new(setting.name)
        .long(setting.flag())
        .help(help)
        .help_heading("Settings of the service") // apart from the arguments of a command
        .action(ArgAction::Set)
        .global(true);
    match setting.kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL"),
        Kind::Value | Kind::Secret => arg.value_name("VALUE"),
    }
}
