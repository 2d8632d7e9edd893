//! The service's process: settings, logs, serve, exit code.

use std::process::ExitCode;

use imagesvc::{config::Config, server::Server, telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// Faults of the settings: starting again does not help.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let config = match Config::from_process() {
        Ok(config) => config,
        Err(faults) => {
            #[allow(clippy::print_stderr, reason = "nothing is logged before the settings stand")]
            {
                eprint!("{faults}");
            }
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    telemetry::init(&config.telemetry);
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => fail(&error),
    }
}

async fn run(config: Config) -> ExitCode {
    let stopped = signal(SignalKind::terminate())
        .and_then(|stop| Ok((stop, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match stopped {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    for notice in &config.notices {
        tracing::warn!("{notice}");
    }
    let server = match Server::bind(config).await {
        Ok(server) => server,
        Err(error) => return fail(&error),
    };
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::warn!("stopped: a second signal came");
            std::process::exit(0);
        });
    };
    server.serve(stop).await;
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!(%error, cause = error.source().map(tracing::field::display), "imagesvc cannot start");
    ExitCode::FAILURE
}
