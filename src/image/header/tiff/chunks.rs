//! Reads the layout of a TIFF's strips or tiles (TIFF 6.0, sections 3 and 15).

use super::{
    Directory, HeaderError, Position, ROWS_PER_STRIP, STRIP_BYTE_COUNTS, STRIP_OFFSETS,
    TILE_BYTE_COUNTS, TILE_LENGTH, TILE_OFFSETS, TILE_WIDTH, checked_side, unsupported,
};

/// The maximum number of strips or tiles.
const MAX_CHUNKS: u64 = 1 << 16;

/// The layout of a picture's chunks, which are its strips or tiles. The chunks are numbered row by
/// row. If each sample has a plane of its own, all chunks of the first plane come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Chunks {
    /// The width of a chunk in pixels. The last chunk of a row may extend beyond the picture.
    pub(in crate::image) width: u32,
    /// The height of a chunk in pixels. The last chunk of a column may extend beyond the picture.
    pub(in crate::image) height: u32,
    /// The number of chunks in a row.
    pub(in crate::image) across: u32,
    /// The number of chunks in a column.
    pub(in crate::image) down: u32,
    /// The number of planes: one, or one for each sample.
    pub(in crate::image) planes: u64,
    /// The table of the chunks' offsets in the file.
    pub(in crate::image) offsets: Position,
    /// The table of the chunks' lengths in bytes. `None` if the file has no such table, or an
    /// incomplete one.
    pub(in crate::image) lengths: Option<Position>,
}

impl Chunks {
    /// Reads the layout of the chunks. Finds the tables of their offsets and lengths, but does not
    /// read what the tables contain.
    pub(super) fn read(
        directory: &mut Directory,
        (width, height): (u32, u32), // of the picture
        planes: u64,
    ) -> Result<Self, HeaderError> {
        let is_tiled = directory.position(TILE_WIDTH).is_some();
        let (chunk_width, chunk_height) = if is_tiled {
            (directory.first_or(TILE_WIDTH, 0)?, directory.first_or(TILE_LENGTH, 0)?)
        } else {
            let rows = directory.first_or(ROWS_PER_STRIP, height.into())?;
            (width.into(), rows.min(height.into()))
        };
        let (chunk_width, chunk_height) = (checked_side(chunk_width)?, checked_side(chunk_height)?);
        let (across, down) = (width.div_ceil(chunk_width), height.div_ceil(chunk_height));
        // Some writers store the offsets and lengths of tiles in the tags for strips. libtiff
        // accepts this, too.
        let first_present = |tile_tag, strip_tag| {
            directory.position(tile_tag).or_else(|| directory.position(strip_tag))
        };
        let offsets = first_present(TILE_OFFSETS, STRIP_OFFSETS).ok_or(HeaderError::Damaged)?;
        let lengths = first_present(TILE_BYTE_COUNTS, STRIP_BYTE_COUNTS);
        let count = (u64::from(across) * u64::from(down)).saturating_mul(planes);
        if count > MAX_CHUNKS {
            return Err(unsupported("a TIFF in more than 65,536 strips or tiles"));
        }
        let is_incomplete = |table: &Position| table.count < count;
        let is_too_long = |table: Position| table.count > MAX_CHUNKS;
        if is_incomplete(&offsets) || is_too_long(offsets) || lengths.is_some_and(is_too_long) {
            return Err(HeaderError::Damaged);
        }
        let complete_lengths = lengths.filter(|lengths| !is_incomplete(lengths));
        Ok(Self {
            width: chunk_width,
            height: chunk_height,
            across,
            down,
            planes,
            offsets,
            lengths: complete_lengths,
        })
    }

    /// The number of strips or tiles in all planes.
    pub(in crate::image) fn count(&self) -> u64 {
        u64::from(self.across) * u64::from(self.down) * self.planes
    }
}
