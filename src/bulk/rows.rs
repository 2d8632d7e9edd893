//! Reads the lines of the `.jsonl` output, and defines which of them are rows.
//!
//! A run that continues its output, an export and `nearest` all read such a file. All three read it
//! with this module, so they agree which lines are rows.

use std::io::{self, BufRead, BufReader, Read};

use serde_json::value::RawValue;

use super::{
    item::{ADDED_FIELDS, ItemReader},
    json_object::{self, Member},
    source::MAX_ROW_BYTES,
};

/// The most bytes of a line, with its line break. A line contains the JSON object of a row of the source,
/// and a vector of about 30 KB. In a `.csv` source, the values of a row and the names of the columns have at
/// most about 4 MiB each. As JSON, they may be six times as long, because a control character takes six bytes.
const MAX_LINE: usize = 64 << 20;
const _: () = assert!(MAX_LINE as u64 > 12 * MAX_ROW_BYTES + (1 << 20));
/// [`MAX_LINE`] as the type that `Read::take` needs.
const MAX_LINE_U64: u64 = MAX_LINE as u64;

/// How many bytes of the file are read at once.
const READ_BYTES: usize = 1 << 20;

/// How many fields `embed` adds to a row before the vector.
const ADDED_BEFORE_VECTOR: usize = ADDED_FIELDS.len() - 1;

/// The values of the added fields before the vector, in the order of [`ADDED_FIELDS`].
pub(super) type AddedValues<'a> = [&'a RawValue; ADDED_BEFORE_VECTOR];

/// The lines of an output. Only one of them is in memory.
pub(super) struct Lines<R> {
    input: BufReader<R>,
    bytes: Vec<u8>,
    number: u64,
}

/// What was found where the next line begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A line with its line break, or the beginning of a line that is too long. [`Lines::row`] refuses
    /// the latter.
    Line,
    /// The end of the file.
    End,
    /// A last line without a line break. It is not a row: a run was killed while it wrote the line, or is
    /// still writing it.
    IncompleteLine,
}

impl<R: Read> Lines<R> {
    /// The lines of a file, from its current position.
    pub(super) fn new(input: R) -> Self {
        let input = BufReader::with_capacity(READ_BYTES, input);
        Self { input, bytes: Vec::new(), number: 0 }
    }

    /// Reads the next line. Blocks the thread.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn advance(&mut self) -> io::Result<Found> {
        self.bytes.clear();
        let length = self.input.by_ref().take(MAX_LINE_U64).read_until(b'\n', &mut self.bytes)?;
        if length == 0 {
            return Ok(Found::End);
        }
        self.number += 1;
        let is_incomplete = !self.bytes.ends_with(b"\n") && length < MAX_LINE;
        Ok(if is_incomplete { Found::IncompleteLine } else { Found::Line })
    }

    /// The number of the line that was read last, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Parses the line that was read last. Does not parse its vector.
    ///
    /// # Errors
    /// Why the line is not a row.
    pub(super) fn row<'a>(&'a self, reader: &'a ItemReader) -> Result<Row<'a>, String> {
        if self.bytes.len() >= MAX_LINE && !self.bytes.ends_with(b"\n") {
            return Err("it is longer than any row, and does not end with a vector".into());
        }
        let text = str::from_utf8(&self.bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        Row::parse(text, reader)
    }
}

/// A row: the members of the source's object, and then the added fields. The vector is the last field.
#[derive(Debug)]
pub(super) struct Row<'a> {
    text: &'a str,
    reader: &'a ItemReader,
    /// The members of the source's object.
    pub source_members: Vec<Member<'a>>,
    /// The added members before the vector.
    added: Vec<Member<'a>>,
    /// The text of the vector. It ends with a bracket, but was not parsed.
    pub vector: &'a str,
}

