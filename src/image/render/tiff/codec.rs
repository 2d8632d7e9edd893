//! What strips and tiles are compressed with (TIFF 6.0, sections 7 to 13 and 22).

use std::{
    convert::Infallible,
    io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom, Take},
    vec,
};

use fax::decoder::{DecodeStatus, Group3Decoder, Group4Decoder};
use flate2::read::ZlibDecoder;
use weezl::{BitOrder, LzwStatus, decode::Configuration};
use zune_jpeg::{
    JpegDecoder,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::Chunk;
use crate::image::{
    Content, Reader,
    header::{
        jpeg,
        tiff::{Tiff, kinds::Compression},
    },
    render::jpeg::essential,
};

/// How much of what is compressed with LZW is taken from the file at once.
const LZW_PIECE: u64 = 32 << 10;

/// The rows of a strip or a tile, as if they were not compressed.
pub(super) fn rows<'a>(
    tiff: &Tiff,
    jpeg_tables: &[u8],
    chunk: &Chunk,
    reader: &'a mut Reader,
) -> io::Result<Box<dyn Read + 'a>> {
    reader.seek(SeekFrom::Start(chunk.offset))?;
    if tiff.compression == Compression::None {
        // However long it should be: what is wrong in many files does not matter here.
        return Ok(raw(reader.take(u64::MAX), tiff.is_bit_reversed));
    }
    if tiff.compression == Compression::Jpeg {
        // Its bits have an order of their own.
        return Ok(Box::new(Cursor::new(jpeg(tiff, jpeg_tables, chunk, reader)?)));
    }
    let raw = raw(reader.take(chunk.len), tiff.is_bit_reversed);
    Ok(match tiff.compression {
        Compression::Lzw => Box::new(Lzw::new(raw, chunk.len)?),
        Compression::Deflate => Box::new(ZlibDecoder::new(raw)),
        Compression::PackBits => Box::new(PackBits { packed: raw, run: Run::Literal(0) }),
        compression => Box::new(Fax::new(compression, raw, chunk.len, tiff.chunks.width)?),
    })
}

/// What stands in the file.
fn raw(reader: Take<&mut Reader>, is_bit_reversed: bool) -> Box<dyn Read + '_> {
    if is_bit_reversed { Box::new(Reversed(reader)) } else { Box::new(reader) }
}

/// Turns the bits of every byte around.
struct Reversed<R>(R);

impl<R: Read> Read for Reversed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        buffer[..read].iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        Ok(read)
    }
}

struct Lzw<R> {
    packed: BufReader<R>,
    decoder: weezl::decode::Decoder,
}

impl<R: Read> Lzw<R> {
    fn new(packed: R, len: u64) -> io::Result<Self> {
        let capacity = usize::try_from(len.clamp(2, LZW_PIECE)).map_err(io::Error::other)?;
        let mut packed = BufReader::with_capacity(capacity, packed);
        // Before TIFF 5.0, codes began with their lowest bit and became longer a code later. Each
        // kind begins with the code 256, by which libtiff tells them apart, too.
        let is_old = matches!(packed.fill_buf()?, [0, second, ..] if second & 1 == 1);
        let configuration = if is_old {
            Configuration::new(BitOrder::Lsb, 8)
        } else {
            Configuration::with_tiff_size_switch(BitOrder::Msb, 8)
        };
        Ok(Self { packed, decoder: configuration.with_yield_on_full_buffer(true).build() })
    }
}

impl<R: Read> Read for Lzw<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut was_stuck = false;
        loop {
            let result = self.decoder.decode_bytes(self.packed.fill_buf()?, buffer);
            self.packed.consume(result.consumed_in);
            match result.status.map_err(io::Error::other)? {
                _ if result.consumed_out > 0 => return Ok(result.consumed_out),
                LzwStatus::Done => return Ok(0),
                // It also says so where it has unpacked a word that is longer than the buffer, and
                // gives it the next time.
                LzwStatus::NoProgress if was_stuck => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                status => was_stuck = matches!(status, LzwStatus::NoProgress),
            }
        }
    }
}

struct PackBits<R> {
    packed: R,
    run: Run,
}

/// What is left of a run.
enum Run {
    Literal(usize),
    Repeated(usize, u8),
}

impl<R: Read> PackBits<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.packed.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

impl<R: Read> Read for PackBits<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Run::Literal(0) | Run::Repeated(0, _) = self.run {
            let head = usize::from(self.byte()?);
            match head {
                0..=127 => self.run = Run::Literal(head + 1),
                128 => {} // nothing
                _ => self.run = Run::Repeated(257 - head, self.byte()?),
            }
        }
        match &mut self.run {
            Run::Literal(left) => {
                let len = buffer.len().min(*left);
                let read = self.packed.read(&mut buffer[..len])?;
                *left -= read;
                Ok(read)
            }
            Run::Repeated(left, byte) => {
                let len = buffer.len().min(*left);
                buffer[..len].fill(*byte);
                *left -= len;
                Ok(len)
            }
        }
    }
}

/// A fax's rows, a bit for each pixel: 1 is black.
struct Fax {
    decoder: FaxDecoder,
    width: u16,
    /// Whether the end was told. Writers leave out white rows before it, but not all of them.
    is_over: bool,
    row: Cursor<Vec<u8>>,
}

