//! Defines the command line: the commands, and a flag for every setting that is not secret.

use clap::{Arg, ArgAction, ArgMatches, ValueHint};

use super::{
    embed_command::{self, EmbedArguments},
    listing::Format,
    nearest_command::{self, NearestArguments},
    setting::{Kind, SettingInfo},
    settings,
};

/// The command that checks what the service needs.
pub(super) const CHECK: &str = "check";

/// The flag of `check` that adds one paid call.
pub(super) const LIVE: &str = "live";

/// The hidden command that prints all settings.
pub(super) const LIST_SETTINGS: &str = "settings";

/// The argument of `settings`: the output format.
const FORMAT: &str = "format";

/// The widest line of the help. A narrower terminal gets shorter lines.
const HELP_WIDTH: usize = 80;

/// Where settings can be set, and why secrets have no flags. A list of the secrets follows.
pub const ABOUT_SETTINGS: &str = "A setting is a flag, an environment variable, or a line of the \
     file .env in the working directory. Secrets have no flags, because every process on the machine can \
     read flags. They are variables, or lines of .env:";

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
    let list = clap::Command::new(LIST_SETTINGS)
        .hide(true)
        .about("Prints all settings in the format of the documentation")
        .arg(
            Arg::new(FORMAT)
                .required(true)
                .value_parser(Format::parse)
                .help("markdown: the tables in docs/operating.md; env: .env.example"),
        );
    documented_command_line().subcommand(list)
}

/// Builds the parser without its hidden command, for the man pages and the completions.
pub fn documented_command_line() -> clap::Command {
    let check = clap::Command::new(CHECK)
        .about("Checks everything that the service needs, and explains how to fix each fault")
        .arg(
            Arg::new(LIVE)
                .long(LIVE)
                .action(ArgAction::SetTrue)
                .help("Also request one embedding from NVIDIA, which is a paid call"),
        );
    let commands = [check, embed_command::command(), nearest_command::command()];
    let flags = settings::GROUPS.iter().flat_map(|group| {
        let public = group.settings.iter().filter(|setting| setting.kind != Kind::Secret);
        public.map(|setting| {
            // The short help (`-h`) contains only the first group.
            flag(setting)
                .help_heading(group.heading)
                .hide_short_help(group.heading != settings::FIRST.heading)
        })
    });
    clap::Command::new("imagesvc")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .max_term_width(HELP_WIDTH)
        .after_help(help_of_secrets(settings::FIRST.settings))
        .after_long_help(help_of_secrets(settings::all()))
        .subcommands(commands.map(|command| {
            command
                .after_help(help_of_secrets(settings::FIRST.settings))
                .after_long_help(help_of_secrets(settings::all()))
        }))
        .args(flags)
}

/// Explains where settings can be set, and lists the secrets among `settings`.
fn help_of_secrets(settings: impl IntoIterator<Item = &'static SettingInfo>) -> String {
    let secrets: Vec<_> = secrets_of(settings).collect();
    let width = secrets.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines = secrets.iter().map(|(name, help)| format!("\n  {name:width$}  {help}"));
    format!("{ABOUT_SETTINGS}{}", lines.collect::<String>())
}

/// Returns all secrets, which have no flags, each with its help.
pub fn secrets() -> impl Iterator<Item = (&'static str, String)> {
    secrets_of(settings::all())
}

fn secrets_of(
    settings: impl IntoIterator<Item = &'static SettingInfo>,
) -> impl Iterator<Item = (&'static str, String)> {
    let secrets = settings.into_iter().filter(|setting| setting.kind == Kind::Secret);
    secrets.map(|setting| (setting.name, setting.plain_help()))
}

/// Returns the output format that the arguments of `settings` select.
pub(super) fn format(arguments: &ArgMatches) -> Format {
    #[allow(clippy::expect_used)]
    *arguments.get_one(FORMAT).expect("clap refuses `settings` without a format")
}

/// The flag of a setting that is not secret.
fn flag(setting: &'static SettingInfo) -> Arg {
    let help = setting.plain_help();
    // It is obvious that a switch is off by default.
    let default = setting.default.filter(|_| setting.kind != Kind::Switch);
    let default = default.map(|default| format!("[default: {default}] ")).unwrap_or_default();
    let arg = Arg::new(setting.name)
        .long(setting.flag())
        .help(format!("{help} {default}").trim_end().to_owned())
        .long_help(format!("{help}\n{default}[env: {}]", setting.name))
        .action(ArgAction::Set)
        .global(true);
    if setting.kind == Kind::Switch {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
    } else {
        arg.value_name("VALUE").value_hint(hint_for_completion(setting))
    }
}

/// Tells the completions whether a value is a path.
fn hint_for_completion(setting: &SettingInfo) -> ValueHint {
    match setting.name.rsplit('_').next() {
        Some("FILE") => ValueHint::FilePath,
        Some("DIR") => ValueHint::DirPath,
        _ => ValueHint::Other,
    }
}
