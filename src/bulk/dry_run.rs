//! `--dry-run`: counts the pictures of the sources. If calls per minute are limited, also prints how
//! long the limit makes these pictures wait if each of them needs a call.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use super::{
    error::BulkError,
    item::{Item, ItemReader, Picture},
    output::Existing,
    selection::{Selected, Selection},
    source,
};
use crate::nvidia::CallLimit;

/// Counts the rows of the sources until `row_limit` is reached, and prints the counts. Rows without a picture
/// count towards `row_limit`, too. Rows in `existing`, which the output contains already, do not. Blocks
/// the thread.
///
/// # Errors
/// The first source that cannot be read to its end, after the counts of all sources; or the counts cannot be
/// printed.
pub(super) fn count(
    sources: &[PathBuf],
    reader: &ItemReader,
    existing: Existing,
    row_limit: Option<u64>,
    call_limit: Option<CallLimit>,
) -> Result<(), BulkError> {
    let mut selection = Selection::new(existing, row_limit);
    let (mut files, mut urls, mut invalid, mut skipped) = (0_u64, 0_u64, 0_u64, 0_u64);
    // Returns whether to read another row.
    let mut sink = |item: Item| {
        match selection.select(item.identity) {
            Selected::Skip => {
                skipped += 1;
                return true;
            }
            Selected::LimitReached => return false,
            Selected::Send => {}
        }
        match item.picture {
            Ok(Picture::File(_)) => files += 1,
            Ok(Picture::Url { .. }) => urls += 1,
            Err(_) => invalid += 1,
        }
        selection.wants_more()
    };
    let mut first_error = None;
    for path in sources {
        match source::read_one(path, reader, &mut sink) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let calls = files + urls;
    let mut text = format!(
        "{calls} pictures to send: {files} files and {urls} URLs\n\
         {invalid} rows without a picture\n\
         {skipped} rows are in the output already\n"
    );
    if let Some(call_limit) = call_limit {
        text.push_str(&line_with_longest_time(calls, call_limit));
    }
    io::stdout().write_all(text.as_bytes()).map_err(BulkError::Write)?;
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// A line that says how long `call_limit` makes this number of calls wait.
fn line_with_longest_time(calls: u64, call_limit: CallLimit) -> String {
    let CallLimit { total, replicas, has_valkey } = call_limit;
    // The settings refuse a limit of 0 calls, but the type allows it.
    let calls_per_minute = call_limit.calls_per_minute().max(1);
    let seconds = calls.saturating_mul(60).div_ceil(u64::from(calls_per_minute));
    let time = humantime::format_duration(Duration::from_secs(seconds));
    let limit_text = match (has_valkey, replicas.get()) {
        (true, _) => {
            format!("NVIDIA_REQUESTS_PER_MINUTE={total}, as long as no other replica makes calls")
        }
        (false, 1) => format!("NVIDIA_REQUESTS_PER_MINUTE={total}"),
        (false, _) => format!(
            "this replica's part of NVIDIA_REQUESTS_PER_MINUTE={total}, which is {calls_per_minute} \
             with IMAGESVC_REPLICAS={replicas}"
        ),
    };
    format!("with {limit_text}, at most {time}; equal pictures and cached ones take no time\n")
}
