//! `imagesvc embed`: embeds the pictures of folders and lists.

use std::process::ExitCode;

use crate::{
    bulk,
    config::{Config, EmbedArguments},
};

/// Embeds the pictures, and returns the exit code: 0 if all were embedded, 1 if some failed or an error
/// stopped the run, 2 if the command cannot start, 130 if a signal interrupted it.
pub(super) async fn embed(arguments: EmbedArguments, config: Config) -> ExitCode {
    // In a box, because the future contains the whole service.
    match Box::pin(bulk::embed(arguments, config)).await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the command reports its errors to people")]
            {
                eprintln!("imagesvc embed: {error}");
            }
            error.exit_code()
        }
    }
}
