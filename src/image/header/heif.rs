//! Reads the header of a HEIF file (ISO/IEC 14496-12 and 23008-12): what HEIC is kept in.
//!
//! Nothing is decoded. What would make the decoder work without end, panic, or leave out what changes
//! the picture is refused here, before a process is started for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Seek, SeekFrom},
};

use image_rs::metadata::Orientation;

use self::{
    boxes::{Fields, top_level},
    meta::{Location, MAX_ITEMS, Meta},
};
use super::{
    Fault::{self, Damaged},
    Header, Reader, Unsupported,
};

mod boxes;
mod meta;
#[cfg(test)]
mod tests;

/// Width and height in pixels, neither of them zero.
type Size = (u32, u32);

/// How much larger than the picture, along each side, its transparency may be: what an encoder pads.
const PADDING: u32 = 64;

/// What a HEIC's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Heif {
    /// As it is shown: cut, turned and mirrored.
    pub(in crate::image) size: Size,
    /// Before that.
    pub(in crate::image) coded: Size,
    /// Of one HEVC stream: of a tile, or of the picture itself.
    pub(in crate::image) stream: Size,
    pub(in crate::image) is_grid: bool,
    /// Cut, turned or mirrored: the decoder makes a second copy of the pixels.
    pub(in crate::image) is_turned: bool,
    pub(in crate::image) alpha: Alpha,
    /// 0: grey, 1: 4:2:0, 2: 4:2:2, 3: 4:4:4.
    pub(in crate::image) chroma: u8,
    /// Where the last whole box ends; what follows makes the decoder refuse the file.
    pub(in crate::image) end: u64,
}

/// Whether there is transparency, and whether the colours were multiplied by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Alpha {
    None,
    Straight,
    Premultiplied,
}

impl Heif {
    /// What the header of any format says: the decoder turns it.
    pub(super) fn header(&self) -> Result<Header, Fault> {
        let (width, height) = self.size;
        let header = Header::new(width, height, Orientation::NoTransforms).ok_or(Damaged)?;
        Ok(Header { pixels: self.largest(), ..header })
    }

    /// The pixels that are decoded.
    pub(in crate::image) fn pixels(&self) -> u64 {
        pixels(self.coded)
    }

    /// The pixels of one HEVC stream, with what an encoder pads.
    pub(in crate::image) fn padded_stream(&self) -> u64 {
        let (width, height) = self.stream;
        let padded = |side: u32| u64::from(side) + u64::from(PADDING);
        padded(width).saturating_mul(padded(height))
    }

    /// The pixels of the largest thing that is decoded.
    fn largest(&self) -> u64 {
        self.pixels().max(pixels(self.stream))
    }
}

fn pixels((width, height): Size) -> u64 {
    u64::from(width) * u64::from(height)
}

fn kind(what: &'static str) -> Fault {
    Fault::Unsupported(Unsupported::Kind(what))
}

/// Reads the header of the picture that the file names as its primary one.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Heif, Fault> {
    let (meta, end) = top_level(reader)?;
    let meta = Meta::parse(&meta).ok_or(Damaged)?;
    let primary = Part::read(reader, &meta, meta.primary)?;
    let (size, is_turned) = shown(&meta, meta.primary, primary.coded)?;
    let Part { coded, stream, is_grid, chroma, .. } = primary;
    let alpha = alpha(reader, &meta, &primary)?;
    Ok(Heif { size, coded, stream, is_grid, is_turned, alpha, chroma, end })
}

/// A picture inside of the file.
struct Part {
    coded: Size,
    stream: Size,
    is_grid: bool,
    chroma: u8,
    /// The picture itself, and its tiles.
    items: BTreeSet<u32>,
}

impl Part {
    fn read(reader: &mut Reader, meta: &Meta<'_>, item: u32) -> Result<Self, Fault> {
        let is_grid = match meta.kind(item).ok_or(Damaged)? {
            b"hvc1" => false,
            b"grid" => true,
            other => return Err(other_kind(other)),
        };
        let coded = meta.size(item).ok_or(Damaged)?;
        let mut items =
            if is_grid { tiles(reader, meta, item, coded)? } else { BTreeSet::from([item]) };
        let (mut stream, mut chroma) = (coded, 0);
        for item in &items {
            stream = meta.size(*item).ok_or(Damaged)?;
            // ISO/IEC 14496-15, 8.3.2.1.
            let configuration = meta.property(*item, b"hvcC").ok_or(Damaged)?;
            chroma = chroma.max(configuration.get(16).ok_or(Damaged)? & 3);
        }
        items.insert(item);
        Ok(Self { coded, stream, is_grid, chroma, items })
    }
}

