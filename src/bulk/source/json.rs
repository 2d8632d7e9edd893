//! Reads a JSON file that contains an array of objects.

use std::io::{self, BufReader, Read};

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    super::item::ItemReader,
    Sink,
    limited::{Allowance, Limited},
};

/// Reads the objects one by one. Returns whether the sink wants more items. `place` is the list's path,
/// for messages.
///
/// # Errors
/// The input cannot be read, is not a JSON array, or contains too large an object.
pub(super) fn read(
    input: impl Read,
    place: &str,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> io::Result<bool> {
    // `Limited` wraps the buffer, so it counts what the deserializer reads, and not what the buffer reads
    // ahead.
    let (input, allowance) = Limited::new(BufReader::new(input));
    let mut json = serde_json::Deserializer::from_reader(input);
    let mut wants_more = true;
    let visitor = ListVisitor { place, reader, sink, allowance, wants_more: &mut wants_more };
    let result = json.deserialize_seq(visitor).and_then(|()| json.end());
    match result {
        // Even if the whole array was read, the sink may want no more items.
        Ok(()) => Ok(wants_more),
        // The rest of the array was not read, which the deserializer reports as an error.
        Err(_) if !wants_more => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads the objects of the array.
struct ListVisitor<'a, 's> {
    place: &'a str,
    reader: &'a ItemReader,
    sink: &'a mut Sink<'s>,
    allowance: Allowance,
    wants_more: &'a mut bool,
}

impl<'de> Visitor<'de> for ListVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(object) = list.next_element::<Box<RawValue>>()? {
            number += 1;
            self.allowance.renew();
            *self.wants_more = (self.sink)(self.reader.object(object.get(), self.place, number));
            if !*self.wants_more {
                break;
            }
        }
        Ok(())
    }
}