impl<'a> Row<'a> {
    fn parse(text: &'a str, reader: &'a ItemReader) -> Result<Self, String> {
        let [first_added, .., vector_field] = ADDED_FIELDS;
        let without_end = text.strip_suffix("}\n").filter(|text| text.ends_with(']'));
        let without_end = without_end.ok_or("it does not end with a vector")?;
        let vector_name = reader.prefixed_name(vector_field);
        let members = json_object::members_before(text, &vector_name);
        let mut members = members.map_err(|error| error.to_string())?;
        // After the members are a comma, the vector's name, a colon, and the vector.
        let rest = json_object::after(without_end, &members).trim_start();
        let vector = rest.strip_prefix(',').and_then(|rest| {
            let rest = rest.trim_start().strip_prefix(&json_object::string(&vector_name))?;
            Some(rest.trim_start().strip_prefix(':')?.trim_start())
        });
        let source_count = position(&members, &reader.prefixed_name(first_added))?;
        let vector = vector.ok_or_else(|| format!("its {vector_name} is not the last field"))?;
        let added = members.split_off(source_count);
        Ok(Self { text, reader, source_members: members, added, vector })
    }

    /// The model that computed the vector.
    ///
    /// # Errors
    /// The row has no model, or one that is not a text.
    pub(super) fn model(&self) -> Result<String, String> {
        let name = self.reader.prefixed_name("model");
        let (_, value) = &self.added[position(&self.added, &name)?];
        json_object::as_string(value).ok_or_else(|| format!("its {name} is not a text"))
    }

    /// The text of the source's object, without the added fields.
    pub(super) fn object(&self) -> String {
        json_object::cut_after(self.text, &self.source_members)
    }

    /// The values of the added fields before the vector.
    ///
    /// # Errors
    /// The added fields are not those of [`ADDED_FIELDS`].
    pub(super) fn added_values(&self) -> Result<AddedValues<'a>, String> {
        let names = ADDED_FIELDS[..ADDED_BEFORE_VECTOR]
            .iter()
            .map(|field| self.reader.prefixed_name(field));
        let values: Vec<_> = self.added.iter().map(|(_, value)| *value).collect();
        match values.try_into() {
            Ok(values) if self.added.iter().map(|(name, _)| &**name).eq(names) => Ok(values),
            _ => Err("its last fields are not those that the command adds".into()),
        }
    }
}