fn other_kind(kind_of_item: &[u8; 4]) -> Fault {
    kind(match kind_of_item {
        b"av01" => return Fault::Unsupported(Unsupported::Avif),
        b"hev1" => "a HEIC picture of the kind hev1",
        b"iovl" => "a HEIC picture that overlays others (iovl)",
        b"iden" => "a HEIC picture that is made from another one (iden)",
        b"grid" => "a HEIC picture whose grid is made of grids",
        b"jpeg" => "a HEIF file with a JPEG in it",
        b"j2k1" => "a HEIF file with a JPEG 2000 in it",
        b"avc1" => "a HEIF file with an H.264 picture in it",
        b"vvc1" => "a HEIF file with an H.266 picture in it",
        b"unci" => "a HEIF file with an uncompressed picture in it",
        _ => "a HEIF file with a picture of an unknown kind in it",
    })
}

/// The tiles of a grid, if they are of one size and cover it with none to spare: the decoder panics at
/// a part that is not covered, and decodes all tiles, wherever they lie.
fn tiles(
    reader: &mut Reader,
    meta: &Meta<'_>,
    grid: u32,
    coded: Size,
) -> Result<BTreeSet<u32>, Fault> {
    let (rows, columns, size) = layout(reader, meta, grid)?;
    let tiles: Vec<u32> = meta.references(b"dimg", grid).ok_or(Damaged)?;
    let is_whole = u32::try_from(tiles.len()) == Ok(rows * columns) && tiles.len() <= MAX_ITEMS;
    let (width, height) =
        tiles.first().and_then(|first| meta.size(*first)).filter(|_| is_whole).ok_or(Damaged)?;
    let covering = (coded.0.div_ceil(width), coded.1.div_ceil(height));
    if size != coded || covering != (columns, rows) {
        return Err(Damaged);
    }
    let tiles = BTreeSet::from_iter(tiles);
    for tile in &tiles {
        match meta.kind(*tile).ok_or(Damaged)? {
            b"hvc1" => {}
            other => return Err(other_kind(other)),
        }
        let size = meta.size(*tile).ok_or(Damaged)?;
        let (shown, _) = shown(meta, *tile, size)?;
        if size != (width, height) || shown != size {
            return Err(Damaged);
        }
    }
    Ok(tiles)
}

/// Rows, columns and size of a grid (ISO/IEC 23008-12, 6.6.2.3.2).
fn layout(reader: &mut Reader, meta: &Meta<'_>, grid: u32) -> Result<(u32, u32, Size), Fault> {
    const IN_FILE: u64 = 0;
    const IN_META: u64 = 1;
    let Location { method, start, length } = meta.location(grid).ok_or(Damaged)?;
    let mut data = [0; 12];
    let length = usize::try_from(length).ok().filter(|len| *len > 0).unwrap_or(data.len());
    let length = length.min(data.len());
    match method {
        IN_FILE => {
            let read = reader
                .seek(SeekFrom::Start(start))
                .and_then(|_| reader.read_exact(&mut data[..length]));
            read.map_err(|_| Damaged)?;
        }
        IN_META => {
            let kept = usize::try_from(start).ok().and_then(|at| meta.idat.get(at..));
            let kept = kept.ok_or(Damaged)?;
            let length = length.min(kept.len());
            data[..length].copy_from_slice(&kept[..length]);
        }
        _ => return Err(kind("a HEIC picture whose grid lies in another item")),
    }
    let mut fields = Fields(&data);
    let mut fields = || {
        let (_version, flags) = (fields.number(1)?, fields.number(1)?);
        let (rows, columns) = (fields.number(1)? + 1, fields.number(1)? + 1);
        let length = if flags & 1 == 1 { 4 } else { 2 };
        Some((rows, columns, (fields.number(length)?, fields.number(length)?)))
    };
    fields().ok_or(Damaged)
}

