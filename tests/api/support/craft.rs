//! Writes parts of picture files byte by byte, for files that no encoder writes.

/// Writes bits from the least significant bit of each byte on, as in deflate, GIF and VP8L.
#[derive(Default)]
pub struct LowBits {
    bytes: Vec<u8>,
    /// The bits that do not fill a byte yet.
    pending: u64,
    /// The number of pending bits.
    count: u32,
}

impl LowBits {
    /// Writes a value as `bits` bits, the least significant bit first. The value must fit.
    pub fn put(&mut self, value: u64, bits: u32) {
        self.pending |= value << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Fills the last byte with zeros, if it is incomplete.
    pub fn finish(mut self) -> Vec<u8> {
        self.put(0, 7); // enough to complete any byte, but not to fill a new one
        self.bytes
    }
}

/// Writes bits from the most significant bit of each byte on, as in JPEG, and in TIFF's LZW and
/// fax.
#[derive(Default)]
pub struct HighBits {
    bytes: Vec<u8>,
    /// The bits that do not fill a byte yet are the lowest `count` bits.
    pending: u64,
    count: u32,
}

impl HighBits {
    /// Writes a value as `bits` bits, the most significant bit first. The value must fit.
    pub fn put(&mut self, value: u64, bits: u32) {
        self.pending = self.pending << bits | value;
        self.count += bits;
        while self.count >= 8 {
            self.count -= 8;
            self.bytes.push((self.pending >> self.count) as u8);
        }
    }

    /// Fills the last byte with ones, if it is incomplete. JPEG requires ones, and the other formats
    /// allow them.
    pub fn finish(mut self) -> Vec<u8> {
        self.put(0x7f, 7); // enough to complete any byte, but not to fill a new one
        self.bytes
    }
}

/// A zlib stream of these bytes, in stored blocks (RFC 1950, RFC 1951 3.2.4).
pub fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01]; // the header
    let mut blocks = bytes.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend((block.len() as u16).to_le_bytes());
        stream.extend((!(block.len() as u16)).to_le_bytes());
        stream.extend(block);
    }
    // The checksum Adler-32.
    let (mut a, mut b) = (1, 0);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    stream.extend((b << 16 | a).to_be_bytes());
    stream
}

/// A zlib stream of at least `len` zeros. The stream is about a thousand times shorter, because two
/// bits are the code for 258 zeros (RFC 1951, 3.2.7).
pub fn zlib_zeros(len: u64) -> Vec<u8> {
    let mut bits = LowBits::default();
    let repeats = len.div_ceil(258);
    // The header of a last block with dynamic codes (0b101). It has 257 + 29 codes for literals and
    // lengths, one for distances, and 4 + 14 for the lengths of all these codes.
    bits.put(0b101 | 29 << 3 | 14 << 13, 17);
    // The lengths of the 4 + 14 codes, in the order of RFC 1951: one bit for a run of zeros, two bits
    // for the lengths 2 and 1.
    for length in [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2] {
        bits.put(length, 3);
    }
    // The lengths of the other codes: two bits for the symbols 0 and 256, one bit for 285 (repeat 258
    // bytes) and for the distance 1. The symbols in between have no code, which is the length zero.
    // These lengths are written with the 4 + 14 codes. Each pair is a code and its number of bits. The
    // first bit of a code is its lowest.
    let (length_1, length_2, zeros) = ((0b01, 2), (0b11, 2), (0b0, 1));
    for ((code, code_bits), run) in [
        (length_2, None),
        (zeros, Some(138)),
        (zeros, Some(117)),
        (length_2, None),
        (zeros, Some(28)),
        (length_1, None),
        (length_1, None),
    ] {
        bits.put(code, code_bits);
        if let Some(run) = run {
            bits.put(run - 11, 7); // the shortest run of zeros has the length 11
        }
    }
    bits.put(0b01, 2); // the symbol 0: a zero byte
    for _ in 0..repeats {
        bits.put(0b00, 2); // the symbol 285 and the distance 1: repeat that byte 258 times
    }
    bits.put(0b11, 2); // the symbol 256: the end of the block
    let mut stream = vec![0x78, 0x01]; // the header
    stream.extend(bits.finish());
    // The checksum Adler-32. With zeros only, its first sum stays 1, and its second counts the
    // bytes.
    let byte_count = (1 + repeats * 258) % 65521;
    stream.extend(((byte_count as u32) << 16 | 1).to_be_bytes());
    stream
}

