//! `--dry-run`: counts the pictures of the sources, and estimates how long they take.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use super::{
    error::BulkError,
    item::{ItemReader, Picture},
    output::Existing,
    source,
};

/// Counts the rows of the sources, and prints the counts. Blocks the thread.
pub(super) fn count(
    sources: &[PathBuf],
    reader: &ItemReader,
    mut existing: Existing,
    limit: Option<u64>,
    requests_per_minute: Option<u32>,
) -> Result<(), BulkError> {
    let limit = limit.unwrap_or(u64::MAX);
    let (mut files, mut urls, mut invalid, mut skipped) = (0_u64, 0_u64, 0_u64, 0_u64);
    source::read(sources, reader, &mut |item| {
        if existing.take(item.identity) {
            skipped += 1;
            return true;
        }
        match item.picture {
            Ok(Picture::File(_)) => files += 1,
            Ok(Picture::Url { .. }) => urls += 1,
            Err(_) => invalid += 1,
        }
        files + urls + invalid < limit
    })?;
    let calls = files + urls;
    let mut text = format!(
        "{calls} pictures to send: {files} files and {urls} URLs\n\
         {invalid} rows without a picture\n\
         {skipped} rows are in the output already\n"
    );
    if let Some(per_minute) = requests_per_minute {
        let seconds = calls.saturating_mul(60) / u64::from(per_minute);
        let time = humantime::format_duration(Duration::from_secs(seconds));
        text.push_str(&format!(
            "with NVIDIA_REQUESTS_PER_MINUTE={per_minute}, at most {time}; equal pictures and \
             cached ones take no time\n"
        ));
    }
    io::stdout().write_all(text.as_bytes()).map_err(BulkError::Write)
}
