//! Reads the header of a HEIF file (ISO/IEC 14496-12 and 23008-12), the container format of HEIC.
//!
//! A file is refused if the decoder would run for ever, panic, or ignore a property that changes
//! the picture.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Seek, SeekFrom},
};

use image_rs::metadata::Orientation;

use self::{
    boxes::{Fields, read_meta_box},
    meta::{Location, MAX_ENTRIES, Meta},
};
use super::{
    Header,
    HeaderError::{self, Damaged},
    Reader, Unsupported,
};

mod boxes;
mod meta;
#[cfg(test)]
mod tests;

/// Width and height in pixels. Neither is zero.
type Size = (u32, u32);

/// The most pixels that an encoder adds to a side of an HEVC stream as padding.
const MAX_PADDING: u32 = 64;

/// The header of a HEIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Heif {
    /// The size of the picture after it is cropped, turned and mirrored.
    pub(in crate::image) size: Size,
    /// The size of the decoded picture, before it is cropped, turned and mirrored.
    pub(in crate::image) coded_size: Size,
    /// The size of one HEVC stream. In a grid, it is the size of a tile. Otherwise it is
    /// `coded_size`.
    pub(in crate::image) stream_size: Size,
    /// Whether the picture is a grid: it consists of tiles.
    pub(in crate::image) is_grid: bool,
    /// Whether the picture is cropped, turned or mirrored. The decoder then makes a second copy of
    /// the pixels.
    pub(in crate::image) is_transformed: bool,
    pub(in crate::image) alpha: Alpha,
    /// The chroma format. 0: grey, 1: 4:2:0, 2: 4:2:2, 3: 4:4:4. In a grid, the highest of its tiles.
    pub(in crate::image) chroma: u8,
    /// The offset where the last complete box ends. The decoder refuses files with anything after
    /// this offset, so it gets only the bytes before it.
    pub(in crate::image) boxes_end: u64,
}

/// Whether the picture has transparency, and whether its colours are already multiplied by alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Alpha {
    /// No transparency.
    None,
    /// The colours are not multiplied by alpha.
    Straight,
    /// The colours are already multiplied by alpha.
    Premultiplied,
}

impl Heif {
    /// Returns the header in the form that all formats have in common. It contains no orientation,
    /// because the decoder turns the picture.
    pub(super) fn header(&self) -> Result<Header, HeaderError> {
        let (width, height) = self.size;
        let header = Header::new(width, height, Orientation::NoTransforms).ok_or(Damaged)?;
        // A tile may have more pixels than the whole picture.
        Ok(Header { decoded_pixels: self.coded_pixels().max(area(self.stream_size)), ..header })
    }

    /// The number of pixels of the whole picture before it is cropped.
    pub(in crate::image) fn coded_pixels(&self) -> u64 {
        area(self.coded_size)
    }

    /// The number of pixels of one HEVC stream, including the most padding that an encoder adds.
    pub(in crate::image) fn padded_stream_pixels(&self) -> u64 {
        let (width, height) = self.stream_size;
        let padded = |side: u32| u64::from(side) + u64::from(MAX_PADDING);
        padded(width).saturating_mul(padded(height))
    }
}

/// The number of pixels of a picture with this size.
fn area((width, height): Size) -> u64 {
    u64::from(width) * u64::from(height)
}

fn unsupported(kind: &'static str) -> HeaderError {
    HeaderError::Unsupported(Unsupported::Kind(kind))
}

/// Reads the header of the file's primary picture.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Heif, HeaderError> {
    let (meta_box, boxes_end) = read_meta_box(reader)?;
    let meta = Meta::parse(&meta_box).ok_or(Damaged)?;
    let primary = CodedPicture::read(reader, &meta, meta.primary)?;
    let (size, is_transformed) = transformed_size(&meta, meta.primary, primary.coded_size)?;
    let alpha = read_alpha(reader, &meta, &primary)?;
    let CodedPicture { coded_size, stream_size, is_grid, chroma, .. } = primary;
    Ok(Heif { size, coded_size, stream_size, is_grid, is_transformed, alpha, chroma, boxes_end })
}

