//! The command line: what the process is told to do, and the code that it ends with.

use std::{env, error::Error, process::ExitCode, time::Duration};

use tokio::runtime::Runtime;

use crate::{
    config::{Config, Task},
    decoder, telemetry,
};

mod check;
mod serve;

/// Runs the process.
pub fn run() -> ExitCode {
    // First of all: a decoder limits itself before anything else is done.
    if let Some(code) = decoder::run_child(env::args_os()) {
        return code;
    }
    let (task, config) = Config::from_process().unwrap_or_else(|faults| faults.exit());
    telemetry::open_log(&config.telemetry);
    let _log = OpenLog;
    let outcome = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(perform(task, config));
        // What still blocks a thread (a look-up, a hung disk) was given its time by the drain.
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    });
    outcome.unwrap_or_else(|error| {
        let cause = error.source().map(tracing::field::display);
        tracing::error!(%error, cause, "imagesvc cannot start");
        ExitCode::FAILURE
    })
}

/// Closes the log at the end of the process, also where that is a panic.
struct OpenLog;

impl Drop for OpenLog {
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