/// A chunk of a PNG (PNG specification, 5.3).
pub fn png_chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = (data.len() as u32).to_be_bytes().to_vec();
    chunk.extend(name);
    chunk.extend(data);
    chunk.extend(crc32fast::hash(&chunk[4..]).to_be_bytes());
    chunk
}

/// The interlace method of a PNG (PNG specification, 8).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interlace {
    None,
    Adam7,
}

/// A PNG with these chunks between IHDR and IEND. `depth` is the number of bits per sample.
pub fn png(
    (width, height): (u32, u32),
    depth: u8,
    color_type: u8,
    interlace: Interlace,
    chunks: &[Vec<u8>],
) -> Vec<u8> {
    // The compression and filter methods are 0.
    let last_fields = [depth, color_type, 0, 0, interlace as u8];
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &last_fields].concat();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    png.extend(png_chunk(b"IHDR", &header));
    png.extend(chunks.concat());
    png.extend(png_chunk(b"IEND", b""));
    png
}

/// A chunk of a RIFF file, padded to an even length.
pub fn riff_chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = name.to_vec();
    chunk.extend((data.len() as u32).to_le_bytes());
    chunk.extend(data);
    chunk.resize(chunk.len().next_multiple_of(2), 0);
    chunk
}

/// A WebP of these chunks.
pub fn webp(chunks: &[Vec<u8>]) -> Vec<u8> {
    riff_chunk(b"RIFF", &[&b"WEBP"[..], &chunks.concat()].concat())
}

/// The first chunk of an extended WebP.
pub fn vp8x(flags: u8, width: u32, height: u32) -> Vec<u8> {
    // A size minus one is stored in three bytes.
    let size = |pixels: u32| (pixels - 1).to_le_bytes()[..3].to_vec();
    riff_chunk(b"VP8X", &[vec![flags, 0, 0, 0], size(width), size(height)].concat())
}

/// A frame of an animated WebP, with these chunks.
pub fn anmf(width: u32, height: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    // A size minus one is stored in three bytes.
    let size = |pixels: u32| (pixels - 1).to_le_bytes()[..3].to_vec();
    // The frame is at the top left, and is shown for 100 ms.
    let head = [vec![0; 6], size(width), size(height), vec![100, 0, 0, 0]].concat();
    riff_chunk(b"ANMF", &[head, chunks.concat()].concat())
}

/// The data of a `VP8 ` chunk: a lossy frame whose partitions are all zeros (RFC 6386, 9.1).
/// `rest_len` is the length of what follows the first partition. The frame decodes to grey pixels
/// until the decoder has read all zeros.
pub fn vp8(width: u16, height: u16, first_partition_len: u32, rest_len: usize) -> Vec<u8> {
    // The frame tag: a key frame (bit 0 is clear) that is shown (bit 4). Then the start code.
    let mut frame = (first_partition_len << 5 | 1 << 4).to_le_bytes()[..3].to_vec();
    frame.extend(b"\x9d\x01\x2a");
    frame.extend(width.to_le_bytes());
    frame.extend(height.to_le_bytes());
    frame.resize(frame.len() + first_partition_len as usize + rest_len, 0);
    frame
}

