//! `imagesvc`: serves until the system says stop.

use std::error::Error;

use crate::{app::App, config::Config, server::stop_signal};

/// Builds the service and serves.
///
/// # Errors
/// Why it does not start.
pub(super) async fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    let stop = stop_signal()?;
    App::build(config).await?.serve(stop).await;
    Ok(())
}
