//! Reads the headers of a JPEG (ITU-T T.81, annex B), up to its first scan.
//!
//! A marker consists of 0xFF and a second byte, by which it is named here. Like libjpeg, this
//! module searches for the next marker after each segment: more 0xFF bytes may precede a marker
//! (B.1.1.2), and some cameras write stray bytes between segments, or wrong lengths.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Header, HeaderError, Reader, exif};
use crate::image::Unsupported;

/// The headers of a JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Jpeg {
    pub(in crate::image) frame: Frame,
    /// The number of components in the first scan. `None` if there is no scan.
    first_scan_components: Option<u8>,
    orientation: Orientation,
}

/// The frame header (B.2.2): the size and the kind of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Frame {
    /// The marker of the frame header. It identifies the kind of compression (table B.1).
    marker: u8,
    /// Bits per sample.
    precision: u8,
    pub(in crate::image) width: u16,
    pub(in crate::image) height: u16,
    /// The number of components: one for grey, three for colours, four for CMYK.
    pub(in crate::image) components: u8,
    /// Whether any sampling factor is not one. If all factors are two, nothing is subsampled, but this is
    /// true.
    has_factor_other_than_one: bool,
}

/// A marker for temporary private use in arithmetic coding.
const TEM: u8 = 0x01;
/// The start of the image.
pub(in crate::image) const SOI: u8 = 0xd8;
/// The end of the image.
pub(in crate::image) const EOI: u8 = 0xd9;
/// The start of a scan.
pub(in crate::image) const SOS: u8 = 0xda;
/// The application segment that may contain EXIF data.
const APP1: u8 = 0xe1;

/// Reads the headers up to the first scan.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Jpeg, HeaderError> {
    read_at(reader, 0)
}

/// Reads the headers of a JPEG that begins at this offset in the file.
pub(in crate::image) fn read_at(reader: &mut Reader, start: u64) -> Result<Jpeg, HeaderError> {
    const SOI_LEN: u64 = 2;
    let mut headers = Headers::default();
    let after_soi = SeekFrom::Start(start.saturating_add(SOI_LEN));
    reader.seek(after_soi).map_err(|_| HeaderError::Damaged)?;
    while headers.read_segment(reader).is_some() {}
    let Headers { frame, first_scan_components, orientation } = headers;
    let frame = frame.ok_or(HeaderError::Damaged)?;
    if frame.height == 0 {
        return Err(HeaderError::Unsupported(Unsupported::Jpeg(
            "a JPEG that stores its height after its pixels",
        )));
    }
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok(Jpeg { frame, first_scan_components, orientation })
}

/// The headers that were read so far.
#[derive(Debug, Default)]
struct Headers {
    frame: Option<Frame>,
    first_scan_components: Option<u8>,
    /// The orientation in the first EXIF segment that contains a valid orientation.
    orientation: Option<Orientation>,
}

impl Headers {
    /// Reads the next marker and its segment. Returns `None` if there is nothing more to read: at
    /// the first scan, or at the end of the image or the file.
    fn read_segment(&mut self, reader: &mut Reader) -> Option<()> {
        let marker = next_marker(reader).ok()??;
        match marker {
            EOI => return None,
            _ if has_no_segment(marker) => return Some(()),
            _ => {}
        }
        let mut length = [0; 2];
        reader.read_exact(&mut length).ok()?;
        let length = u16::from_be_bytes(length).saturating_sub(2); // the length includes itself
        let may_be_exif = marker == APP1 && self.orientation.is_none();
        if marker != SOS && !may_be_exif && !is_frame(marker) {
            return reader.seek_relative(length.into()).ok();
        }
        let mut segment = vec![0; length.into()];
        reader.read_exact(&mut segment).ok()?;
        match marker {
            APP1 => self.orientation = exif::orientation_of_segment(&segment),
            SOS => {
                self.first_scan_components = segment.first().copied();
                return None;
            }
            _ => self.frame = self.frame.or(Frame::parse(marker, &segment)),
        }
        Some(())
    }
}

