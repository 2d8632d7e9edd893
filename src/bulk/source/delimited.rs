//! Reads CSV and TSV. The first row contains the names of the fields.

use std::io::{self, Read};

use super::{
    super::{item::ItemReader, json_object::string},
    Sink,
    limited::Limited,
};

/// Reads the rows, and turns each into a JSON object of strings. `place` is the list's path, for
/// messages.
/// Returns whether the sink wants more items.
///
/// # Errors
/// The list cannot be read to its end, a row is too long, or the first row is not UTF-8 or contains a name
/// twice.
pub(super) fn read(
    input: impl Read,
    delimiter: u8,
    place: &str,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> io::Result<bool> {
    let (input, allowance) = Limited::new(input);
    let mut rows = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(input);
    // The names as JSON strings.
    let names: Vec<String> = rows.headers()?.iter().map(string).collect();
    if let Some((_, name)) = names.iter().enumerate().find(|(n, name)| names[..*n].contains(name)) {
        let detail = format!("the first row contains {name} twice");
        return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
    }
    let mut row = csv::StringRecord::new();
    loop {
        allowance.renew(); // the limit on bytes applies to each row
        let line = rows.position().line();
        let item = match rows.read_record(&mut row) {
            Ok(false) => return Ok(true),
            Ok(true) => {
                let members: Vec<_> = names
                    .iter()
                    .zip(&row)
                    .map(|(name, value)| format!("{name}:{}", string(value)))
                    .collect();
                reader.object(&format!("{{{}}}", members.join(",")), place, line)
            }
            Err(error) if error.is_io_error() => return Err(error.into()),
            Err(error) => {
                let detail = match error.kind() {
                    csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                        format!("The row has {len} fields instead of {expected_len}.")
                    }
                    _ => "The row is not UTF-8.".to_owned(),
                };
                reader.unreadable(place, Some(line), detail)
            }
        };
        if !sink(item) {
            return Ok(false);
        }
    }
}
