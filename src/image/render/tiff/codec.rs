//! Decompresses strips and tiles (TIFF 6.0, sections 7 to 13 and 22).

use std::{
    convert::Infallible,
    io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom, Take},
    vec,
};

use fax::decoder::{DecodeStatus, Group3Decoder, Group4Decoder};
use flate2::read::ZlibDecoder;
use weezl::{BitOrder, LzwStatus, decode::Configuration};
use zune_jpeg::zune_core::colorspace::ColorSpace;

use super::Chunk;
use crate::image::{
    Content, Reader,
    header::{
        jpeg,
        tiff::{Tiff, kinds::Compression},
    },
    render::jpeg::{decodable_segments, decode_segments},
};

/// At most this many bytes of LZW data are read from the file at once.
const LZW_BUFFER_LEN: u64 = 32 << 10;

/// Returns a reader of the decompressed rows of a strip or a tile.
pub(super) fn rows<'a>(
    tiff: &Tiff,
    jpeg_tables: &[u8],
    chunk: &Chunk,
    reader: &'a mut Reader,
) -> io::Result<Box<dyn Read + 'a>> {
    reader.seek(SeekFrom::Start(chunk.offset))?;
    if tiff.compression == Compression::None {
        // No limit is needed: the caller reads only as many bytes as the rows have. The length in the
        // tags is ignored, because it is wrong in many files.
        return Ok(with_usual_bit_order(reader.take(u64::MAX), tiff.is_bit_reversed));
    }
    if tiff.compression == Compression::Jpeg {
        // FillOrder does not apply to JPEG.
        return Ok(Box::new(Cursor::new(decode_jpeg(tiff, jpeg_tables, chunk, reader)?)));
    }
    let packed = with_usual_bit_order(reader.take(chunk.len), tiff.is_bit_reversed);
    Ok(match tiff.compression {
        Compression::Lzw => Box::new(Lzw::new(packed, chunk.len)?),
        Compression::Deflate => Box::new(ZlibDecoder::new(packed)),
        Compression::PackBits => Box::new(PackBits { packed, run: Run::Literal(0) }),
        // Only the two kinds of fax are left.
        compression => Box::new(Fax::new(compression, packed, chunk.len, tiff.chunks.width)?),
    })
}

/// Returns a reader of the file's bytes. If the file stores each byte with its bits in reverse order
/// (FillOrder 2), the reader puts the bits in the usual order.
fn with_usual_bit_order(reader: Take<&mut Reader>, is_bit_reversed: bool) -> Box<dyn Read + '_> {
    if is_bit_reversed { Box::new(BitReverser(reader)) } else { Box::new(reader) }
}

/// Reverses the bits of every byte.
struct BitReverser<R>(R);

impl<R: Read> Read for BitReverser<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buffer)?;
        buffer[..len].iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        Ok(len)
    }
}

/// Decompresses LZW (TIFF 6.0, section 13).
struct Lzw<R> {
    packed: BufReader<R>,
    decoder: weezl::decode::Decoder,
}

impl<R: Read> Lzw<R> {
    fn new(packed: R, len: u64) -> io::Result<Self> {
        // The check for old LZW needs two bytes in the buffer.
        let capacity = usize::try_from(len.clamp(2, LZW_BUFFER_LEN)).map_err(io::Error::other)?;
        let mut packed = BufReader::with_capacity(capacity, packed);
        // Before TIFF 5.0, codes were stored from the lowest bit, and the length of the codes grew
        // one code later than it does now. In either variant, the first code is 256, with 9 bits.
        // Stored from the lowest bit, this is a byte of 0, and a 1 in the lowest bit of the next byte.
        // libtiff makes the same check.
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
        let mut made_no_progress = false;
        loop {
            let result = self.decoder.decode_bytes(self.packed.fill_buf()?, buffer);
            self.packed.consume(result.consumed_in);
            match result.status.map_err(io::Error::other)? {
                _ if result.consumed_out > 0 => return Ok(result.consumed_out),
                LzwStatus::Done => return Ok(0),
                // `NoProgress` may mean that the bytes of one code do not fit into `buffer`. The decoder
                // then keeps them, and returns as many as fit in the next round. Only a second
                // `NoProgress` in a row means that the data ends too early.
                LzwStatus::NoProgress if made_no_progress => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                status => made_no_progress = matches!(status, LzwStatus::NoProgress),
            }
        }
    }
}

