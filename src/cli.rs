//! The command line: runs the command that the arguments name, and returns the exit code.

use std::{env, error::Error, process::ExitCode, time::Duration};

use tokio::runtime::Runtime;

use crate::{
    config::{Config, Task},
    decoder, telemetry,
};

mod check;
mod serve;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    // A decoder child must limit itself before any other code runs in the process.
    if let Some(code) = decoder::run_child(env::args_os()) {
        return code;
    }
    let (task, config) = Config::from_process().unwrap_or_else(|faults| faults.exit());
    telemetry::open_log(&config.telemetry);
    let _log = LogGuard;
    let outcome = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(perform(task, config));
        // The drain has waited for all requests. A thread that is still blocked (by a look-up, or
        // by a disk that hangs) is not worth a longer wait.
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    });
    outcome.unwrap_or_else(|error| {
        let cause = error.source().map(tracing::field::display);
        tracing::error!(%error, cause, "imagesvc cannot start");
        ExitCode::FAILURE
    })
}

/// Closes the log when dropped, so that a panic cannot lose its last lines either.
struct LogGuard;

impl Drop for LogGuard {
    fn drop(&mut self) {
        telemetry::close_log();
    }
}

async fn perform(task: Task, config: Config) -> Result<ExitCode, Box<dyn Error>> {
    match task {
        Task::Serve => serve::serve(config).await?,
        Task::Check { live } if check::check(&config, live).await => {}
        Task::Check { .. } => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}