/// Whether this marker starts a frame header (T.81, table B.1). These markers are called SOF0 to
/// SOF15. Three markers in this range start no frame header: DHT, JPG and DAC.
pub(in crate::image) fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// Whether this marker may be skipped because no segment follows it: TEM, RST0 to RST7 and SOI.
/// Zero is included, because a zero after 0xFF means that the 0xFF is not part of a marker.
pub(in crate::image) fn has_no_segment(marker: u8) -> bool {
    matches!(marker, 0 | TEM | 0xd0..=SOI)
}

/// Skips everything up to and including the next marker. Returns the marker's second byte, or
/// `None` at the end of the file.
pub(in crate::image) fn next_marker(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    let mut is_after_ff = false;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        // Search for the first 0xFF, and then for the first other byte.
        let index = bytes.iter().position(|byte| (*byte == 0xff) != is_after_ff);
        let Some(index) = index else {
            let skipped = bytes.len();
            reader.consume(skipped);
            continue;
        };
        let byte = bytes[index];
        reader.consume(index + 1);
        if is_after_ff {
            return Ok(Some(byte));
        }
        is_after_ff = true;
    }
}

impl Frame {
    /// Returns `None` if the segment is too short.
    fn parse(marker: u8, segment: &[u8]) -> Option<Self> {
        let (head, component_entries) = segment.split_at_checked(6)?;
        let u16_at = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        // Each entry has three bytes: its identifier, its two sampling factors with four bits
        // each, and its table.
        let has_factor_other_than_one =
            component_entries.chunks_exact(3).any(|entry| entry[1] != 0x11);
        Some(Self {
            marker,
            precision: head[0],
            height: u16_at(1),
            width: u16_at(3),
            components: head[5],
            has_factor_other_than_one,
        })
    }
}

impl Jpeg {
    /// Returns the header in the form that all formats have in common.
    pub(super) fn header(&self) -> Result<Header, HeaderError> {
        let Frame { width, height, .. } = self.frame;
        Header::new(width.into(), height.into(), self.orientation).ok_or(HeaderError::Damaged)
    }

    /// Whether there are several scans. A progressive JPEG has several scans, and so has a baseline
    /// JPEG with a scan for each component. The decoder then stores coefficients until it has read
    /// all scans. Also true if the first scan is missing.
    pub(in crate::image) fn has_several_scans(&self) -> bool {
        self.is_progressive() || self.first_scan_components != Some(self.frame.components)
    }

    fn is_progressive(&self) -> bool {
        matches!(self.frame.marker, 0xc2 | 0xc6 | 0xca | 0xce)
    }

