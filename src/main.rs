//! The service's process: settings, logs, serve or check, exit code.

use std::{env, error::Error, process::ExitCode, time::Duration};

use imagesvc::{
    check,
    config::{Config, Task},
    decoder,
    server::{Server, stop_signal},
    telemetry,
};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    // First of all: a decoder limits itself before anything else is done.
    if let Some(code) = decoder::run_child(env::args_os()) {
        return code;
    }
    let (task, config) = Config::from_process().unwrap_or_else(|faults| faults.exit());
    telemetry::init(&config.telemetry);
    let outcome = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(run(task, config));
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

async fn run(task: Task, config: Config) -> Result<ExitCode, Box<dyn Error>> {
    match task {
        Task::Serve => {
            let stop = stop_signal()?;
            Server::bind(config).await?.serve(stop).await;
        }
        Task::Check { live } if check::run(&config, live).await => {}
        Task::Check { .. } => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}
