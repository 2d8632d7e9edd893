//! Reads the headers of a JPEG (ITU-T T.81, annex B), up to its first scan.
//!
//! As libjpeg does, it goes on to the next marker from wherever a segment ends: there may be any
//! number of 0xFF before a marker (B.1.1.2), and cameras leave stray bytes between segments and write
//! wrong lengths.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader, exif};
use crate::image::Unsupported;

/// What a JPEG's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Jpeg {
    pub(in crate::image) frame: Frame,
    /// How many components the first scan has; `None` where the file ends before it.
    scanned: Option<u8>,
    orientation: Orientation,
}

/// The frame header (B.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Frame {
    marker: u8,
    /// Bits of a sample.
    precision: u8,
    width: u16,
    height: u16,
    pub(in crate::image) components: u8,
    /// Whether some sampling factor is not one.
    is_subsampled: bool,
}

const TEM: u8 = 0x01;
pub(in crate::image) const SOI: u8 = 0xd8;
pub(in crate::image) const EOI: u8 = 0xd9;
pub(in crate::image) const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;

/// Reads the headers up to the first scan.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Jpeg, Fault> {
    let mut headers = Headers::default();
    reader.seek(SeekFrom::Start(2)).map_err(|_| Fault::Damaged)?;
    while headers.read_segment(reader).is_some() {}
    let Headers { frame, scanned, orientation } = headers;
    let frame = frame.ok_or(Fault::Damaged)?;
    if frame.height == 0 {
        return Err(Fault::Unsupported(Unsupported::Jpeg(
            "a JPEG that tells its height behind its pixels only",
        )));
    }
    Ok(Jpeg { frame, scanned, orientation: orientation.unwrap_or(Orientation::NoTransforms) })
}

/// What was read so far.
#[derive(Debug, Default)]
struct Headers {
    frame: Option<Frame>,
    scanned: Option<u8>,
    /// Of the first EXIF segment that has one.
    orientation: Option<Orientation>,
}

impl Headers {
    /// Reads the next segment; `None` at the first scan, and where the file ends before it.
    fn read_segment(&mut self, reader: &mut Reader) -> Option<()> {
        let marker = next_marker(reader).ok()??;
        match marker {
            EOI => return None,
            _ if stands_alone(marker) => return Some(()),
            _ => {}
        }
        let mut length = [0; 2];
        reader.read_exact(&mut length).ok()?;
        let length = u16::from_be_bytes(length).saturating_sub(2);
        let has_exif = marker == APP1 && self.orientation.is_none();
        if marker != SOS && !has_exif && !is_frame(marker) {
            return reader.seek_relative(length.into()).ok();
        }
        let mut segment = vec![0; length.into()];
        reader.read_exact(&mut segment).ok()?;
        match marker {
            APP1 => self.orientation = exif::orientation_of_segment(&segment),
            SOS => {
                self.scanned = segment.first().copied();
                return None;
            }
            _ => self.frame = self.frame.or(Frame::parse(marker, &segment)),
        }
        Some(())
    }
}

/// SOF0 to SOF15, without DHT, JPG and DAC, which lie between them (T.81, table B.1).
pub(in crate::image) fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// Whether no segment follows: a stuffed zero, TEM, RST0 to RST7, and SOI.
pub(in crate::image) fn stands_alone(marker: u8) -> bool {
    matches!(marker, 0 | TEM | 0xd0..=SOI)
}

/// Goes behind the next marker, whatever stands before it, and gives its second byte; `None` at the
/// end.
pub(in crate::image) fn next_marker(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    let mut is_after_ff = false;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        // Of several 0xFF, the last one begins the marker.
        let is_skipped = |byte: &u8| (*byte == 0xff) == is_after_ff;
        let skipped = bytes.iter().take_while(|byte| is_skipped(byte)).count();
        match bytes.get(skipped).copied() {
            Some(0xff) => is_after_ff = true,
            Some(marker) => {
                reader.consume(skipped + 1);
                return Ok(Some(marker));
            }
            None => {
                reader.consume(skipped);
                continue;
            }
        }
        reader.consume(skipped + 1);
    }
}

impl Frame {
    fn parse(marker: u8, segment: &[u8]) -> Option<Self> {
        let (head, components) = segment.split_at_checked(6)?;
        let side = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        // Identifier, sampling factors and table of each.
        let sampling: Vec<u8> = components.chunks_exact(3).map(|component| component[1]).collect();
        let is_subsampled = sampling.iter().any(|factors| *factors != 0x11);
        Some(Self {
            marker,
            precision: head[0],
            height: side(1),
            width: side(3),
            components: head[5],
            is_subsampled,
        })
    }
}

