//! `imagesvc` without a command: serves requests until a signal stops it.

use std::error::Error;

use crate::{app::App, config::Config, server::stop_signal};

/// Builds the service, and serves requests until a signal stops it.
///
/// # Errors
/// The reason why the service cannot start.
pub(super) async fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    let stop = stop_signal()?;
    App::build(config).await?.serve(stop).await;
    Ok(())
}
