//! Turns flags and variables into one checked [`Config`], or into the list of all their faults.
//!
//! Each concern has a file (`nvidia.rs`, `web.rs`, …) that holds its settings, one typed row each, and
//! the function that reads them. To add a setting, write its row and read it there, give it a place in
//! `settings.rs`, and let the program print the table and `.env.example` (`listing.rs`).
//! `CONTRIBUTING.md` has the steps.

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
pub use raw::Raw;
pub use upstream::Upstream;

/// Everything the service is told at start, checked.
#[derive(Debug)]
pub struct Config {
    /// Who computes the embeddings.
    pub upstream: Upstream,
    /// How NVIDIA is called.
    pub nvidia: crate::nvidia::Settings,
    /// How a picture becomes an embedding.
    pub embed: crate::embed::Settings,
    /// How pictures are decoded.
    pub decoder: crate::decoder::Settings,
    /// How addresses are fetched.
    pub fetch: crate::fetch::Settings,
    /// Where pictures are saved.
    pub store: crate::store::Settings,
    /// What a request may ask for.
    pub limits: Limits,
    /// Who is let in.
    pub web: crate::web::Settings,
    /// How connections are served.
    pub server: crate::server::Settings,
    /// What is logged, and how.
    pub telemetry: crate::telemetry::Settings,
    /// What the operator should hear at start, although it is no fault.
    pub notices: Vec<String>,
}

/// All faults of the settings, each naming its variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Ends the process with exit code 2: starting again does not help.
    pub fn exit(&self) -> ! {
        // Nothing is logged before the settings stand.
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
    /// Reads the process: its arguments, its environment, and `.env` in the working directory.
    /// Where the arguments ask for help or for a list of the settings, prints it and ends the process.
    ///
    /// # Errors
    /// Every fault of the settings at once.
    pub fn from_process() -> Result<(Task, Self), Faults> {
        let matches = command().get_matches();
        // Flags may stand before and behind the subcommand; behind it, all are known.
        let (task, flags) = match matches.subcommand() {
            Some((command::LIST, list)) => listing::print_and_exit(command::form(list)),
            Some((command::CHECK, check)) => {
                (Task::Check { live: check.get_flag(command::LIVE) }, check)
            }
            _ => (Task::Serve, &matches),
        };
        let raw = Raw::merge(flags, std::env::vars_os(), ".env".as_ref());
        Ok((task, Self::resolve(&raw)?))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Every fault of the settings at once.
    pub fn resolve(raw: &Raw) -> Result<Self, Faults> {
        let mut read = Reader::new(&raw.values);
        read.faults = [&raw.unreadable[..], &raw.open_guards()].concat();
        read.notices = raw.typing_slips();
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
            // Without one there is a fault, and this goes nowhere.
            upstream: upstream.unwrap_or(Upstream::Sandbox),
            notices: Vec::new(),
        };
        config.refuse_contradictions(&mut read);
        config.add_warnings(&mut read);
        let Reader { asked, faults, notices, .. } = read;
        let listed = SETTINGS.iter().map(|row| row.name).collect();
        debug_assert!(asked.is_subset(&listed), "settings.rs lists no {:?}", &asked - &listed);
        if faults.is_empty() {
            Ok(Self { notices, ..config })
        } else {
            // A misspelt variable is often what explains a fault.
            Err(Faults([faults, notices].concat()))
        }
    }

    /// What each setting allows, and all of them together do not.
    fn refuse_contradictions(&self, read: &mut Reader<'_>) {
        // The Base64 route holds its whole body: one request must fit into the budget of all.
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

    /// What is allowed, and should not come as a surprise.
    fn add_warnings(&self, read: &mut Reader<'_>) {
        if matches!(self.upstream, Upstream::Nvidia(_)) && self.web.keys.is_empty() {
            read.notices.push(format!(
                "no client keys are set: whoever reaches the port can spend the NVIDIA key; set {}, \
                 or let a firewall admit your own clients only",
                web::API_KEYS.row.name
            ));
        }
    }
}

#[cfg(test)]
mod tests;