/// The same as [`vp8`], with more zeros than a decoder reads for the whole picture.
pub fn vp8_grey(width: u16, height: u16) -> Vec<u8> {
    // A decoder reads less than 600 bytes for the headers. For each block of 16 × 16 pixels, it reads
    // less than one byte of each partition. The rest is longer than necessary, which does no harm.
    let blocks = u32::from(width.div_ceil(16)) * u32::from(height.div_ceil(16));
    vp8(width, height, 600 + blocks, 600 + 4 * blocks as usize)
}

/// An entry of a TIFF directory: tag, type, values.
pub type Entry = (u16, u16, Vec<u64>);

/// A little-endian TIFF. The data begins at byte 16, and the directory follows the data.
pub fn tiff(data: &[u8], entries: &[Entry]) -> Vec<u8> {
    tiff_or_big_tiff(TiffKind::Tiff, data, entries)
}

/// The same as [`tiff`], but a BigTIFF.
pub fn big_tiff(data: &[u8], entries: &[Entry]) -> Vec<u8> {
    tiff_or_big_tiff(TiffKind::BigTiff, data, entries)
}

#[derive(Clone, Copy)]
enum TiffKind {
    Tiff,
    BigTiff,
}

fn tiff_or_big_tiff(kind: TiffKind, data: &[u8], entries: &[Entry]) -> Vec<u8> {
    // Lengths in bytes. An offset and the number of values in an entry are both `word_len` long. The
    // number of entries is `entry_count_len` long.
    let (signature, word_len, entry_count_len) = match kind {
        TiffKind::Tiff => (&b"II\x2a\0"[..], 4, 2),
        TiffKind::BigTiff => (&b"II\x2b\0\x08\0\0\0"[..], 8, 8),
    };
    let number = |value: u64, bytes: usize| value.to_le_bytes()[..bytes].to_vec();
    let directory_at = (16 + data.len()).next_multiple_of(2);
    let mut file = [signature, &number(directory_at as u64, word_len)].concat();
    file.resize(16, 0);
    file.extend(data);
    file.resize(directory_at, 0);
    file.extend(number(entries.len() as u64, entry_count_len));
    // Values that do not fit into their entry follow the directory.
    let mut long_values = Vec::new();
    // An entry is a tag, a type, the number of values, and the values or their offset.
    let entry_len = 2 + 2 + word_len + word_len;
    let no_next_directory = vec![0; word_len];
    let long_values_at = file.len() + entries.len() * entry_len + no_next_directory.len();
    for (tag, value_type, values) in entries {
        // The length of a value in bytes. The types are SHORT, LONG, LONG8, and types of one byte.
        let size = match value_type {
            3 => 2,
            4 => 4,
            16 => 8,
            _ => 1,
        };
        let mut bytes: Vec<u8> = values.iter().flat_map(|value| number(*value, size)).collect();
        file.extend([number((*tag).into(), 2), number((*value_type).into(), 2)].concat());
        file.extend(number(values.len() as u64, word_len));
        if bytes.len() > word_len {
            file.extend(number((long_values_at + long_values.len()) as u64, word_len));
            long_values.extend(bytes);
        } else {
            bytes.resize(word_len, 0);
            file.extend(bytes);
        }
    }
    file.extend(no_next_directory);
    file.extend(long_values);
    file
}

/// The LZW of TIFF for these bytes (TIFF 6.0, section 13). A clear code (256) before every 250
/// bytes keeps the codes at nine bits. The last code (257) is the end.
pub fn tiff_lzw(bytes: &[u8]) -> Vec<u8> {
    let mut bits = HighBits::default();
    for chunk in bytes.chunks(250) {
        bits.put(256, 9);
        chunk.iter().for_each(|byte| bits.put((*byte).into(), 9));
    }
    bits.put(257, 9);
    bits.finish()
}

/// The PackBits of TIFF for these bytes, in literal runs (TIFF 6.0, section 9).
pub fn packbits(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(128).flat_map(|run| [&[run.len() as u8 - 1], run].concat()).collect()
}

