//! Turns flags, environment variables and `.env` into a checked [`Config`], or into a list of all
//! errors.
//!
//! Each module's settings have a file (`nvidia.rs`, `web.rs`, …), which defines them and a function
//! `resolve` that reads them. `settings.rs` groups the settings of all files by what they are
//! for. The flags, the documentation and `.env.example` are generated from these groups.
//! `CONTRIBUTING.md` explains how to add a setting.
//!
//! clap could read flags and variables by itself. But it stops at the first error, does not read `.env`,
//! and does not support settings that must not be empty.

use std::fmt;

use crate::pipeline::{Limits, max_request_memory};
use reader::Reader;

mod aws;
mod bucket;
mod bulk_arguments;
mod command;
mod decoder;
mod dotenv;
mod embed;
mod embed_command;
mod fetch;
mod limits;
mod listing;
mod nearest_command;
mod nvidia;
mod own_client;
mod parse;
mod raw;
mod reader;
mod server;
mod setting;
mod settings;
mod store;
mod telemetry;
mod upstream;
mod valkey;
mod web;

pub use command::{ABOUT_SETTINGS, Command, command_line, documented_command_line, secrets};
pub use embed_command::{EmbedArguments, ExportFile, ExportFormat};
pub use nearest_command::NearestArguments;
pub use raw::RawSettings;
pub use upstream::Upstream;

/// How the warning about missing client keys begins. [`Config::for_own_client`] removes the warning
/// that begins with this text.
const NO_CLIENT_KEYS: &str = "no client keys are set";

/// All settings of the service, parsed and checked.
#[derive(Debug)]
pub struct Config {
    /// What computes the embeddings.
    pub upstream: Upstream,
    /// How NVIDIA is called.
    pub nvidia: crate::nvidia::Settings,
    /// How pictures are sent, and how vectors are cached.
    pub embed: crate::embed::Settings,
    /// How pictures are decoded.
    pub decoder: crate::decoder::Settings,
    /// How pictures are fetched.
    pub fetch: crate::fetch::Settings,
    /// Where pictures are received and, without a bucket, saved.
    pub store: crate::store::Settings,
    /// The bucket for pictures and vectors, if there is one.
    pub bucket: Option<crate::bucket::Settings>,
    /// The Valkey that replicas share, if there is one.
    pub valkey: Option<crate::valkey::Settings>,
    /// The limits of one request, and of all requests together.
    pub limits: Limits,
    /// Who may call the service.
    pub web: crate::web::Settings,
    /// How connections are served.
    pub server: crate::server::Settings,
    /// What is logged, and in which format.
    pub telemetry: crate::telemetry::Settings,
    /// Warnings for the operator. The service starts nevertheless.
    pub warnings: Vec<String>,
}

/// All errors of the settings, followed by all warnings.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingErrors(Vec<String>);

impl SettingErrors {
    /// Prints the errors and exits with code 2. The systemd unit does not restart the service after
    /// this code.
    pub fn exit(&self) -> ! {
        // The log's format is a setting, so there is no log yet.
        #[allow(clippy::print_stderr)]
        {
            eprint!("{self}");
        }
        std::process::exit(2)
    }
}

impl fmt::Display for SettingErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "imagesvc cannot start with these settings:")?;
        self.0.iter().try_for_each(|error| writeln!(f, "  - {error}"))
    }
}

impl std::error::Error for SettingErrors {}

impl Config {
    /// Reads the command and the settings from the process's arguments, its environment, and `.env`
    /// in the working directory. Exits if the arguments are invalid, or if they request the help or
    /// the list of settings.
    ///
    /// # Errors
    /// All errors of the settings.
    pub fn from_args_and_env() -> Result<(Command, Self), SettingErrors> {
        let matches = command_line().get_matches();
        // Flags are allowed before and after the command. Every flag is global, so the command's
        // own matches contain all flags.
        let (command, flags) = match matches.subcommand() {
            Some((command::LIST_SETTINGS, list)) => listing::print_and_exit(command::format(list)),
            Some((command::CHECK, check)) => {
                (Command::Check { live: check.get_flag(command::LIVE) }, check)
            }
            Some((embed_command::EMBED, embed)) => {
                (Command::Embed(Box::new(embed_command::arguments(embed))), embed)
            }
            Some((nearest_command::NEAREST, nearest)) => {
                (Command::Nearest(Box::new(nearest_command::arguments(nearest))), nearest)
            }
            _ => (Command::Serve, &matches),
        };
        let mut raw = RawSettings::merge(flags, std::env::vars_os(), ".env".as_ref());
        match &command {
            Command::Embed(arguments) => embed_command::adapt_settings(&mut raw, arguments),
            Command::Nearest(arguments) => nearest_command::adapt_settings(&mut raw, arguments),
            Command::Serve | Command::Check { .. } => {}
        }
        Ok((command, Self::resolve(&raw)?))
    }

