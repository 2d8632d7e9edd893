//! The service's process: settings, logs, serve, exit code.

use std::{error::Error, process::ExitCode, time::Duration};

use imagesvc::{
    config::Config,
    server::{Server, stop_signal},
    telemetry,
};

fn main() -> ExitCode {
    let config = Config::from_process().unwrap_or_else(|faults| faults.exit());
    telemetry::init(&config.telemetry);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(tracing::field::display);
            tracing::error!(%error, cause, "imagesvc cannot start");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        Server::bind(config).await?.serve(stop).await;
        Ok::<_, Box<dyn Error>>(())
    })?;
    // What still blocks a thread (a look-up, a hung disk) was given its time by the drain.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}
