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
    pub(in crate::image) scanned: Option<u8>,
    orientation: Orientation,
}

/// The frame header (B.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Frame {
    marker: u8,
    /// Bits of a sample.
    precision: u8,
    pub(in crate::image) width: u16,
    pub(in crate::image) height: u16,
    pub(in crate::image) components: u8,
    /// Whether some component has fewer samples than another one.
    is_subsampled: bool,
}

const TEM: u8 = 0x01;
const SOI: u8 = 0xd8;
pub(super) const EOI: u8 = 0xd9;
pub(super) const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;

/// Reads the headers up to the first scan.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Jpeg, Fault> {
    read_at(reader, 0)
}

/// The same of a JPEG that begins somewhere in a file.
pub(in crate::image) fn read_at(reader: &mut Reader, start: u64) -> Result<Jpeg, Fault> {
    let mut headers = Headers::default();
    reader.seek(SeekFrom::Start(start.saturating_add(2))).map_err(|_| Fault::Damaged)?;
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
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// Whether no segment follows: a stuffed zero, TEM, RST0 to RST7, and SOI.
pub(super) fn stands_alone(marker: u8) -> bool {
    matches!(marker, 0 | TEM | 0xd0..=SOI)
}

/// Goes behind the next marker, whatever stands before it, and gives its second byte; `None` at the
/// end.
pub(super) fn next_marker(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    let mut after_ff = false;
    loop {
        let bytes = reader.fill_buf()?;
        let Some(first) = bytes.first().copied() else { return Ok(None) };
        if after_ff {
            // Of several 0xFF, the last one begins the marker.
            reader.consume(1);
            if first != 0xff {
                return Ok(Some(first));
            }
            continue;
        }
        let skipped = bytes.iter().position(|byte| *byte == 0xff);
        after_ff = skipped.is_some();
        let taken = skipped.map_or(bytes.len(), |at| at + 1);
        reader.consume(taken);
    }
}

impl Frame {
    fn parse(marker: u8, segment: &[u8]) -> Option<Self> {
        let (head, components) = segment.split_at_checked(6)?;
        let side = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        // Identifier, sampling factors and table of each.
        let sampling: Vec<u8> = components.chunks_exact(3).map(|component| component[1]).collect();
        let is_subsampled = sampling.iter().any(|factors| Some(factors) != sampling.first());
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
        self.is_progressive()
            || self.scanned.is_some_and(|scanned| scanned != self.frame.components)
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
            // zune-jpeg before 0.5.16 decodes it to a green picture (zune-image, issues 419 and 422);
            // image before 0.25.11 cannot use 0.5.16.
            Frame { is_subsampled: true, .. }
                if !self.is_progressive() && self.has_several_scans() =>
            {
                "a baseline JPEG with a scan for each of its colour components"
            }
            _ => return None,
        };
        Some(Unsupported::Jpeg(kind))
    }
}