/// The LZW of GIF for these bytes, in sub-blocks (GIF89a, appendix F). A clear code (256) before
/// every 250 bytes keeps the codes at nine bits. The last code (257) is the end.
pub fn gif_lzw(bytes: &[u8]) -> Vec<u8> {
    let mut bits = LowBits::default();
    for chunk in bytes.chunks(250) {
        bits.put(256, 9);
        chunk.iter().for_each(|byte| bits.put((*byte).into(), 9));
    }
    bits.put(257, 9);
    let min_code_size = 8;
    [vec![min_code_size], sub_blocks(&bits.finish())].concat()
}

/// The data sub-blocks of GIF for these bytes, and the empty sub-block at the end.
pub fn sub_blocks(bytes: &[u8]) -> Vec<u8> {
    let blocks = bytes.chunks(255).flat_map(|block| [&[block.len() as u8], block].concat());
    blocks.chain([0]).collect()
}

/// A segment of a JPEG (ITU-T T.81, B.1.1.4).
pub fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
    [&[0xff, marker][..], &(data.len() as u16 + 2).to_be_bytes(), data].concat()
}

/// The bytes of a JPEG before its first scan: a quantization table, a frame header and Huffman
/// tables. `frame` is the marker of the frame header. `sampling` contains a byte for each
/// component: the horizontal sampling factor in the upper four bits, and the vertical one in the
/// lower four.
///
/// A DC difference of n bits has the four-bit code n. There are three AC codes: `00` is the end of a
/// block, `01` is a coefficient of one bit, and `10` is a coefficient of two bits.
pub fn jpeg_head(frame: u8, (width, height): (u16, u16), sampling: &[u8]) -> Vec<u8> {
    let mut jpeg = b"\xff\xd8".to_vec();
    jpeg.extend(segment(0xdb, &[&[0][..], &[1; 64]].concat()));
    let mut frame_header = vec![8]; // bits per sample
    frame_header.extend(height.to_be_bytes());
    frame_header.extend(width.to_be_bytes());
    frame_header.push(sampling.len() as u8);
    for (id, factors) in (1..).zip(sampling) {
        frame_header.extend([id, *factors, 0]);
    }
    jpeg.extend(segment(frame, &frame_header));
    // The first byte of a Huffman table is its class, 0x10 for AC. Then byte n is the number of
    // codes of n bits.
    let (mut dc, mut ac) = ([0; 17], [0; 17]);
    (dc[4], ac[0], ac[2]) = (12, 0x10, 3);
    jpeg.extend(segment(0xc4, &[&dc[..], &(0..12).collect::<Vec<u8>>()].concat()));
    jpeg.extend(segment(0xc4, &[&ac[..], &[0, 1, 2]].concat()));
    jpeg
}

/// The header of a scan: the ids of its components, the spectral selection, and the approximation.
pub fn scan_head(components: &[u8], spectrum: (u8, u8), approximation: u8) -> Vec<u8> {
    let mut head = vec![components.len() as u8];
    components.iter().for_each(|id| head.extend([*id, 0]));
    head.extend([spectrum.0, spectrum.1, approximation]);
    segment(0xda, &head)
}

/// A BMP. `table` is the palette or the masks. `colors` is the number of palette colours that the
/// header claims.
pub fn bmp(
    (width, height): (i32, i32),
    depth: u16,
    compression: u32,
    colors: u32,
    table: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let offset = 54 + table.len(); // the two headers have 14 and 40 bytes
    let mut bmp = b"BM".to_vec();
    bmp.extend(((offset + data.len()) as u32).to_le_bytes());
    bmp.extend([0; 4]);
    bmp.extend((offset as u32).to_le_bytes());
    bmp.extend(40u32.to_le_bytes());
    bmp.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
    bmp.extend([1u16.to_le_bytes(), depth.to_le_bytes()].concat());
    bmp.extend(compression.to_le_bytes());
    bmp.extend([0; 12]);
    bmp.extend([colors.to_le_bytes(), [0; 4]].concat());
    bmp.extend(table);
    bmp.extend(data);
    bmp
}
