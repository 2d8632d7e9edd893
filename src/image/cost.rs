//! How much memory decoding a picture takes, told from its header alone.
//!
//! No decoder is opened to find out: some read the whole file, inflate profiles or expand tables
//! before they tell anything, and nothing is reserved yet. The figures are those of the decoders
//! that [`super::pixels`] uses, on the high side.

use std::io::{BufRead, Read, Seek, SeekFrom};

use super::{Error, Format, Picture, Reader};

/// What a decoder may take for profiles, text and tables, whatever the picture's size, in bytes.
const METADATA: u64 = 8 << 20;

/// Turning upright takes a second copy of the pixels, in bytes a pixel.
const TURNED: u64 = 3;

/// Encoding holds the pixels, in what was four bytes for each, and an output that noise makes
/// large, in bytes a pixel.
const ENCODING: u64 = 7;

/// The memory that decoding and encoding anew take at their peak, in bytes. Blocks.
///
/// # Errors
/// [`Error::BadHeader`] when the header makes no sense or claims absurd tables.
pub fn decode_cost(picture: &Picture) -> Result<u64, Error> {
    let reader = &mut picture.content.reader();
    let per_pixel = match picture.format {
        Format::Jpeg => jpeg(reader),
        Format::Png => png(reader),
        Format::WebP => webp(reader),
        // The canvas, a frame of it, and the frame's indices.
        Format::Gif => Some(4 + 5),
        Format::Bmp => Some(4 + TURNED),
        Format::Tiff => tiff(reader),
    };
    let per_pixel = per_pixel.ok_or(Error::BadHeader(picture.format))?.max(ENCODING);
    Ok(picture.pixels() * per_pixel + picture.content.len() + METADATA)
}

/// A picture that comes in several scans is held as 16-bit coefficients of each component. The
/// frame header tells the components, the first scan's header whether it has them all
/// (ITU-T T.81, B.2.2 and B.2.3).
fn jpeg(reader: &mut Reader) -> Option<u64> {
    const SCANS: u64 = 3 + 2 * 4;
    let mut components = None;
    reader.seek(SeekFrom::Start(2)).ok()?;
    loop {
        let mut head = [0; 4];
        if reader.read_exact(&mut head).is_err() || head[0] != 0xff {
            // The probe did find a frame header; where, is not understood here. The worst is assumed.
            return Some(SCANS);
        }
        let rest = i64::from(u16::from_be_bytes([head[2], head[3]])) - 2;
        match head[1] {
            // Progressive: SOF2, SOF6, SOF10, SOF14.
            0xc2 | 0xc6 | 0xca | 0xce => return Some(SCANS),
            0xc0..=0xcf if !matches!(head[1], 0xc4 | 0xc8 | 0xcc) => {
                let mut frame = [0; 6];
                reader.read_exact(&mut frame).ok()?;
                components = Some(frame[5]);
                reader.seek(SeekFrom::Current(rest - 6)).ok()?;
            }
            0xda => {
                let in_scan = reader.fill_buf().ok()?.first().copied();
                let is_whole = components.is_some() && in_scan == components;
                return Some(if is_whole { 3 + TURNED } else { SCANS });
            }
            _ => {
                reader.seek(SeekFrom::Current(rest)).ok()?;
            }
        }
    }
}

/// Bit depth and colour type are bytes 24 and 25 (PNG specification, 11.2.1).
fn png(reader: &mut Reader) -> Option<u64> {
    let mut head = [0; 26];
    reader.read_exact(&mut head).ok()?;
    match head[24] {
        16 => Some(8 + 4), // and the same in 8 bits
        1..=8 => Some(4 + TURNED),
        _ => None,
    }
}

/// The kind of WebP stands in the first chunk's name and, if that is `VP8X`, in its flags
/// (<https://developers.google.com/speed/webp/docs/riff_container>).
fn webp(reader: &mut Reader) -> Option<u64> {
    const ANIMATED: u8 = 0b10;
    let mut head = [0; 21];
    reader.read_exact(&mut head).ok()?;
    match &head[12..16] {
        b"VP8 " => Some(3 + 3 + TURNED),
        b"VP8L" => Some(4 + 4 + TURNED),
        b"VP8X" if head[20] & ANIMATED != 0 => Some(15),
        b"VP8X" => Some(11),
        _ => None,
    }
}

