//! Reads lists with one entry per line: paths and URLs, or JSON objects.

use std::io::{self, BufRead, BufReader, Read};

use super::{
    super::item::{Item, ItemReader, Picture},
    Sink,
    limited::MAX_ROW_BYTES,
};

/// Reads paths and URLs. Ignores blank lines. Returns whether `sink` wants more items.
pub(super) fn read_plain(
    input: impl Read,
    place: &str,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> io::Result<bool> {
    read(input, place, reader, sink, |text, _| reader.plain(Picture::parse(text)))
}

/// Reads JSON objects. Ignores blank lines. Returns whether `sink` wants more items.
pub(super) fn read_objects(
    input: impl Read,
    place: &str,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> io::Result<bool> {
    read(input, place, reader, sink, |text, line_number| reader.object(text, place, line_number))
}

/// Reads the lines that are not blank. `place` is the list's path, for messages. `parse` turns a line and
/// its number into an item.
fn read(
    input: impl Read,
    place: &str,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
    parse: impl Fn(&str, u64) -> Item,
) -> io::Result<bool> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut bytes = Vec::new();
    let mut line_number = 0;
    loop {
        bytes.clear();
        line_number += 1;
        // The 2 is the length of the longest line break, `\r\n`.
        let read_len = input.by_ref().take(MAX_ROW_BYTES + 2).read_until(b'\n', &mut bytes)?;
        if read_len == 0 {
            return Ok(true);
        }
        let row = match bytes.strip_suffix(b"\n") {
            Some(row) => row.strip_suffix(b"\r").unwrap_or(row),
            None => &bytes,
        };
        let is_too_long = row.len() as u64 > MAX_ROW_BYTES;
        if is_too_long && !bytes.ends_with(b"\n") {
            // The rest of the line is still unread.
            input.skip_until(b'\n')?;
        }
        let item = match str::from_utf8(row.trim_ascii_end()) {
            _ if is_too_long => {
                let detail = format!("The line has more than {} MiB.", MAX_ROW_BYTES >> 20);
                reader.unreadable(place, Some(line_number), detail)
            }
            Ok("") => continue,
            Ok(text) => parse(text, line_number),
            Err(_) => reader.unreadable(place, Some(line_number), "The line is not UTF-8.".into()),
        };
        if !sink(item) {
            return Ok(false);
        }
    }
}