impl Jpeg {
    /// What the header of any format says.
    pub(super) fn header(&self) -> Result<Header, Fault> {
        let Frame { width, height, .. } = self.frame;
        Header::new(width.into(), height.into(), self.orientation).ok_or(Fault::Damaged)
    }

    /// Whether the pixels come in several scans that refine each other, or in one for each component:
    /// they are then held as coefficients.
    pub(in crate::image) fn has_several_scans(&self) -> bool {
        self.is_progressive() || self.scanned != Some(self.frame.components)
    }

    fn is_progressive(&self) -> bool {
        matches!(self.frame.marker, 0xc2 | 0xc6 | 0xca | 0xce)
    }

    /// Which kind of JPEG this is, if it is one that is not decoded, although it can be sent as it is.
    pub(in crate::image) fn undecodable(&self) -> Option<Unsupported> {
        let kind = match self.frame {
            Frame { marker: 0xc3, .. } => "a lossless JPEG",
            Frame { marker: 0xc5..=0xc7, .. } => "a hierarchical JPEG",
            Frame { marker: 0xc9..=0xcf, .. } => "a JPEG with arithmetic coding",
            Frame { precision, .. } if precision != 8 => "a JPEG with more than 8 bits a sample",
            Frame { components, .. } if !matches!(components, 1 | 3 | 4) => {
                "a JPEG that is neither grey nor RGB nor CMYK"
            }
            // zune-jpeg 0.5.15 decodes it to a green picture (zune-image, issues 419 and 422).
            Frame { is_subsampled: true, .. }
                if !self.is_progressive() && self.scanned.is_some() && self.has_several_scans() =>
            {
                "a baseline JPEG with a scan for each of its colour components"
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

    fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xff, marker], &length[..], body].concat()
    }

    /// A frame of 640 × 480 with these sampling factors.
    fn frame(marker: u8, sampling: &[u8]) -> Vec<u8> {
        let mut body = vec![8, 0x01, 0xe0, 0x02, 0x80, sampling.len() as u8];
        for (id, factors) in sampling.iter().enumerate() {
            body.extend([id as u8 + 1, *factors, 0]);
        }
        segment(marker, &body)
    }

    fn scan(components: u8) -> Vec<u8> {
        segment(SOS, &[&[components][..], &vec![0; usize::from(components) * 2 + 3]].concat())
    }

