//! Turns flags and variables into one checked [`Config`], or into the list of all their faults.
//!
//! Each concern has a file (`nvidia.rs`, `web.rs`, …) that holds its settings, one typed row each,
//! and the function that reads them. To add a setting, write its row and read it there, list it in
//! `settings.rs`, and let the program print the table and `.env.example` (`listing.rs`).
//! `CONTRIBUTING.md` has the steps.
//!
//! clap alone could read flags and variables, but it stops at the first fault, knows no `.env`, and
//! has no place for the rule that some settings must not be empty.

use std::fmt;

use crate::pipeline::{Limits, largest_request};
use reader::Reader;
use settings::SETTINGS;

mod command;
mod decoder;
mod dotenv;
mod embed;
mod fetch;
mod limits;
mod listing;
mod nvidia;
mod parse;
mod raw;
mod reader;
mod row;
mod server;
mod settings;
mod store;
mod telemetry;
mod upstream;
mod web;

pub use command::{Task, command};
pub use raw::RawSettings;
pub use upstream::Upstream;

/// All settings of the service, checked.
#[derive(Debug)]
pub struct Config {
    /// Where the embeddings are computed.
    pub upstream: Upstream,
    /// How NVIDIA is called.
    pub nvidia: crate::nvidia::Settings,
    /// How a picture becomes an embedding.
    pub embed: crate::embed::Settings,
    /// How pictures are decoded.
    pub decoder: crate::decoder::Settings,
    /// How pictures are fetched by their URLs.
    pub fetch: crate::fetch::Settings,
    /// Where pictures are saved.
    pub store: crate::store::Settings,
    /// The limits of a request, and of all requests together.
    pub limits: Limits,
    /// Who may call the service.
    pub web: crate::web::Settings,
    /// How connections are served.
    pub server: crate::server::Settings,
    /// What is logged, and in which format.
    pub telemetry: crate::telemetry::Settings,
    /// Warnings for the operator that do not keep the service from starting.
    pub notices: Vec<String>,
}

/// All faults of the settings, each naming its variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Prints the faults and exits with code 2, which tells systemd that a restart does not help.
    pub fn exit(&self) -> ! {
        // The log's format is a setting, so there is no log yet.
        #[allow(clippy::print_stderr)]
        {
            eprint!("{self}");
        }
        std::process::exit(2)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "imagesvc cannot start with these settings:")?;
        self.0.iter().try_for_each(|fault| writeln!(f, "  - {fault}"))
    }
}

impl std::error::Error for Faults {}

impl Config {
    /// Reads the process's arguments, its environment, and `.env` in the working directory. If the
    /// arguments ask for help or for a list of the settings, prints that and exits.
    ///
    /// # Errors
    /// Every fault of the settings at once.
    pub fn from_process() -> Result<(Task, Self), Faults> {
        let matches = command().get_matches();
        // Flags may stand before or after the subcommand. Its matches hold both, since every flag
        // is global.
        let (task, flags) = match matches.subcommand() {
            Some((command::LIST, list)) => listing::print_and_exit(command::format(list)),
            Some((command::CHECK, check)) => {
                (Task::Check { live: check.get_flag(command::LIVE) }, check)
            }
            _ => (Task::Serve, &matches),
        };
        let raw = RawSettings::merge(flags, std::env::vars_os(), ".env".as_ref());
        Ok((task, Self::resolve(&raw)?))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Every fault of the settings at once.
    pub fn resolve(raw: &RawSettings) -> Result<Self, Faults> {
        let mut read = Reader::new(&raw.values);
        read.faults = [&raw.unreadable[..], &raw.faults_of_empty_values()].concat();
        read.notices = raw.notices_of_unknown_variables();
        let upstream = upstream::resolve(&mut read);
        let downloads = read.value(&store::DOWNLOADS_DIR);
        let store = store::resolve(&mut read, downloads);
        let limits = limits::resolve(&mut read);
        let config = Self {
            nvidia: nvidia::resolve(&mut read),
            embed: embed::resolve(&mut read, &store, &limits),
            decoder: decoder::resolve(&mut read),
            fetch: fetch::resolve(&mut read),
            store,
            limits,
            web: web::resolve(&mut read),
            server: server::resolve(&mut read),
            telemetry: telemetry::resolve(&mut read),
            // `None` always comes with a fault, so this value is never used.
            upstream: upstream.unwrap_or(Upstream::Sandbox),
            notices: Vec::new(),
        };
        config.check_combinations(&mut read);
        config.add_warnings(&mut read);
        let Reader { names_read, faults, notices, .. } = read;
        let listed = SETTINGS.iter().map(|row| row.name).collect();
        debug_assert!(
            names_read.is_subset(&listed),
            "settings.rs lists no {:?}",
            &names_read - &listed
        );
        if faults.is_empty() {
            Ok(Self { notices, ..config })
        } else {
            // The notices name misspelt variables, which often explain a fault.
            Err(Faults([faults, notices].concat()))
        }
    }

    /// Reports settings that are valid one by one but not together.
    fn check_combinations(&self, read: &mut Reader<'_>) {
        // The Base64 route holds its whole body in memory, so the memory of all requests must be
        // able to hold one.
        let inline = self.embed.call.inline_memory();
        let needed = largest_request(self.limits.max_image_bytes, inline);
        let needed = needed.next_multiple_of(1 << 20);
        if self.limits.max_buffered_bytes < needed {
            read.faults.push(format!(
                "{} must hold one Base64 body of the largest picture: with this {}, at least {}MiB",
                limits::MAX_BUFFERED_BYTES.row.name,
                limits::MAX_IMAGE_BYTES.row.name,
                needed >> 20
            ));
        }
    }

    /// Warns of settings that are allowed but risky.
    fn add_warnings(&self, read: &mut Reader<'_>) {
        if matches!(self.upstream, Upstream::Nvidia(_)) && self.web.keys.is_empty() {
            read.notices.push(format!(
                "no client keys are set: anyone who reaches the port can spend the NVIDIA key; set {}, \
                 or let a firewall admit your own clients only",
                web::API_KEYS.row.name
            ));
        }
    }
}

#[cfg(test)]
mod tests;