/// Decompresses PackBits (TIFF 6.0, section 9), a run-length coding.
struct PackBits<R> {
    packed: R,
    run: Run,
}

/// The rest of a run.
enum Run {
    /// This many bytes of the data must still be returned unchanged.
    Literal(usize),
    /// A byte that is repeated: how many times it must still be returned, and its value.
    Repeated(usize, u8),
}

impl<R: Read> PackBits<R> {
    fn read_byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.packed.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

impl<R: Read> Read for PackBits<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Run::Literal(0) | Run::Repeated(0, _) = self.run {
            let run_code = usize::from(self.read_byte()?);
            match run_code {
                0..=127 => self.run = Run::Literal(run_code + 1),
                128 => {} // no operation
                _ => self.run = Run::Repeated(257 - run_code, self.read_byte()?),
            }
        }
        match &mut self.run {
            Run::Literal(left) => {
                let max_len = buffer.len().min(*left);
                let len = self.packed.read(&mut buffer[..max_len])?;
                *left -= len;
                Ok(len)
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

/// Decompresses a fax (TIFF 6.0, section 11) to rows with one bit for each pixel. 1 is black.
struct Fax {
    decoder: FaxDecoder,
    /// The width of a row, in pixels.
    width: u16,
    /// Whether the code for the end of the fax was read. Further rows are white, because some
    /// programs leave out the last white rows.
    is_over: bool,
    /// The current row, and how much of it was read.
    row: Cursor<Vec<u8>>,
}

/// The bytes of a fax, as the library requires them: an iterator whose items are results.
type FaxInput = std::iter::Map<vec::IntoIter<u8>, fn(u8) -> Result<u8, Infallible>>;

enum FaxDecoder {
    Group3(Group3Decoder<FaxInput>),
    Group4(Group4Decoder<FaxInput>),
}

impl Fax {
    fn new(
        compression: Compression,
        mut packed: impl Read,
        len: u64,
        width: u32,
    ) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(buffer_capacity(len)?);
        packed.read_to_end(&mut bytes)?;
        // The library looks ahead beyond the last code, so some padding must follow. In Group 3, the
        // library also requires the code for the end of a row (the bytes 0 and 1) after the last row.
        // Most programs write that code only between rows.
        bytes.extend(if compression == Compression::Group3 { [0, 1, 0xff, 0xff] } else { [0; 4] });
        let input: FaxInput = bytes.into_iter().map(Ok);
        let width = u16::try_from(width).map_err(io::Error::other)?;
        let decoder = if compression == Compression::Group3 {
            FaxDecoder::Group3(Group3Decoder::new(input).map_err(broken)?)
        } else {
            FaxDecoder::Group4(Group4Decoder::new(input, width).map_err(broken)?)
        };
        Ok(Self { decoder, width, is_over: false, row: Cursor::default() })
    }

    /// Decodes the next row.
    fn next_row(&mut self) -> io::Result<()> {
        let is_first_row = self.row.get_ref().is_empty();
        self.row.set_position(0);
        let row = self.row.get_mut();
        row.clear();
        row.resize(usize::from(self.width).div_ceil(8), 0);
        if self.is_over {
            return Ok(());
        }
        // The positions at which black begins, white begins, black begins again, and so on. In Group 3,
        // the last position is the end of the row. A row without codes has no positions, and is white.
        let changes = match &mut self.decoder {
            FaxDecoder::Group3(decoder) => {
                // In Group 3, the status `End` comes with the last row.
                self.is_over = decoder.advance().map_err(broken)? == DecodeStatus::End;
                let changes = decoder.transitions();
                // The decoder also ends a row at an unknown code. The row is then too short.
                if changes.last().is_some_and(|end| *end != self.width) {
                    return Err(broken("a row of a fax is too short or too long"));
                }
                changes
            }
            FaxDecoder::Group4(decoder) => {
                // In Group 4, the status `End` comes after the last row, without a row.
                self.is_over = decoder.advance().map_err(broken)? == DecodeStatus::End;
                if self.is_over && is_first_row {
                    return Err(broken("a fax has no rows"));
                }
                if self.is_over { &[] } else { decoder.transition() }
            }
        };
        for black_run in changes.chunks(2) {
            let end = black_run.get(1).copied().unwrap_or(self.width).min(self.width);
            for x in black_run[0]..end {
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

/// Decodes the JPEG in a strip or tile to its samples, without converting colours. The JPEG's size is
/// checked first, because a JPEG that is larger than its strip or tile could need any amount of memory.
fn decode_jpeg(
    tiff: &Tiff,
    tables: &[u8],
    chunk: &Chunk,
    reader: &mut Reader,
) -> io::Result<Vec<u8>> {
    const MARKER_LEN: usize = 2;
    let mut len_to_read = chunk.len;
    let mut bytes = Vec::with_capacity(buffer_capacity(chunk.len)? + tables.len());
    // The tables are a separate JPEG. To join the two, the last marker of the tables and the first
    // marker of the picture are left out.
    if let Some(tables) = tables.len().checked_sub(MARKER_LEN).and_then(|end| tables.get(..end)) {
        bytes.extend(tables);
        reader.seek_relative(MARKER_LEN as i64)?;
        len_to_read = len_to_read.saturating_sub(MARKER_LEN as u64);
    }
    reader.take(len_to_read).read_to_end(&mut bytes)?;
    let content = Content::Memory(bytes.into());
    let header = jpeg::read(&mut content.header_reader());
    let header = header.map_err(|_| broken("an embedded JPEG cannot be read"))?;
    let frame = header.frame;
    let matches_the_tags = u64::from(frame.components) == tiff.samples_of_a_pixel_in_one_chunk()
        && u32::from(frame.width) == tiff.chunks.width
        // The JPEG of the last strip may be as high as the other JPEGs, and extend beyond the picture.
        && (chunk.rows..=tiff.chunks.height).contains(&frame.height.into());
    if !matches_the_tags {
        return Err(broken("the size or the colours of an embedded JPEG differ from the tags"));
    }
    if header.undecodable_kind().is_some() {
        return Err(broken("an embedded JPEG is of an unsupported kind"));
    }
    let len = usize::try_from(content.len()).map_err(io::Error::other)?;
    let bytes = decodable_segments(&mut content.reader(), len)?;
    let bytes = bytes.ok_or_else(|| broken("an embedded JPEG has too many scans"))?;
    drop(content); // frees the memory of the original bytes
    // The decoder must not convert the samples, because the TIFF's tags define their colours. It converts
    // nothing if the output has the colour space of the input. For a JPEG whose Adobe segment names no
    // colour transform, the decoder reports CMYK, even if there are only three components.
    let unconverted = |input| match input {
        ColorSpace::CMYK if frame.components == 3 => ColorSpace::RGB,
        color_space => color_space,
    };
    let size = (frame.width.into(), frame.height.into());
    Ok(decode_segments(&bytes, size, unconverted).map_err(broken)?.bytes)
}

/// The capacity of a buffer for `len` bytes of the file and up to 64 more, such as the padding of a fax.
/// The buffer must not grow while it is filled, because growth may double its memory.
fn buffer_capacity(len: u64) -> io::Result<usize> {
    usize::try_from(len.saturating_add(64)).map_err(io::Error::other)
}

fn broken(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{reason}"))
}