/// Reads the first directory's tags that tell the pixels' size, and refuses tables that no
/// picture needs: the decoder would expand them (TIFF 6.0, section 2; BigTIFF).
fn tiff(reader: &mut Reader) -> Option<u64> {
    const MAX_STRIPS: u64 = 1 << 16;
    const JPEG: u64 = 7;
    let tiff = &mut Tiff::open(reader)?;
    let (mut bits, mut samples, mut compression) = (1, 1, 1);
    for _ in 0..tiff.entries()? {
        let entry = tiff.entry()?;
        match entry.tag {
            258 => bits = tiff.first_value(&entry)?,
            259 => compression = tiff.first_value(&entry)?,
            277 => samples = tiff.first_value(&entry)?,
            // Where the strips and tiles are, and how long.
            273 | 279 | 324 | 325 if entry.count > MAX_STRIPS => return None,
            274 if entry.count != 1 => return None,
            _ => {}
        }
    }
    if bits > 64 || samples > 16 {
        return None;
    }
    // CMYK becomes RGB, anything deep becomes 8 bits as well; one strip may be the whole picture.
    let decoded = (samples * bits).div_ceil(8);
    let inside = if compression == JPEG { 3 + 8 } else { decoded };
    Some(decoded + inside + 4)
}

/// A TIFF or BigTIFF file's first directory.
struct Tiff<'a> {
    reader: &'a mut Reader,
    is_little_endian: bool,
    is_big: bool,
}

struct Entry {
    tag: u64,
    /// Bytes of one value.
    size: u64,
    count: u64,
    /// Where the value is, or where its address stands.
    at: u64,
}

impl<'a> Tiff<'a> {
    /// Goes to the first directory.
    fn open(reader: &'a mut Reader) -> Option<Self> {
        let mut head = [0; 4];
        reader.read_exact(&mut head).ok()?;
        let is_little_endian = head[0] == b'I';
        let is_big = head.contains(&43);
        let mut tiff = Self { reader, is_little_endian, is_big };
        if is_big {
            tiff.number(4)?; // the size of addresses, always eight
        }
        let directory = tiff.address()?;
        tiff.reader.seek(SeekFrom::Start(directory)).ok()?;
        Some(tiff)
    }

    fn entries(&mut self) -> Option<u64> {
        self.number(if self.is_big { 8 } else { 2 })
    }

    fn entry(&mut self) -> Option<Entry> {
        let tag = self.number(2)?;
        let size = match self.number(2)? {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => return None,
        };
        let count = self.address()?;
        let at = self.reader.stream_position().ok()?;
        self.address()?;
        Some(Entry { tag, size, count, at })
    }

    /// The first value of an entry; the directory is gone on with after it.
    fn first_value(&mut self, entry: &Entry) -> Option<u64> {
        let next = self.reader.stream_position().ok()?;
        let room = if self.is_big { 8 } else { 4 };
        self.reader.seek(SeekFrom::Start(entry.at)).ok()?;
        if entry.size.checked_mul(entry.count)? > room {
            let at = self.address()?;
            self.reader.seek(SeekFrom::Start(at)).ok()?;
        }
        let value = self.number(entry.size)?;
        self.reader.seek(SeekFrom::Start(next)).ok()?;
        Some(value)
    }

    fn address(&mut self) -> Option<u64> {
        self.number(if self.is_big { 8 } else { 4 })
    }

    fn number(&mut self, bytes: u64) -> Option<u64> {
        let mut number = 0;
        for place in 0..bytes {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).ok()?;
            let byte = u64::from(byte[0]);
            number = if self.is_little_endian {
                number | byte << (8 * place)
            } else {
                number << 8 | byte
            };
        }
        Some(number)
    }
}
