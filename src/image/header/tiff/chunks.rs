//! The strips or tiles that a picture is cut into (TIFF 6.0, sections 3 and 15).

use super::{
    Directory, Fault, ROWS_PER_STRIP, STRIP_BYTE_COUNTS, STRIP_OFFSETS, TILE_BYTE_COUNTS,
    TILE_LENGTH, TILE_OFFSETS, TILE_WIDTH, Values, side, unsupported,
};

/// How many there may be.
const MAX_CHUNKS: u64 = 1 << 16;

/// The strips or tiles that a picture is cut into: row by row and, where each sample has a plane of its
/// own, plane by plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Chunks {
    /// In pixels; the last ones may reach beyond the picture.
    pub(in crate::image) width: u32,
    pub(in crate::image) height: u32,
    pub(in crate::image) across: u32,
    pub(in crate::image) down: u32,
    pub(in crate::image) planes: u64,
    pub(in crate::image) offsets: Values,
    pub(in crate::image) lengths: Option<Values>,
}

impl Chunks {
    pub(super) fn read(
        directory: &mut Directory,
        (width, height): (u32, u32),
        planes: u64,
    ) -> Result<Self, Fault> {
        let is_tiled = directory.values(TILE_WIDTH).is_some();
        let (chunk_width, chunk_height) = if is_tiled {
            (directory.first(TILE_WIDTH, 0)?, directory.first(TILE_LENGTH, 0)?)
        } else {
            let rows = directory.first(ROWS_PER_STRIP, height.into())?;
            (width.into(), rows.min(height.into()))
        };
        let (chunk_width, chunk_height) = (side(chunk_width)?, side(chunk_height)?);
        let (across, down) = (width.div_ceil(chunk_width), height.div_ceil(chunk_height));
        // Tiles may stand in the strips' tags, as libtiff knows.
        let either = |tile, strip| directory.values(tile).or(directory.values(strip));
        let offsets = either(TILE_OFFSETS, STRIP_OFFSETS).ok_or(Fault::Damaged)?;
        let lengths = either(TILE_BYTE_COUNTS, STRIP_BYTE_COUNTS);
        let count = (u64::from(across) * u64::from(down)).saturating_mul(planes);
        if count > MAX_CHUNKS {
            return Err(unsupported("a TIFF in more than 65,536 strips or tiles"));
        }
        let is_short = |values: &Values| values.count < count;
        let is_absurd = |values: Values| values.count > MAX_CHUNKS;
        if is_short(&offsets) || is_absurd(offsets) || lengths.is_some_and(is_absurd) {
            return Err(Fault::Damaged);
        }
        // A table that is too short tells nothing.
        let lengths = lengths.filter(|lengths| !is_short(lengths));
        Ok(Self {
            width: chunk_width,
            height: chunk_height,
            across,
            down,
            planes,
            offsets,
            lengths,
        })
    }

    /// How many there are.
    pub(in crate::image) fn count(&self) -> u64 {
        u64::from(self.across) * u64::from(self.down) * self.planes
    }
}