/// A picture inside of the file: the primary picture, or its transparency.
struct CodedPicture {
    coded_size: Size,
    stream_size: Size,
    is_grid: bool,
    chroma: u8,
    /// The item of the picture itself, and the items of its tiles.
    items: BTreeSet<u32>,
}

impl CodedPicture {
    fn read(reader: &mut Reader, meta: &Meta<'_>, item: u32) -> Result<Self, HeaderError> {
        let is_grid = match meta.kind(item).ok_or(Damaged)? {
            b"hvc1" => false, // one HEVC stream
            b"grid" => true,
            kind => return Err(unsupported_item(kind)),
        };
        let coded_size = meta.size(item).ok_or(Damaged)?;
        let mut items =
            if is_grid { read_tiles(reader, meta, item, coded_size)? } else { [item].into() };
        let (mut stream_size, mut chroma) = (coded_size, 0);
        for part in &items {
            // All tiles have the same size.
            stream_size = meta.size(*part).ok_or(Damaged)?;
            // The last two bits of byte 16 are the chroma format (ISO/IEC 14496-15, 8.3.2.1).
            let configuration = meta.property(*part, b"hvcC").ok_or(Damaged)?;
            chroma = chroma.max(configuration.get(16).ok_or(Damaged)? & 3);
        }
        items.insert(item);
        Ok(Self { coded_size, stream_size, is_grid, chroma, items })
    }
}

fn unsupported_item(kind: &[u8; 4]) -> HeaderError {
    unsupported(match kind {
        b"av01" => return HeaderError::Unsupported(Unsupported::Avif),
        b"hev1" => "a HEIC picture of the kind hev1",
        b"iovl" => "a HEIC picture that overlays others (iovl)",
        b"iden" => "a HEIC picture that is made from another one (iden)",
        // A grid gets here only as a tile of another grid.
        b"grid" => "a HEIC picture whose grid is made of grids",
        b"jpeg" => "a HEIF file with a JPEG in it",
        b"j2k1" => "a HEIF file with a JPEG 2000 in it",
        b"avc1" => "a HEIF file with an H.264 picture in it",
        b"vvc1" => "a HEIF file with an H.266 picture in it",
        b"unci" => "a HEIF file with an uncompressed picture in it",
        _ => "a HEIF file with a picture of an unknown kind in it",
    })
}

/// Returns the items of a grid's tiles. All tiles must have the same size, and they must cover the
/// picture with no row or column to spare: the decoder panics if a part of the picture is not
/// covered, and it would also decode tiles that lie outside of the picture.
fn read_tiles(
    reader: &mut Reader,
    meta: &Meta<'_>,
    grid: u32,
    coded_size: Size,
) -> Result<BTreeSet<u32>, HeaderError> {
    let layout = read_grid_layout(reader, meta, grid)?;
    let tiles: Vec<u32> = meta.referenced_items(b"dimg", grid).ok_or(Damaged)?;
    if u32::try_from(tiles.len()) != Ok(layout.rows * layout.columns) || tiles.len() > MAX_ENTRIES {
        return Err(Damaged);
    }
    let first_tile = tiles.first().ok_or(Damaged)?;
    let tile_size = meta.size(*first_tile).ok_or(Damaged)?;
    let columns = coded_size.0.div_ceil(tile_size.0);
    let rows = coded_size.1.div_ceil(tile_size.1);
    if layout.size != coded_size || (layout.columns, layout.rows) != (columns, rows) {
        return Err(Damaged);
    }
    // A grid may show one item as several tiles.
    let tiles = BTreeSet::from_iter(tiles);
    for tile in &tiles {
        match meta.kind(*tile).ok_or(Damaged)? {
            b"hvc1" => {}
            kind => return Err(unsupported_item(kind)),
        }
        let size = meta.size(*tile).ok_or(Damaged)?;
        // Transformations of a tile must not change its size.
        let (shown_size, _) = transformed_size(meta, *tile, size)?;
        if size != tile_size || shown_size != size {
            return Err(Damaged);
        }
    }
    Ok(tiles)
}