type Bytes = std::iter::Map<vec::IntoIter<u8>, fn(u8) -> Result<u8, Infallible>>;

enum FaxDecoder {
    Group3(Group3Decoder<Bytes>),
    Group4(Group4Decoder<Bytes>),
}

impl Fax {
    fn new(
        compression: Compression,
        mut packed: impl Read,
        len: u64,
        width: u32,
    ) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(room(len)?);
        packed.read_to_end(&mut bytes)?;
        // The library looks at more bits than the last code has, and wants each row of Group 3 to be
        // ended, though what ends it stands before the next one with most writers.
        bytes.extend(if compression == Compression::Group3 { [0, 1, 0xff, 0xff] } else { [0; 4] });
        let bytes: Bytes = bytes.into_iter().map(Ok);
        let width = u16::try_from(width).map_err(io::Error::other)?;
        let decoder = if compression == Compression::Group3 {
            FaxDecoder::Group3(Group3Decoder::new(bytes).map_err(broken)?)
        } else {
            FaxDecoder::Group4(Group4Decoder::new(bytes, width).map_err(broken)?)
        };
        Ok(Self { decoder, width, is_over: false, row: Cursor::default() })
    }

    fn next_row(&mut self) -> io::Result<()> {
        let is_first = self.row.get_ref().is_empty();
        self.row.set_position(0);
        let row = self.row.get_mut();
        row.clear();
        row.resize(usize::from(self.width).div_ceil(8), 0);
        if self.is_over {
            return Ok(());
        }
        // Where black begins, where white begins, and so on.
        let changes = match &mut self.decoder {
            FaxDecoder::Group3(decoder) => {
                // The last row is told together with the end.
                self.is_over = decoder.advance().map_err(broken)? == DecodeStatus::End;
                let changes = decoder.transitions();
                // The decoder takes a code that it does not know for the end of a row.
                if changes.last().is_some_and(|end| *end != self.width) {
                    return Err(broken("a row of a fax ends early, or late"));
                }
                changes
            }
            FaxDecoder::Group4(decoder) => {
                self.is_over = decoder.advance().map_err(broken)? == DecodeStatus::End;
                if self.is_over && is_first {
                    return Err(broken("a fax has no rows"));
                }
                if self.is_over { &[] } else { decoder.transition() }
            }
        };
        for black in changes.chunks(2) {
            let end = black.get(1).copied().unwrap_or(self.width).min(self.width);
            for x in black[0]..end {
                row[usize::from(x / 8)] |= 0x80 >> (x % 8);
            }
        }
        Ok(())
    }
}

impl Read for Fax {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.row.position() == self.row.get_ref().len() as u64 {
            self.next_row()?;
        }
        self.row.read(buffer)
    }
}

/// The samples of a JPEG, in whatever colours it has. Its size is looked at first: one that is larger
/// than its strip or tile could take any memory.
fn jpeg(tiff: &Tiff, tables: &[u8], chunk: &Chunk, reader: &mut Reader) -> io::Result<Vec<u8>> {
    const MARKER: usize = 2;
    let mut bytes = Vec::with_capacity(room(chunk.len)? + tables.len());
    // Tables are a JPEG of their own: without its end, and the picture's without its start, they are
    // one.
    if let Some(tables) = tables.len().checked_sub(MARKER).and_then(|end| tables.get(..end)) {
        bytes.extend(tables);
        reader.seek_relative(MARKER as i64)?;
    }
    reader.take(chunk.len).read_to_end(&mut bytes)?;
    let content = Content::Memory(bytes.into());
    let header = jpeg::read(&mut content.header_reader());
    let header = header.map_err(|_| broken("a JPEG inside cannot be read"))?;
    let frame = header.frame;
    let is_as_tagged = u64::from(frame.components) == tiff.samples_per_chunk_pixel()
        && u32::from(frame.width) == tiff.chunks.width
        // The last one may be as high as the others are, though less of it is shown.
        && (chunk.rows..=tiff.chunks.height).contains(&frame.height.into());
    if !is_as_tagged {
        return Err(broken("a JPEG inside is of another size or has other colours"));
    }
    if header.undecodable_kind().is_some() {
        return Err(broken("a JPEG inside is of a rare kind"));
    }
    let len = usize::try_from(content.len()).map_err(io::Error::other)?;
    let bytes = essential(&mut content.reader(), len)?;
    let bytes = bytes.ok_or_else(|| broken("a JPEG inside has too many scans"))?;
    drop(content);
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(frame.width.into())
        .set_max_height(frame.height.into());
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes[..]), options);
    decoder.decode_headers().map_err(broken)?;
    // The samples as they are: the TIFF says what they mean, and not the JPEG.
    let stored = match decoder.input_colorspace() {
        Some(ColorSpace::CMYK) if frame.components == 3 => ColorSpace::RGB,
        Some(stored) => stored,
        None => return Err(broken("a JPEG inside has no colours")),
    };
    decoder.set_options(options.jpeg_set_out_colorspace(stored));
    decoder.decode().map_err(broken)
}

/// Room for so many bytes of the file and a few more: a buffer that grows as it is filled may double.
fn room(len: u64) -> io::Result<usize> {
    usize::try_from(len.saturating_add(64)).map_err(io::Error::other)
}

fn broken(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{reason}"))
}