/// The index of the member with this name. The error says that there is none.
fn position(members: &[Member<'_>], name: &str) -> Result<usize, String> {
    let position = members.iter().position(|(known, _)| known == name);
    position.ok_or_else(|| format!("it has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields that the command adds to a row.
    const ADDED: &str =
        r#""sha256":"ab","model":"m","prepared":"jpeg","width":1,"height":2,"vector":[0.5,1]"#;

    fn reader(prefix: &str) -> ItemReader {
        ItemReader { location_field: None, id_field: None, prefix: prefix.into() }
    }

    /// The lines of this text, at the first one.
    fn at_first_line(text: &[u8]) -> Lines<&[u8]> {
        let mut lines = Lines::new(text);
        assert_eq!(lines.advance().unwrap(), Found::Line);
        lines
    }

    /// Why this line is not a row, or why its added fields or its model are refused.
    fn reason(line: impl AsRef<[u8]>) -> String {
        let (lines, reader) = (at_first_line(line.as_ref()), reader(""));
        let check = |row: Row<'_>| row.added_values().and(row.model()).map(|_| ());
        lines.row(&reader).and_then(check).unwrap_err()
    }

    #[test]
    fn lines_are_numbered_and_a_last_line_without_a_break_is_incomplete() {
        let mut lines = Lines::new(&b"a\n\nb"[..]);
        let mut next = || (lines.advance().unwrap(), lines.number());
        assert_eq!(next(), (Found::Line, 1));
        assert_eq!(next(), (Found::Line, 2));
        assert_eq!(next(), (Found::IncompleteLine, 3));
        assert_eq!(next(), (Found::End, 3));
    }

    #[test]
    fn a_line_of_the_longest_length_is_read_and_a_longer_one_is_no_row() {
        let row = |line_length: usize| {
            let line = json_object::append(r#"{"n":""}"#, ADDED) + "\n";
            line.replace(r#""n":"""#, &format!(r#""n":"{}""#, "x".repeat(line_length - line.len())))
        };
        let longest = row(MAX_LINE);
        assert_eq!(longest.len(), MAX_LINE);
        let longest = at_first_line(longest.as_bytes());
        assert_eq!(longest.row(&reader("")).unwrap().source_members.len(), 1);
        assert!(reason(row(MAX_LINE + 1)).contains("longer than any row"));
        // Of a line without an end, no more than `MAX_LINE` is kept in memory.
        let endless = at_first_line(&[b'x'; MAX_LINE + 1000]);
        assert_eq!(endless.bytes.len(), MAX_LINE);
    }

    #[test]
    fn a_row_contains_the_object_of_the_source_then_the_added_fields_then_the_vector() {
        let object = r#"{"path": "a\u00e9.jpg", "model": 7, "n": {"vector": [3]}}"#;
        let line = json_object::append(object, ADDED) + "\n";
        let (lines, reader) = (at_first_line(line.as_bytes()), reader(""));
        let row = lines.row(&reader).unwrap();
        assert_eq!(row.object(), object);
        let source_names = row.source_members.iter().map(|(name, _)| &**name);
        assert!(source_names.eq(["path", "model", "n"]));
        // The added `model` counts, not that of the source. (`embed` refuses such a source without a prefix.)
        assert_eq!(row.model().unwrap(), "m");
        let values = row.added_values().unwrap().map(RawValue::get);
        assert_eq!(values, [r#""ab""#, r#""m""#, r#""jpeg""#, "1", "2"]);
        assert_eq!(row.vector, "[0.5,1]");
    }

    #[test]
    fn with_a_prefix_only_prefixed_fields_count_as_added() {
        let object = r#"{"sha256":"own","vector":[7]}"#;
        // Every name follows a comma, except the first.
        let added = ADDED.replace(",\"", ",\"p_").replace("\"sha256\"", "\"p_sha256\"");
        let line = json_object::append(object, &added) + "\n";
        let (lines, prefixed) = (at_first_line(line.as_bytes()), reader("p_"));
        let row = lines.row(&prefixed).unwrap();
        assert_eq!((row.object().as_str(), row.vector), (object, "[0.5,1]"));
        row.added_values().unwrap();
        assert_eq!(lines.row(&reader("q_")).unwrap_err(), "it has no q_vector");
    }

    #[test]
    fn spaces_are_allowed_up_to_the_end_of_the_vector() {
        let line = "{ \"sha256\" : \"ab\" , \"model\": \"m\" ,\t\"vector\" : [1 , 2 ]}\n";
        let (lines, reader) = (at_first_line(line.as_bytes()), reader(""));
        let row = lines.row(&reader).unwrap();
        assert_eq!((row.vector, row.object().as_str()), ("[1 , 2 ]", "{}"));
    }

    #[test]
    fn a_line_in_another_form_is_no_row_and_the_error_says_why() {
        let good = json_object::append("{}", ADDED) + "\n";
        for (line, expected) in [
            (good.replace("]}", "] }"), "it does not end with a vector"),
            (good.replace("]}\n", "]}\r\n"), "it does not end with a vector"),
            (good.replace("[0.5,1]", "1"), "it does not end with a vector"),
            (good.replace("\"vector\"", "\"vec\""), "it has no vector"),
            (good.replace("\"sha256\"", "\"sha1\""), "it has no sha256"),
            (good.replace("\"model\"", "\"mode\""), "its last fields are not those"),
            (good.replace(",\"width\":1", ""), "its last fields are not those"),
            (good.replace("\"width\":1", "\"width\":1,\"x\":1"), "its last fields are not those"),
            (good.replace("\"m\"", "[\"m\"]"), "its model is not a text"),
            // `embed` writes the vector's name without escapes, so it has not written this line.
            (good.replace("\"vector\"", "\"v\\u0065ctor\""), "its vector is not the last field"),
            (good.replace(":\"ab\"", ":ab"), "expected value"),
            ("\n".into(), "it does not end with a vector"),
        ] {
            assert!(reason(&line).starts_with(expected), "{line}: {}", reason(&line));
        }
        assert_eq!(reason(b"{\"\xff\":1}\n"), "it is not UTF-8");
    }
}