    /// Returns the kind of JPEG if the decoder does not support it. NVIDIA may accept such a JPEG.
    pub(in crate::image) fn undecodable_kind(&self) -> Option<Unsupported> {
        let kind = match self.frame {
            Frame { marker: 0xc3, .. } => "a lossless JPEG",
            Frame { marker: 0xc5..=0xc7, .. } => "a hierarchical JPEG",
            Frame { marker: 0xc9..=0xcf, .. } => "a JPEG with arithmetic coding",
            Frame { precision, .. } if precision != 8 => "a JPEG with more than 8 bits a sample",
            Frame { components, .. } if !matches!(components, 1 | 3 | 4) => {
                "a JPEG that is neither grey nor RGB nor CMYK"
            }
            // zune-jpeg 0.5.15 decodes subsampled colours in several scans to a green picture
            // (zune-image, issues 419 and 422).
            Frame { has_factor_other_than_one: true, .. }
                if !self.is_progressive()
                    && self.first_scan_components.is_some()
                    && self.has_several_scans() =>
            {
                "a baseline JPEG with its colour components in several scans"
            }
            _ => return None,
        };
        Some(Unsupported::Jpeg(kind))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::{Content, Error, Format};

    // The markers of the frames of three kinds of JPEG.
    const BASELINE: u8 = 0xc0;
    const EXTENDED: u8 = 0xc1;
    const PROGRESSIVE: u8 = 0xc2;

    fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xff, marker], &length[..], body].concat()
    }

    /// A frame header of 640 × 480 pixels. `sampling` contains the sampling factors of each
    /// component.
    fn frame_segment(marker: u8, sampling: &[u8]) -> Vec<u8> {
        let mut body = vec![8, 0x01, 0xe0, 0x02, 0x80, sampling.len() as u8];
        for (id, factors) in sampling.iter().enumerate() {
            body.extend([id as u8 + 1, *factors, 0]);
        }
        segment(marker, &body)
    }

    fn scan_segment(components: u8) -> Vec<u8> {
        segment(SOS, &[&[components][..], &vec![0; usize::from(components) * 2 + 3]].concat())
    }

    fn exif_segment(orientation: u8) -> Vec<u8> {
        let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
        segment(APP1, &[b"Exif\0\0", &tiff[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat())
    }

    fn read_parts(parts: &[&[u8]]) -> Result<Jpeg, HeaderError> {
        let bytes = [&[&b"\xff\xd8"[..]], parts].concat().concat();
        read(&mut Content::Memory(bytes.into()).header_reader())
    }

    fn size(parts: &[&[u8]]) -> Option<(u32, u32)> {
        let header = read_parts(parts).and_then(|jpeg| jpeg.header()).ok()?;
        Some((header.width, header.height))
    }

    /// The orientation as EXIF stores it: 1 is upright.
    fn orientation(parts: &[&[u8]]) -> u8 {
        read_parts(parts).unwrap().orientation.to_exif()
    }

    /// The sampling factors of a single component.
    const GREY: &[u8] = &[0x11];
    /// The sampling factors if the two colour components have the full width and height.
    const FULL: &[u8] = &[0x11, 0x11, 0x11];
    /// The sampling factors if the two colour components have half the width and half the height.
    const HALVED: &[u8] = &[0x22, 0x11, 0x11];

    #[test]
    fn stray_bytes_between_segments_are_skipped() {
        let app0 = segment(0xe0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0");
        let (frame, scan) = (frame_segment(BASELINE, FULL), scan_segment(3));
        for between in
            [&b""[..], b"\0", b"\xff", b"\xff\xff\xff", b"stray", b"\xff\0\xff\0", b"\xff\xd0"]
        {
            let parts = [&app0[..], between, &frame, between, &scan];
            assert_eq!(size(&parts), Some((640, 480)), "{}", between.escape_ascii());
        }
    }

    #[test]
    fn a_segment_whose_length_is_wrong_does_not_hide_the_frame() {
        let (frame, scan) = (frame_segment(BASELINE, FULL), scan_segment(3));
        // The correct length is 12, because it includes its own two bytes.
        for length in [0, 1, 2, 5, 12] {
            let mut app5 = segment(0xe5, b"ten bytes.");
            app5[3] = length;
            assert_eq!(size(&[&app5, &frame, &scan]), Some((640, 480)), "{length}");
        }
        // The length is too long: it includes some bytes of the next segment.
        let mut app5 = segment(0xe5, b"ten bytes.");
        app5[3] += 6;
        let tables = segment(0xdb, &[1; 65]);
        assert_eq!(size(&[&app5, &tables, &frame, &scan]), Some((640, 480)));
    }

    #[test]
    fn no_size_is_read_from_a_frame_header_that_is_incomplete_or_follows_a_scan_or_the_end() {
        let frame = frame_segment(BASELINE, FULL);
        assert_eq!(size(&[&frame]), Some((640, 480)));
        assert_eq!(size(&[&frame[..8]]), None);
        assert_eq!(size(&[&scan_segment(3), &frame]), None);
        assert_eq!(size(&[&[0xff, EOI], &frame]), None);
    }

    #[test]
    fn a_height_that_is_stored_after_the_pixels_is_unsupported() {
        let mut frame = frame_segment(BASELINE, FULL);
        frame[5..7].fill(0); // the height
        let result = read_parts(&[&frame, &scan_segment(3)]);
        let Err(HeaderError::Unsupported(kind)) = result else {
            panic!("the picture must be unsupported: {result:?}")
        };
        assert!(kind.to_string().contains("height"), "{kind}");
    }

    #[test]
    fn the_first_valid_orientation_before_the_scan_is_used() {
        let (frame, scan) = (frame_segment(BASELINE, FULL), scan_segment(3));
        let xmp = segment(APP1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>");
        let empty_exif = segment(APP1, b"Exif\0\0II*\0\x08\0\0\0\0\0");
        assert_eq!(orientation(&[&exif_segment(6), &frame, &scan]), 6);
        assert_eq!(orientation(&[&frame, &exif_segment(6), &scan]), 6);
        assert_eq!(orientation(&[&exif_segment(8), &exif_segment(6), &frame, &scan]), 8);
        assert_eq!(orientation(&[&xmp, &empty_exif, &exif_segment(3), &frame, &scan]), 3);
        assert_eq!(orientation(&[&exif_segment(9), &exif_segment(5), &frame, &scan]), 5);
        // EXIF after the first scan or inside of another segment is ignored.
        assert_eq!(orientation(&[&frame, &scan, &exif_segment(6)]), 1);
        assert_eq!(orientation(&[&segment(0xe2, &exif_segment(6)), &frame, &scan]), 1);
    }

    #[test]
    fn undecodable_kinds_are_distinguished_from_decodable_kinds() {
        let undecodable_kind = |parts: &[&[u8]]| {
            read_parts(parts).unwrap().undecodable_kind().map(|kind| kind.to_string())
        };
        for [frame, scan] in [
            [frame_segment(BASELINE, FULL), scan_segment(3)],
            [frame_segment(BASELINE, HALVED), scan_segment(3)],
            [frame_segment(EXTENDED, HALVED), scan_segment(3)],
            [frame_segment(BASELINE, GREY), scan_segment(1)],
            [frame_segment(BASELINE, FULL), scan_segment(1)],
            [frame_segment(PROGRESSIVE, HALVED), scan_segment(1)],
            [frame_segment(BASELINE, &[0x11; 4]), scan_segment(4)],
        ] {
            assert_eq!(undecodable_kind(&[&frame, &scan]), None);
        }
        let mut with_12_bits = frame_segment(EXTENDED, FULL);
        with_12_bits[4] = 12; // the precision
        for (frame, scan, word) in [
            (frame_segment(BASELINE, HALVED), scan_segment(1), "several scans"),
            (frame_segment(BASELINE, HALVED), scan_segment(2), "several scans"),
            (frame_segment(BASELINE, &[0x22; 3]), scan_segment(1), "several scans"),
            (frame_segment(0xc3, FULL), scan_segment(3), "lossless"),
            (frame_segment(0xc5, FULL), scan_segment(3), "hierarchical"),
            (frame_segment(0xc9, FULL), scan_segment(3), "arithmetic"),
            (frame_segment(0xca, FULL), scan_segment(3), "arithmetic"),
            (with_12_bits, scan_segment(3), "bits"),
            (frame_segment(BASELINE, &[0x11; 2]), scan_segment(2), "neither grey nor RGB"),
        ] {
            let text = undecodable_kind(&[&frame, &scan]).unwrap_or_default();
            assert!(text.contains(word), "{word}: {text}");
            // The picture is a JPEG already, so the text must not advise to send it as a JPEG.
            assert!(!text.contains("as a JPEG"), "{word}: {text}");
        }
    }

    #[test]
    fn a_header_that_takes_too_much_work_is_refused_even_after_the_size_was_read() {
        const NO_PIXEL_LIMIT: u64 = u64::MAX;
        let probe_with_bytes_after_the_frame = |bytes: &[u8]| {
            let parts =
                [b"\xff\xd8", &frame_segment(BASELINE, HALVED)[..], bytes, &scan_segment(1)];
            crate::image::probe(Content::Memory(parts.concat().into()), NO_PIXEL_LIMIT)
        };
        let fill_bytes = [0xff; 100_000];
        assert_eq!(probe_with_bytes_after_the_frame(&fill_bytes).unwrap().width, 640);
        // Each comment takes several steps. Together they exceed `MAX_HEADER_STEPS`, about a million.
        let empty_comments = b"\xff\xfe\0\x02".repeat(600_000);
        let error = probe_with_bytes_after_the_frame(&empty_comments).unwrap_err();
        assert!(matches!(error, Error::BadHeader(Format::Jpeg)), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_parts(&[&bytes]);
        }
    }
}
