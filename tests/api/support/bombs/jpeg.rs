//! Hostile JPEGs (ITU-T T.81).

use super::Bomb;
use crate::support::craft::{jpeg_head, scan_head, segment};

// The markers of frame headers (ITU-T T.81, B.1.1.3).
const BASELINE: u8 = 0xc0;
const EXTENDED: u8 = 0xc1;
const PROGRESSIVE: u8 = 0xc2;
const LOSSLESS: u8 = 0xc3;
const HIERARCHICAL: u8 = 0xc5;
const ARITHMETIC: u8 = 0xc9;

// The markers of other segments.
const HUFFMAN_TABLES: u8 = 0xc4;
const NUMBER_OF_LINES: u8 = 0xdc;
const RESTART_INTERVAL: u8 = 0xdd;
const APP1: u8 = 0xe1;
const COMMENT: u8 = 0xfe;

/// The end of a picture.
const END: &[u8] = b"\xff\xd9";

/// Pictures that decoders refuse, or finish decoding within seconds. The sizes are within the limit of
/// 64 megapixels. [`jpeg_head`] explains the sampling factors, such as 0x22.
pub(super) fn quick() -> Vec<Bomb> {
    vec![
        // The service tries to decode pictures of up to 100 scans.
        ("jpeg-99-scans", scans((1000, 1000), 99)),
        ("jpeg-101-scans", scans((1000, 1000), 101)),
        ("jpeg-99-scans-of-9-megapixels", scans((3000, 3000), 99)),
        ("jpeg-no-data", with_empty_scan(jpeg_head(BASELINE, (8000, 7900), &[0x22, 0x11, 0x11]))),
        (
            "jpeg-no-data-progressive",
            with_empty_scan(jpeg_head(PROGRESSIVE, (6000, 6000), &[0x11; 3])),
        ),
        ("jpeg-one-row", with_empty_scan(jpeg_head(BASELINE, (65_500, 1), &[0x44, 0x11, 0x11]))),
        (
            "jpeg-one-column",
            with_empty_scan(jpeg_head(PROGRESSIVE, (1, 65_500), &[0x44, 0x44, 0x44])),
        ),
        ("jpeg-restart-each-block", with_segments(&segment(RESTART_INTERVAL, &[0, 1]))),
        // A table has a class, 16 counts of codes, and up to 256 values.
        ("jpeg-huffman-table-of-255s", with_segments(&segment(HUFFMAN_TABLES, &[255; 273]))),
        ("jpeg-huffman-tables", with_segments(&segment(HUFFMAN_TABLES, &[0; 17]).repeat(100_000))),
        ("jpeg-number-of-lines", with_segments(&segment(NUMBER_OF_LINES, &[0xff, 0xff]))),
        ("jpeg-no-such-component", with_segments(&scan_head(&[7, 8, 9], (0, 63), 0))),
        (
            "jpeg-sampling-of-nothing",
            with_empty_scan(jpeg_head(BASELINE, (64, 64), &[0x00, 0x11, 0x11])),
        ),
        ("jpeg-sampling-15", with_empty_scan(jpeg_head(BASELINE, (64, 64), &[0xff, 0x11, 0x11]))),
        ("jpeg-12-bit", twelve_bit()),
        ("jpeg-lossless", with_empty_scan(jpeg_head(LOSSLESS, (64, 64), &[0x11; 3]))),
        ("jpeg-arithmetic", with_empty_scan(jpeg_head(ARITHMETIC, (64, 64), &[0x11; 3]))),
        ("jpeg-hierarchical", with_empty_scan(jpeg_head(HIERARCHICAL, (64, 64), &[0x11; 3]))),
        ("jpeg-frame-grows", frame_grows()),
        ("jpeg-fill-bytes", with_segments(&[0xff; 3_000_000])),
    ]
}

/// Pictures that keep some decoders busy for minutes or hours.
pub(super) fn endless() -> Vec<Bomb> {
    vec![("jpeg-extended-xmp", extended_xmp())]
}

/// Appends a scan of all components that has no data, and the end of the picture. In a progressive
/// picture, a scan of several components is for coefficient 0 of each block only, the DC coefficient.
fn with_empty_scan(head: Vec<u8>) -> Vec<u8> {
    let components: Vec<u8> = (1..=3).collect();
    let last_coefficient =
        if head.windows(2).any(|pair| pair == [0xff, PROGRESSIVE]) { 0 } else { 63 };
    [head, scan_head(&components, (0, last_coefficient), 0), END.to_vec()].concat()
}

/// A picture of 64 × 64 pixels with these segments before its scan.
fn with_segments(segments: &[u8]) -> Vec<u8> {
    with_empty_scan([&jpeg_head(BASELINE, (64, 64), &[0x11; 3])[..], segments].concat())
}

/// A progressive picture with this number of scans, of one byte each. The decoder processes all
/// blocks for each scan.
fn scans(size: (u16, u16), count: usize) -> Vec<u8> {
    let mut jpeg = jpeg_head(PROGRESSIVE, size, &[0x11; 3]);
    jpeg.extend([scan_head(&[1, 2, 3], (0, 0), 0), vec![0]].concat());
    for scan in 1..count {
        jpeg.extend([scan_head(&[scan as u8 % 3 + 1], (1, 63), 0), vec![0]].concat());
    }
    [jpeg, END.to_vec()].concat()
}

/// A picture whose samples have 12 bits. The number of bits is in the frame header, after the marker
/// and the length.
fn twelve_bit() -> Vec<u8> {
    let mut jpeg = jpeg_head(EXTENDED, (64, 64), &[0x11; 3]);
    let frame_header = jpeg.windows(2).position(|pair| pair == [0xff, EXTENDED]).unwrap();
    jpeg[frame_header + 4] = 12;
    with_empty_scan(jpeg)
}

/// A picture with two frame headers: the first of 16 × 16 pixels, the second of 60000 × 1000.
fn frame_grows() -> Vec<u8> {
    let mut second = jpeg_head(PROGRESSIVE, (60_000, 1000), &[0x11; 3]);
    second.drain(..2); // the marker for the start of a picture
    with_empty_scan([jpeg_head(BASELINE, (16, 16), &[0x11; 3]), second].concat())
}

/// 15,000 equal pieces of an extended XMP that stays incomplete, and then 300,000 other segments (XMP
/// specification, part 3, 1.1.3.1). Some decoders sort and compare all pieces after each segment.
fn extended_xmp() -> Vec<u8> {
    let mut piece = b"http://ns.adobe.com/xmp/extension/\0".to_vec();
    piece.extend([b'0'; 32]); // the digest of the whole XMP
    piece.extend(0x7fff_ffff_u32.to_be_bytes()); // the length of the whole XMP
    piece.extend([0; 5]); // the offset of this piece, and its only byte
    let pieces = segment(APP1, &piece).repeat(15_000);
    with_segments(&[pieces, segment(COMMENT, b"").repeat(300_000)].concat())
}
