//! The command line: one file for each command.

use std::{env, error::Error, process::ExitCode, time::Duration};

use tokio::runtime::Runtime;

use crate::{
    config::{Command, Config},
    decoder,
    telemetry::{self, TraceExport},
};

mod check;
mod embed;
mod nearest;
mod serve;

/// Runs the command that the arguments select, and returns the exit code.
pub fn run() -> ExitCode {
    // No code may run before this: here, a child process that decodes a picture sets its own limits.
    if let Some(code) = decoder::run_child(env::args_os()) {
        return code;
    }
    let (command, config) = Config::from_args_and_env().unwrap_or_else(|errors| errors.exit());
    // Only `serve` exports traces. A service that another command starts is only for that command.
    let trace_export = match command {
        Command::Serve => TraceExport::On,
        Command::Embed(_) | Command::Nearest(_) | Command::Check { .. } => TraceExport::Off,
    };
    telemetry::open_log(&config.telemetry, trace_export);
    let _log = LogGuard;
    let result = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(run_command(command, config));
        // All requests have ended. Only a DNS look-up or a hanging disk can still block a thread. The
        // process waits for such a thread for at most a second.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    });
    result.unwrap_or_else(|error| {
        let cause = error.source().map(tracing::field::display);
        tracing::error!(%error, cause, "imagesvc cannot start");
        ExitCode::FAILURE
    })
}

/// Closes the log when dropped, so that the last lines of the log are written even after a panic.
struct LogGuard;

impl Drop for LogGuard {
    fn drop(&mut self) {
        telemetry::close_log();
    }
}

/// Runs the command, and returns its exit code.
///
/// # Errors
/// Why the service cannot start. Later errors are logged where they occur. `embed`, `nearest` and
/// `check` print their errors themselves.
async fn run_command(command: Command, config: Config) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Serve => serve::serve(config).await?,
        Command::Embed(arguments) => return Ok(Box::pin(embed::embed(*arguments, config)).await),
        Command::Nearest(arguments) => {
            return Ok(Box::pin(nearest::nearest(*arguments, config)).await);
        }
        Command::Check { live } => {
            let has_passed = check::check(&config, live).await;
            if !has_passed {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