    fn exif(orientation: u8) -> Vec<u8> {
        let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
        segment(APP1, &[b"Exif\0\0", &tiff[..], &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat())
    }

    fn read_parts(parts: &[&[u8]]) -> Result<Jpeg, Fault> {
        let bytes = [&[&b"\xff\xd8"[..]], parts].concat().concat();
        read(&mut Content::Memory(bytes.into()).header_reader())
    }

    fn size(parts: &[&[u8]]) -> Option<(u32, u32)> {
        let header = read_parts(parts).and_then(|jpeg| jpeg.header()).ok()?;
        Some((header.width, header.height))
    }

    fn orientation(parts: &[&[u8]]) -> u8 {
        read_parts(parts).unwrap().orientation.to_exif()
    }

    const GREY: &[u8] = &[0x11];
    const FULL: &[u8] = &[0x11, 0x11, 0x11];
    const HALVED: &[u8] = &[0x22, 0x11, 0x11];

    #[test]
    fn what_stands_between_segments_is_passed_over() {
        let app = segment(0xe0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0");
        let (frame, scan) = (frame(0xc0, FULL), scan(3));
        for between in
            [&b""[..], b"\0", b"\xff", b"\xff\xff\xff", b"stray", b"\xff\0\xff\0", b"\xff\xd0"]
        {
            let parts = [&app[..], between, &frame, between, &scan];
            assert_eq!(size(&parts), Some((640, 480)), "{}", between.escape_ascii());
        }
    }

    #[test]
    fn a_segment_whose_length_is_wrong_does_not_hide_the_frame() {
        let (frame, scan) = (frame(0xc0, FULL), scan(3));
        for length in [0, 1, 2, 5, 12] {
            let mut app = segment(0xe5, b"ten bytes.");
            app[3] = length;
            assert_eq!(size(&[&app, &frame, &scan]), Some((640, 480)), "{length}");
        }
        // Too long by some bytes of the next segment.
        let mut app = segment(0xe5, b"ten bytes.");
        app[3] += 6;
        let tables = segment(0xdb, &[1; 65]);
        assert_eq!(size(&[&app, &tables, &frame, &scan]), Some((640, 480)));
    }

    #[test]
    fn a_file_that_ends_after_its_frame_tells_its_size() {
        assert_eq!(size(&[&frame(0xc0, FULL)]), Some((640, 480)));
        assert_eq!(size(&[&frame(0xc0, FULL)[..8]]), None);
        assert_eq!(size(&[&scan(3), &frame(0xc0, FULL)]), None);
        assert_eq!(size(&[b"\xff\xd9", &frame(0xc0, FULL)]), None);
    }

    #[test]
    fn a_height_that_comes_behind_the_pixels_is_named() {
        let mut frame = frame(0xc0, FULL);
        frame[5..7].copy_from_slice(&[0, 0]);
        let Err(Fault::Unsupported(kind)) = read_parts(&[&frame, &scan(3)]) else {
            panic!("must be unsupported")
        };
        assert!(kind.to_string().contains("height"), "{kind}");
    }

    #[test]
    fn the_first_exif_that_tells_an_orientation_counts() {
        let (frame, scan) = (frame(0xc0, FULL), scan(3));
        let xmp = segment(APP1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>");
        let silent = segment(APP1, b"Exif\0\0II*\0\x08\0\0\0\0\0");
        assert_eq!(orientation(&[&exif(6), &frame, &scan]), 6);
        assert_eq!(orientation(&[&frame, &exif(6), &scan]), 6);
        assert_eq!(orientation(&[&exif(8), &exif(6), &frame, &scan]), 8);
        assert_eq!(orientation(&[&xmp, &silent, &exif(3), &frame, &scan]), 3);
        assert_eq!(orientation(&[&exif(9), &exif(5), &frame, &scan]), 5);
        // Behind the first scan, and inside of another segment, it is somebody else's.
        assert_eq!(orientation(&[&frame, &scan, &exif(6)]), 1);
        assert_eq!(orientation(&[&segment(0xe2, &exif(6)), &frame, &scan]), 1);
    }

    #[test]
    fn kinds_that_are_not_decoded_are_named() {
        let named =
            |parts: &[&[u8]]| read_parts(parts).unwrap().undecodable().map(|kind| kind.to_string());
        for decoded in [
            [frame(0xc0, FULL), scan(3)],
            [frame(0xc0, HALVED), scan(3)],
            [frame(0xc1, HALVED), scan(3)],
            [frame(0xc0, GREY), scan(1)],
            [frame(0xc0, FULL), scan(1)],
            [frame(0xc2, HALVED), scan(1)],
            [frame(0xc0, &[0x11; 4]), scan(4)],
        ] {
            assert_eq!(named(&[&decoded[0], &decoded[1]]), None);
        }
        let mut deep = frame(0xc1, FULL);
        deep[4] = 12;
        for (frame, scan, word) in [
            (frame(0xc0, HALVED), scan(1), "scan for each"),
            (frame(0xc0, HALVED), scan(2), "scan for each"),
            (frame(0xc0, &[0x22; 3]), scan(1), "scan for each"),
            (frame(0xc3, FULL), scan(3), "lossless"),
            (frame(0xc5, FULL), scan(3), "hierarchical"),
            (frame(0xc9, FULL), scan(3), "arithmetic"),
            (frame(0xca, FULL), scan(3), "arithmetic"),
            (deep, scan(3), "bits"),
            (frame(0xc0, &[0x11; 2]), scan(2), "neither grey nor RGB"),
        ] {
            let named = named(&[&frame, &scan]).unwrap_or_default();
            assert!(named.contains(word) && !named.contains("as a JPEG"), "{word}: {named}");
        }
    }

    #[test]
    fn a_header_of_endless_work_is_refused_and_not_taken_for_a_short_one() {
        let after = |between: &[u8]| {
            let parts = [b"\xff\xd8", &frame(0xc0, HALVED)[..], between, &scan(1)];
            Content::Memory(parts.concat().into())
        };
        let fill = crate::image::probe(after(&[0xff; 100_000]), u64::MAX);
        assert_eq!(fill.unwrap().width, 640);
        let content = after(&b"\xff\xfe\0\x02".repeat(600_000));
        let error = crate::image::probe(content, u64::MAX).unwrap_err();
        assert!(matches!(error, Error::BadHeader(Format::Jpeg)), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_parts(&[&bytes]);
        }
    }
}
