//! `imagesvc nearest`: prints the rows whose vectors are nearest to the vector of a picture.

use std::process::ExitCode;

use crate::{
    bulk,
    config::{Config, NearestArguments},
};

/// Prints the nearest rows, and returns the exit code:
///
/// - 0: the rows are printed.
/// - 1: the picture cannot be embedded, or the rows cannot be printed.
/// - 2: the file of vectors or the service cannot be used, or the system refuses a thread or a
///   signal handler.
/// - 130: a signal interrupted the command.
pub(super) async fn nearest(arguments: NearestArguments, config: Config) -> ExitCode {
    // On the heap, because this future is large: without `--to`, it also starts the service.
    match Box::pin(bulk::nearest(arguments, config)).await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the command reports its errors to people")]
            {
                eprintln!("imagesvc nearest: {error}");
            }
            error.exit_code()
        }
    }
}
