//! Builds TIFF files for tests.

use std::collections::BTreeMap;

use super::*;

// The types of values.
/// A number of 32 bits.
const LONG: u16 = 4;
/// Any byte, as in JPEG tables.
const UNDEFINED: u16 = 7;

/// The offset of the first strip or tile.
const DATA_AT: usize = 16;

/// A TIFF that is built from its tags.
#[derive(Clone)]
pub(in crate::image) struct Crafted {
    tags: BTreeMap<u16, Vec<u64>>,
    is_big_endian: bool,
    is_big_tiff: bool,
}

impl Crafted {
    /// A little-endian TIFF with one uncompressed strip, whose bytes are passed to [`Self::file`]. `bits`
    /// contains the number of bits of each sample of a pixel.
    pub(in crate::image) fn new(size: (u64, u64), photometric: u64, bits: &[u64]) -> Self {
        let crafted = Self { tags: BTreeMap::new(), is_big_endian: false, is_big_tiff: false };
        crafted
            .with(WIDTH, &[size.0])
            .with(HEIGHT, &[size.1])
            .with(BITS_PER_SAMPLE, bits)
            .with(PHOTOMETRIC, &[photometric])
            .with(SAMPLES_PER_PIXEL, &[bits.len() as u64])
            .with(ROWS_PER_STRIP, &[size.1])
    }

    /// Sets the values of a tag. An empty slice has the same effect as [`Self::without`].
    pub(in crate::image) fn with(mut self, tag: u16, values: &[u64]) -> Self {
        self.tags.insert(tag, values.to_vec());
        self
    }

    /// Leaves a tag out of the file, even one that [`Self::file`] would add.
    pub(in crate::image) fn without(self, tag: u16) -> Self {
        self.with(tag, &[])
    }

    pub(in crate::image) fn big_endian(mut self) -> Self {
        self.is_big_endian = true;
        self
    }

    pub(in crate::image) fn big_tiff(mut self) -> Self {
        self.is_big_tiff = true;
        self
    }

    /// Returns the bytes of the file, with these strips or tiles. Adds the two tags with the offsets and the
    /// lengths of the strips or tiles, unless [`Self::with`] has set them.
    pub(in crate::image) fn file(&self, chunks: &[&[u8]]) -> Vec<u8> {
        // Encodes a number in `len` bytes.
        let number = |value: u64, len: usize| {
            if self.is_big_endian {
                value.to_be_bytes()[8 - len..].to_vec()
            } else {
                value.to_le_bytes()[..len].to_vec()
            }
        };
        // The number of bytes that encode an offset. A count of values has as many.
        let offset_len = if self.is_big_tiff { 8 } else { 4 };
        let mut tags = self.tags.clone();
        let is_tiled = tags.contains_key(&TILE_WIDTH);
        let (offsets_tag, lengths_tag) = if is_tiled {
            (TILE_OFFSETS, TILE_BYTE_COUNTS)
        } else {
            (STRIP_OFFSETS, STRIP_BYTE_COUNTS)
        };
        let mut file = if self.is_big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        file.extend(number(if self.is_big_tiff { 43 } else { 42 }, 2));
        if self.is_big_tiff {
            // BigTIFF stores the length of its offsets, and a zero.
            file.extend([number(offset_len as u64, 2), number(0, 2)].concat());
        }
        let directory_at = DATA_AT + chunks.iter().map(|chunk| chunk.len()).sum::<usize>();
        file.extend(number(directory_at as u64, offset_len));
        file.resize(DATA_AT, 0);
        let mut chunk_offsets = Vec::new();
        for chunk in chunks {
            chunk_offsets.push(file.len() as u64);
            file.extend(*chunk);
        }
        let chunk_lengths = chunks.iter().map(|chunk| chunk.len() as u64).collect();
        tags.entry(offsets_tag).or_insert(chunk_offsets);
        tags.entry(lengths_tag).or_insert(chunk_lengths);
        tags.retain(|_, values| !values.is_empty());

        file.extend(number(tags.len() as u64, if self.is_big_tiff { 8 } else { 2 }));
        // Values that do not fit into their entry follow the directory.
        let entry_len = 4 + 2 * offset_len;
        let mut next_value_at = file.len() + tags.len() * entry_len + offset_len;
        let mut long_values = Vec::new();
        for (tag, values) in tags {
            let (kind, len) = if tag == JPEG_TABLES { (UNDEFINED, 1) } else { (LONG, 4) };
            let mut bytes: Vec<u8> = values.iter().flat_map(|value| number(*value, len)).collect();
            file.extend([number(tag.into(), 2), number(kind.into(), 2)].concat());
            file.extend(number(values.len() as u64, offset_len));
            if bytes.len() <= offset_len {
                bytes.resize(offset_len, 0);
                file.extend(bytes);
            } else {
                file.extend(number(next_value_at as u64, offset_len));
                next_value_at += bytes.len();
                long_values.extend(bytes);
            }
        }
        file.extend(vec![0; offset_len]); // there is no next directory
        file.extend(long_values);
        file
    }
}