/// The layout of a grid (ISO/IEC 23008-12, 6.6.2.3.2).
struct GridLayout {
    rows: u32,
    columns: u32,
    /// The width and height as stored: unlike in a [`Size`], they may be zero.
    size: (u32, u32),
}

/// Reads the layout from the data of the grid item.
fn read_grid_layout(
    reader: &mut Reader,
    meta: &Meta<'_>,
    grid: u32,
) -> Result<GridLayout, HeaderError> {
    // The values of `method`.
    const IN_FILE: u64 = 0;
    const IN_META: u64 = 1;
    let Location { method, start, length } = meta.location(grid).ok_or(Damaged)?;
    // Enough for the longest layout. Bytes that the item does not have stay zero.
    let mut data = [0; 12];
    // A length of zero means: up to the end of the file or of `idat` (ISO/IEC 14496-12, 8.11.3).
    let length = usize::try_from(length).ok().filter(|len| *len > 0).unwrap_or(data.len());
    let length = length.min(data.len());
    match method {
        IN_FILE => {
            reader.seek(SeekFrom::Start(start)).map_err(|_| Damaged)?;
            reader.read_exact(&mut data[..length]).map_err(|_| Damaged)?;
        }
        IN_META => {
            let start = usize::try_from(start).map_err(|_| Damaged)?;
            let available = meta.idat.get(start..).ok_or(Damaged)?;
            let length = length.min(available.len());
            data[..length].copy_from_slice(&available[..length]);
        }
        _ => return Err(unsupported("a HEIC picture whose grid lies in another item")),
    }
    let mut fields = Fields(&data);
    let mut parse = || {
        let (_version, flags) = (fields.number(1)?, fields.number(1)?);
        let (rows, columns) = (fields.number(1)? + 1, fields.number(1)? + 1);
        let side_len = if flags & 1 == 1 { 4 } else { 2 }; // bytes for a width or height
        let size = (fields.number(side_len)?, fields.number(side_len)?);
        Some(GridLayout { rows, columns, size })
    };
    parse().ok_or(Damaged)
}

/// Applies those properties of an item that crop, turn or mirror it, in their order. Returns the
/// resulting size, and whether the item is cropped, turned or mirrored at all.
fn transformed_size(
    meta: &Meta<'_>,
    item: u32,
    coded_size: Size,
) -> Result<(Size, bool), HeaderError> {
    let (mut size, mut is_transformed) = (coded_size, false);
    for (is_essential, name, body) in meta.properties(item) {
        match name {
            b"clap" => {
                size = cropped_size(body, size).ok_or(Damaged)?;
                is_transformed = true;
            }
            b"irot" => {
                let quarter_turns = body.first().ok_or(Damaged)? & 3;
                if quarter_turns % 2 == 1 {
                    size = (size.1, size.0);
                }
                is_transformed |= quarter_turns > 0;
            }
            b"imir" => is_transformed = true,
            // These properties do not crop, turn or mirror the picture.
            b"hvcC" | b"ispe" | b"colr" | b"pixi" | b"pasp" | b"auxC" => {}
            // The decoder would ignore this property and return a wrong picture.
            _ if is_essential => {
                return Err(unsupported("a HEIC picture with an unknown essential property"));
            }
            _ => {}
        }
    }
    Ok((size, is_transformed))
}