/// The size of a picture as it is shown, and whether it is cut, turned or mirrored, which is done in
/// the order of its properties.
fn shown(meta: &Meta<'_>, item: u32, coded: Size) -> Result<(Size, bool), Fault> {
    let (mut size, mut is_turned) = (coded, false);
    for (is_essential, name, body) in meta.properties(item) {
        match name {
            b"clap" => {
                size = aperture(body, size).ok_or(Damaged)?;
                is_turned = true;
            }
            b"irot" => {
                let quarters = body.first().ok_or(Damaged)? & 3;
                if quarters % 2 == 1 {
                    size = (size.1, size.0);
                }
                is_turned |= quarters > 0;
            }
            b"imir" => is_turned = true,
            b"hvcC" | b"ispe" | b"colr" | b"pixi" | b"pasp" | b"auxC" => {}
            // The decoder would leave it out, and the picture would be another one.
            _ if is_essential => {
                return Err(kind("a HEIC picture with an essential property that is not known"));
            }
            _ => {}
        }
    }
    Ok((size, is_turned))
}

/// What a clean aperture leaves (ISO/IEC 14496-12, 12.1.4.2), rounded as the decoder does.
fn aperture(clap: &[u8], (width, height): Size) -> Option<Size> {
    let fraction = |at: usize, is_signed: bool| {
        let mut fields = Fields(clap.get(at..)?);
        let (above, below) = (fields.number(4)?, fields.number(4)?);
        let above = if is_signed { f64::from(above.cast_signed()) } else { f64::from(above) };
        (below > 0).then(|| above / f64::from(below))
    };
    let side = |at: usize, side: u32| {
        let (kept, offset) = (fraction(at, false)?, fraction(at + 16, true)?);
        let centre = offset + (f64::from(side) - 1.0) / 2.0;
        let start = (centre - (kept - 1.0) / 2.0).round().max(0.0) as u32;
        let left = (kept.round() as u32).min(side.saturating_sub(start));
        (left > 0).then_some(left)
    };
    Some((side(0, width)?, side(8, height)?))
}

/// The transparency that the picture, or a tile of it, has: a picture of its own, which is held to the
/// same rules, for it is decoded as well.
fn alpha(reader: &mut Reader, meta: &Meta<'_>, picture: &Part) -> Result<Alpha, Fault> {
    const NAMES: [&[u8]; 2] =
        [b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"];
    let is_alpha = |item| {
        meta.properties(item).filter(|(_, name, _)| *name == b"auxC").any(|(_, _, body)| {
            let name = body.get(4..).unwrap_or_default();
            NAMES.contains(&name.split(|byte| *byte == 0).next().unwrap_or_default())
        })
    };
    let (mut sizes, mut grids) = (BTreeMap::new(), 0);
    for (alpha, of) in meta.auxiliaries() {
        let of: Vec<u32> = of.filter(|item| picture.items.contains(item)).collect();
        if of.is_empty() || !is_alpha(alpha) {
            continue;
        }
        let (alpha_width, alpha_height) = match sizes.get(&alpha) {
            Some(size) => *size,
            None => {
                let part = Part::read(reader, meta, alpha)?;
                let (_, is_turned) = shown(meta, alpha, part.coded)?;
                // The decoder turns it by itself, and with the grid once more.
                if is_turned && picture.is_grid && of.contains(&meta.primary) {
                    return Err(kind("a HEIC picture in tiles whose transparency is turned"));
                }
                grids += usize::from(part.is_grid);
                if grids > 1 {
                    return Err(kind("a HEIC picture with several grids of transparency"));
                }
                *sizes.entry(alpha).or_insert(part.coded)
            }
        };
        for item in of {
            let (width, height) = meta.size(item).ok_or(Damaged)?;
            let fits =
                |alpha: u32, side: u32| (side..=side.saturating_add(PADDING)).contains(&alpha);
            if !fits(alpha_width, width) || !fits(alpha_height, height) {
                return Err(kind("a HEIC picture with transparency of another size"));
            }
        }
    }
    let is_premultiplied = || picture.items.iter().any(|item| meta.is_premultiplied(*item));
    Ok(match sizes.len() {
        0 => Alpha::None,
        _ if is_premultiplied() => Alpha::Premultiplied,
        _ => Alpha::Straight,
    })
}
