//! Parses whole bodies. Large ones are parsed on a thread that may block, so that they do not delay
//! other requests.

use tokio::task::spawn_blocking;

use crate::{shares::SharePermit, web::error::Error};

/// Bodies with at least this many bytes are large.
const LARGE_BODY: usize = 256 * 1024;

/// Parses a body with `parse`. Also returns `memory`, the permit for the body's memory.
///
/// # Errors
/// The error of `parse`, or an error if `parse` panics on the thread that may block.
pub(in crate::web) async fn parse_body<T: Send + 'static>(
    body: Vec<u8>,
    memory: SharePermit,
    parse: impl FnOnce(Vec<u8>) -> Result<T, Error> + Send + 'static,
) -> Result<(T, SharePermit), Error> {
    if body.len() < LARGE_BODY {
        return Ok((parse(body)?, memory));
    }
    // The thread owns the permit, because parsing continues even if the client disconnects.
    spawn_blocking(move || Ok((parse(body)?, memory))).await?
}
