//! Finds the columns of a Parquet file for the fields that `embed` copied from the source to its rows. The
//! fields that `embed` adds itself are not among them. Every name of a copied field, in any row, becomes
//! a column. The columns are in the order in which the names first occur. The rows are read twice: first
//! for the names, then for the values.

use std::{borrow::Cow, collections::HashMap};

use serde_json::value::RawValue;

use super::{
    super::json_object::{self, Member},
    ExportError,
};

/// The most columns. Each one needs memory while a file is written.
const MAX_COLUMNS: usize = 1000;

/// The most bytes of all names together.
const MAX_NAME_BYTES: usize = 1 << 20;

/// The columns for the copied fields.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub names: Vec<String>,
    /// The index of each name in `names`.
    positions: HashMap<String, usize>,
    /// The bytes of all names together.
    name_bytes: usize,
}

impl Columns {
    /// Adds the names of a row that are not among the columns yet.
    ///
    /// # Errors
    /// There are too many names, or they are too long together.
    pub(super) fn add_all(&mut self, members: &[Member<'_>]) -> Result<(), ExportError> {
        members.iter().try_for_each(|(name, _)| self.add(name))
    }

    fn add(&mut self, name: &str) -> Result<(), ExportError> {
        if self.positions.contains_key(name) {
            return Ok(());
        }
        self.name_bytes += name.len();
        if self.names.len() == MAX_COLUMNS || self.name_bytes > MAX_NAME_BYTES {
            let detail = format!(
                "the rows have more than {MAX_COLUMNS} different fields, or the names of these fields \
                 have more than {MAX_NAME_BYTES} bytes together"
            );
            return Err(ExportError::Columns(detail));
        }
        self.positions.insert(name.to_owned(), self.names.len());
        self.names.push(name.to_owned());
        Ok(())
    }

    /// The text for each column, or `None` if the row lacks the field or has null. If a row has a name
    /// twice, the last value counts, as in most readers of JSON.
    ///
    /// # Errors
    /// A name that is not among the columns.
    pub(super) fn cells<'a>(
        &self,
        members: &[Member<'a>],
    ) -> Result<Vec<Option<Cow<'a, str>>>, String> {
        let mut values = vec![None; self.names.len()];
        for (name, value) in members {
            let position = self.positions.get(&**name);
            let position = position.ok_or_else(|| {
                format!(
                    "the field {name:?} was not there before: another program has changed the file \
                     during the export"
                )
            })?;
            values[*position] = Some(*value);
        }
        Ok(values.into_iter().map(|value| value.and_then(text)).collect())
    }
}

/// The text of a value: the content of a string, or the unchanged JSON of any other value. `None` for
/// null.
fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let json = value.get();
    match json.as_bytes() {
        b"null" => None,
        // A JSON string can contain a lone surrogate, which a Rust string cannot. Then the JSON itself is
        // the text.
        [b'"', ..] => Some(json_object::as_string(value).map_or(json.into(), Cow::Owned)),
        _ => Some(json.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text for a column whose field has this value.
    fn cell(json: &str) -> Option<String> {
        let object = format!("{{\"a\": {json}}}");
        let mut columns = Columns::default();
        columns.add("a").unwrap();
        let cells = columns.cells(&json_object::members(&object).unwrap()).unwrap();
        cells[0].as_deref().map(ToOwned::to_owned)
    }

    #[test]
    fn a_cell_is_the_content_of_a_string_or_the_unchanged_text_of_another_value() {
        for (json, expected) in [
            (r#""a \"b\"\n\u00e9\ud83d\ude80""#, "a \"b\"\né🚀"),
            (r#""""#, ""),
            (r#""null""#, "null"),
            ("12345678901234567890.10", "12345678901234567890.10"),
            ("-1E+5", "-1E+5"),
            ("true", "true"),
            (r#"{"b": [1.0, null , "c"]}"#, r#"{"b": [1.0, null , "c"]}"#),
            // A lone surrogate: the JSON stays, with its quotes.
            (r#""half \ud83d""#, r#""half \ud83d""#),
        ] {
            assert_eq!(cell(json).as_deref(), Some(expected), "{json}");
        }
        assert_eq!(cell("null"), None);
    }

    #[test]
    fn the_last_of_equal_names_counts_and_an_unknown_name_is_an_error() {
        let mut columns = Columns::default();
        ["b", "a", "b"].iter().try_for_each(|name| columns.add(name)).unwrap();
        assert_eq!(columns.names, ["b", "a"]);
        let cells = |text: &str| {
            columns.cells(&json_object::members(text).unwrap()).map(|cells| {
                cells.into_iter().map(|cell| cell.map(Cow::into_owned)).collect::<Vec<_>>()
            })
        };
        assert_eq!(cells(r#"{"a": 1, "a": "x"}"#).unwrap(), [None, Some("x".into())]);
        assert_eq!(cells(r#"{"a": 1, "a": null}"#).unwrap(), [None, None]);
        assert!(cells(r#"{"c": 1}"#).unwrap_err().contains("\"c\""));
    }

    #[test]
    fn the_number_of_columns_and_the_length_of_their_names_are_limited() {
        let mut columns = Columns::default();
        (0..MAX_COLUMNS).try_for_each(|n| columns.add(&n.to_string())).unwrap();
        columns.add("0").unwrap(); // known, so this adds no column
        assert!(columns.add("one more").is_err());
        let mut columns = Columns::default();
        columns.add(&"a".repeat(MAX_NAME_BYTES)).unwrap();
        assert!(columns.add("b").is_err());
    }
}
