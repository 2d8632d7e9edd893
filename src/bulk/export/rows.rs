//! Reads the rows of the output one by one, in the memory of one row.

use std::{
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::value::RawValue;

use super::{
    super::{
        item::{ADDED_FIELDS, ItemReader},
        json_object::{self, Member},
    },
    ExportError,
};

/// The longest line. A row of a source has at most 4 MiB, and a vector has about 30 KB.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// An error quotes at most this many characters of an invalid number.
const MAX_QUOTED: usize = 40;

/// How many bytes of the file are read at once.
const READ_BYTES: usize = 1 << 20;

/// The `.jsonl` file.
pub(super) struct RowFile<'a> {
    pub file: &'a File,
    /// Contains the prefix of the added fields' names.
    pub reader: &'a ItemReader,
    /// Reading ends when this becomes true.
    pub is_interrupted: &'a AtomicBool,
}

impl RowFile<'_> {
    /// Calls `take` with each line, from the first to the last. Returns their number.
    ///
    /// # Errors
    /// The first error of `take`, or a line that is not UTF-8, incomplete or too long.
    pub(super) fn for_each(
        &self,
        mut take: impl FnMut(Line<'_>) -> Result<(), ExportError>,
    ) -> Result<u64, ExportError> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(0))?;
        let mut input = BufReader::with_capacity(READ_BYTES, file);
        let mut bytes = Vec::new();
        let mut count = 0;
        while !self.is_interrupted.load(Ordering::Relaxed) {
            bytes.clear();
            if input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(count);
            }
            count += 1;
            let error = |detail: &str| ExportError::Row { line: count, detail: detail.into() };
            if !bytes.ends_with(b"\n") {
                return Err(error("the line is incomplete, or longer than any row"));
            }
            let text = str::from_utf8(&bytes).map_err(|_| error("the line is not UTF-8"))?;
            take(Line { number: count, text, reader: self.reader })?;
        }
        Err(ExportError::Interrupted)
    }
}

/// A line of the file.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    number: u64,
    text: &'a str,
    reader: &'a ItemReader,
}

impl<'a> Line<'a> {
    /// An error in this line.
    pub(super) fn error(&self, detail: impl Into<String>) -> ExportError {
        ExportError::Row { line: self.number, detail: detail.into() }
    }

    /// The source's own fields. Does not read the vector.
    ///
    /// # Errors
    /// The line is not a row of this command.
    #[cfg(feature = "parquet")]
    pub(super) fn own_members(&self) -> Result<Vec<Member<'a>>, ExportError> {
        let [.., vector] = ADDED_FIELDS;
        let members = json_object::members_before(self.text, &self.reader.name(vector));
        let mut members = members.map_err(|error| self.not_a_row(error))?;
        members.truncate(self.count_own(&members)?);
        Ok(members)
    }

    /// The source's own fields, and the values of the added ones in the order of [`ADDED_FIELDS`].
    ///
    /// # Errors
    /// The line is not a row of this command.
    pub(super) fn fields(&self) -> Result<(Vec<Member<'a>>, AddedValues<'a>), ExportError> {
        let members = json_object::members(self.text).map_err(|error| self.not_a_row(error))?;
        let mut own = members;
        let added = own.split_off(self.count_own(&own)?);
        let names = ADDED_FIELDS.map(|field| self.reader.name(field));
        let values: Vec<_> = added.iter().map(|(_, value)| *value).collect();
        match values.try_into() {
            Ok(values) if added.iter().map(|(name, _)| &**name).eq(names) => Ok((own, values)),
            _ => Err(self.not_a_row("its last fields are not those that the command adds")),
        }
    }

    /// The number of members before the first added one.
    fn count_own(&self, members: &[Member<'_>]) -> Result<usize, ExportError> {
        let [first, ..] = ADDED_FIELDS;
        let name = self.reader.name(first);
        let own = members.iter().position(|(known, _)| *known == name);
        own.ok_or_else(|| self.not_a_row(format!("it has no {name}")))
    }

    fn not_a_row(&self, detail: impl Display) -> ExportError {
        self.error(format!("this is not a row of this command: {detail}"))
    }

    /// Appends the numbers of a vector to `numbers`. All vectors must have the same `length`, which the
    /// first vector sets.
    ///
    /// # Errors
    /// The vector has another length, or contains an item that is not a number or not finite as an `f32`.
    pub(super) fn append_vector(
        &self,
        vector: &RawValue,
        length: &mut Option<usize>,
        numbers: &mut Vec<f32>,
    ) -> Result<(), ExportError> {
        let before = numbers.len();
        let list = vector.get().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let list = list.ok_or_else(|| self.error("its vector is not a list"))?;
        // The text is valid JSON. If an item is not a number, the part of it before its first comma does
        // not parse as a number either, so splitting at commas is enough. Parsing the text as `f32` rounds
        // the number once; parsing it as `f64` first would round it twice.
        for text in list.split(',') {
            match text.trim_ascii().parse() {
                Ok(number) if f32::is_finite(number) => numbers.push(number),
                _ => {
                    let text: String = text.trim_ascii().chars().take(MAX_QUOTED).collect();
                    let detail = format!("its vector contains {text:?}, which is no 32-bit number");
                    return Err(self.error(detail));
                }
            }
        }
        let found = numbers.len() - before;
        let expected = *length.get_or_insert(found);
        if found == expected {
            return Ok(());
        }
        Err(self
            .error(format!("its vector has {found} numbers, and the first row's has {expected}")))
    }
}

/// The values of the added fields.
pub(super) type AddedValues<'a> = [&'a RawValue; ADDED_FIELDS.len()];