/// Returns the size after cropping to a clean aperture (ISO/IEC 14496-12, 12.1.4.2). Rounds in the
/// same way as the decoder.
///
/// `clap` contains four fractions of eight bytes each: the width, the height, and the offsets of
/// the cropped picture's centre from the centre of the whole picture.
fn cropped_size(clap: &[u8], (width, height): Size) -> Option<Size> {
    let fraction = |at: usize| {
        let mut fields = Fields(clap.get(at..)?);
        let (numerator, denominator) = (fields.number(4)?, fields.number(4)?);
        (denominator > 0).then_some((numerator, f64::from(denominator)))
    };
    let cropped_side = |length_at: usize, offset_at: usize, side: u32| {
        let (numerator, denominator) = fraction(length_at)?;
        let length = f64::from(numerator) / denominator;
        let (numerator, denominator) = fraction(offset_at)?;
        let offset = f64::from(numerator.cast_signed()) / denominator;
        let centre = offset + (f64::from(side) - 1.0) / 2.0;
        let start = (centre - (length - 1.0) / 2.0).round().max(0.0) as u32;
        let cropped = (length.round() as u32).min(side.saturating_sub(start));
        (cropped > 0).then_some(cropped)
    };
    Some((cropped_side(0, 16, width)?, cropped_side(8, 24, height)?))
}

/// Finds the transparency of the picture and of its tiles. The transparency of an item is stored as
/// another picture in the file, the alpha. The items to which an alpha belongs are its masters. The
/// decoder decodes alphas, too, so they must satisfy the same rules as the picture.
fn read_alpha(
    reader: &mut Reader,
    meta: &Meta<'_>,
    picture: &CodedPicture,
) -> Result<Alpha, HeaderError> {
    const ALPHA_TYPES: [&[u8]; 2] =
        [b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"];
    let is_alpha = |item| {
        meta.properties(item).any(|(_, name, body)| {
            // The type follows the version and the flags, and ends with a zero.
            let rest = body.get(4..).unwrap_or_default();
            let auxiliary_type = rest.split(|byte| *byte == 0).next().unwrap_or_default();
            name == b"auxC" && ALPHA_TYPES.contains(&auxiliary_type)
        })
    };
    // For the item of each alpha: its size before it is transformed, and whether it is transformed.
    let (mut alphas, mut alpha_grid_count) = (BTreeMap::new(), 0);
    for (alpha, masters) in meta.auxiliaries() {
        let masters: Vec<u32> = masters.filter(|item| picture.items.contains(item)).collect();
        if masters.is_empty() || !is_alpha(alpha) {
            continue;
        }
        // Several references may name the same alpha, which is read only once.
        let ((alpha_width, alpha_height), is_transformed) = match alphas.get(&alpha) {
            Some(read) => *read,
            None => {
                let alpha_picture = CodedPicture::read(reader, meta, alpha)?;
                let coded_size = alpha_picture.coded_size;
                let (_, is_transformed) = transformed_size(meta, alpha, coded_size)?;
                alpha_grid_count += usize::from(alpha_picture.is_grid);
                if alpha_grid_count > 1 {
                    return Err(unsupported("a HEIC picture with several grids of transparency"));
                }
                *alphas.entry(alpha).or_insert((coded_size, is_transformed))
            }
        };
        // The decoder would transform this alpha twice: when it decodes the alpha, and when it
        // transforms the whole grid.
        if is_transformed && picture.is_grid && masters.contains(&meta.primary) {
            return Err(unsupported(
                "a tiled HEIC picture whose transparency is cropped, turned or mirrored",
            ));
        }
        for item in masters {
            let (width, height) = meta.size(item).ok_or(Damaged)?;
            // The encoder may have added padding to the alpha.
            let fits = |alpha_side: u32, side: u32| {
                (side..=side.saturating_add(MAX_PADDING)).contains(&alpha_side)
            };
            if !fits(alpha_width, width) || !fits(alpha_height, height) {
                return Err(unsupported("a HEIC picture with transparency of another size"));
            }
        }
    }
    Ok(if alphas.is_empty() {
        Alpha::None
    } else if picture.items.iter().any(|item| meta.is_premultiplied(*item)) {
        Alpha::Premultiplied
    } else {
        Alpha::Straight
    })
}