    /// Parses and checks the settings.
    ///
    /// # Errors
    /// All errors of the settings.
    pub fn resolve(raw: &RawSettings) -> Result<Self, SettingErrors> {
        let mut reader = Reader::new(&raw.values);
        reader.errors = [&raw.read_errors[..], &raw.errors_of_empty_values()].concat();
        reader.warnings = raw.warnings_of_unknown_variables();
        let upstream = upstream::resolve(&mut reader);
        let store = store::resolve(&mut reader);
        let bucket = bucket::resolve(&mut reader, &raw.aws_variables, store.retention);
        let limits = limits::resolve(&mut reader);
        let replicas = reader.value(&nvidia::REPLICAS).get();
        let valkey = valkey::resolve(&mut reader, replicas);
        let config = Self {
            nvidia: nvidia::resolve(&mut reader, valkey.is_some()),
            embed: embed::resolve(&mut reader, &store, &limits),
            decoder: decoder::resolve(&mut reader),
            fetch: fetch::resolve(&mut reader),
            store,
            bucket,
            valkey,
            limits,
            web: web::resolve(&mut reader),
            server: server::resolve(&mut reader),
            telemetry: telemetry::resolve(&mut reader),
            // If `upstream` is `None`, there is an error, and this `Config` is not returned.
            upstream: upstream.unwrap_or(Upstream::Sandbox),
            warnings: Vec::new(), // filled below, after all checks
        };
        config.check_combinations(&mut reader);
        config.add_warnings(&mut reader);
        let Reader { names_read, errors, warnings, .. } = reader;
        let listed = settings::all().map(|setting| setting.name).collect();
        debug_assert!(
            names_read.is_subset(&listed),
            "settings.rs must list {:?}",
            &names_read - &listed
        );
        if errors.is_empty() {
            Ok(Self { warnings, ..config })
        } else {
            // The warnings contain misspelt variables, which often explain an error.
            Err(SettingErrors([errors, warnings].concat()))
        }
    }

    /// Adds an error if settings are valid individually, but not together.
    fn check_combinations(&self, reader: &mut Reader<'_>) {
        // A Base64 request needs memory for its whole body, and for sending its picture to NVIDIA. The
        // limit for all requests together must be large enough for one such request.
        let inline_memory = self.embed.call.inline_memory();
        let needed_bytes = max_request_memory(self.limits.max_image_bytes, inline_memory);
        // The check uses whole MiB, because the error states them.
        let needed_bytes = needed_bytes.next_multiple_of(1 << 20);
        if self.limits.max_buffered_bytes < needed_bytes {
            reader.errors.push(format!(
                "{} must be large enough for one Base64 body of the largest picture: with this {}, at least {}MiB",
                limits::MAX_BUFFERED_BYTES.info.name,
                limits::MAX_IMAGE_BYTES.info.name,
                needed_bytes >> 20
            ));
        }
    }

    /// Adds a warning if the settings are allowed but risky.
    fn add_warnings(&self, reader: &mut Reader<'_>) {
        if matches!(self.upstream, Upstream::Nvidia(_)) && self.web.keys.is_empty() {
            reader.warnings.push(format!(
                "{NO_CLIENT_KEYS}: everybody who can reach the port can use the NVIDIA key; set {}, \
                 or let a firewall admit only your own clients",
                web::API_KEYS.info.name
            ));
        }
    }
}

#[cfg(test)]
mod tests;
