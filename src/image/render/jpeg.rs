//! Decodes JPEG (ITU-T T.81).
//!
//! The decoder (zune-jpeg) gets only the parts that affect the pixels: the tables, the `AVI1` and `Adobe`
//! segments, the first frame and its scans. It handles stray bytes, wrong lengths and markers without a
//! segment differently from libjpeg and from `header::jpeg`. If it got the whole file, it would refuse
//! pictures that libjpeg decodes, or decode another frame than the frame whose size was checked.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use image_rs::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::{
    JpegDecoder,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use crate::image::{
    Error, Format, Picture, Reader,
    header::jpeg::{EOI, SOI, SOS, has_no_segment, is_frame, next_marker},
};

/// The maximum number of scans. A baseline photograph has one scan, and a progressive photograph about
/// ten. The decoder visits all pixels for each scan, so thousands of empty scans would take minutes.
const MAX_SCANS: usize = 100;

// The markers of two application segments. `affects_pixels` tells which of their contents matter.
const APP0: u8 = 0xe0;
const APP14: u8 = 0xee;

/// Decodes the picture without applying the EXIF orientation.
pub(super) fn decode(picture: &Picture) -> Result<RgbImage, Error> {
    let len = usize::try_from(picture.content.len()).map_err(|_| broken("it is too long"))?;
    let bytes = decodable_segments(&mut picture.content.reader(), len)?;
    let bytes = bytes.ok_or_else(|| broken("too many scans"))?;
    let (width, height) = (picture.width, picture.height);
    let grey_or_rgb = |input| if input == ColorSpace::Luma { input } else { ColorSpace::RGB };
    let decoded = decode_segments(&bytes, (width, height), grey_or_rgb);
    let Samples { colors, bytes: pixels } = decoded.map_err(|reason| broken(&reason))?;
    let image = if colors == ColorSpace::Luma {
        GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    Ok(image.ok_or_else(|| broken("its frame does not have the size in the header"))?.into_rgb8())
}

/// The decoded samples of a JPEG.
pub(super) struct Samples {
    pub colors: ColorSpace,
    pub bytes: Vec<u8>,
}

/// Decodes what [`decodable_segments`] has returned. `output_colors` gets the colour space of the JPEG,
/// and returns the one that the samples should have.
///
/// # Errors
/// Why the JPEG cannot be decoded. A frame that is larger than `width` × `height` is an error, because
/// the limits of pixels and memory were checked for this size.
pub(super) fn decode_segments(
    segments: &[u8],
    (width, height): (u32, u32),
    output_colors: impl FnOnce(ColorSpace) -> ColorSpace,
) -> Result<Samples, String> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(width as usize)
        .set_max_height(height as usize);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(segments), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let input_colors = decoder.input_colorspace().ok_or("it has no colours")?;
    let colors = output_colors(input_colors);
    decoder.set_options(options.jpeg_set_out_colorspace(colors));
    let bytes = decoder.decode().map_err(|error| error.to_string())?;
    Ok(Samples { colors, bytes })
}

fn broken(reason: &str) -> Error {
    Error::Broken { format: Format::Jpeg, reason: reason.to_owned() }
}

/// Reads a JPEG of `len` bytes, and returns only the segments and scans that the decoder needs. Returns
/// `None` if there are too many scans.
pub(super) fn decodable_segments(reader: &mut Reader, len: usize) -> io::Result<Option<Vec<u8>>> {
    const DHT: u8 = 0xc4; // Huffman tables
    const DQT: u8 = 0xdb; // quantization tables
    const DRI: u8 = 0xdd; // the restart interval
    let mut output = Vec::with_capacity(len);
    output.extend([0xff, SOI]);
    let (mut has_frame, mut scan_count) = (false, 0);
    reader.seek(SeekFrom::Start(2))?;
    let mut next = next_marker(reader)?;
    while let Some(marker) = next {
        if marker == EOI {
            output.extend([0xff, EOI]);
            break;
        }
        if has_no_segment(marker) {
            next = next_marker(reader)?;
            continue;
        }
        let mut length = [0; 2];
        // A `Reader` fills the whole buffer, unless the file ends before.
        if reader.read(&mut length)? < length.len() {
            break;
        }
        // The length includes itself. The invalid lengths 0 and 1 count as 2, as in `header::jpeg`.
        let length = u16::from_be_bytes(length).max(2);
        let is_first_frame = is_frame(marker) && !has_frame;
        has_frame |= is_first_frame;
        if is_first_frame || matches!(marker, DHT | DQT | DRI | APP0 | APP14 | SOS) {
            let start = output.len();
            output.extend([0xff, marker]);
            output.extend(length.to_be_bytes());
            reader.by_ref().take(u64::from(length) - 2).read_to_end(&mut output)?;
            let body_start = start + 4; // after the marker and the length, of two bytes each
            if !affects_pixels(marker, &output[body_start..]) {
                output.truncate(start);
            }
        } else {
            reader.seek_relative(i64::from(length) - 2)?;
        }
        next = if marker == SOS {
            scan_count += 1;
            if scan_count > MAX_SCANS {
                return Ok(None);
            }
            copy_scan(reader, &mut output)?
        } else {
            next_marker(reader)?
        };
    }
    Ok(Some(output))
}

/// Whether a segment changes how the pixels are decoded. Of the application segments, only two do:
/// `AVI1` of Motion JPEG, which means that the Huffman tables may be missing, and `Adobe`, which contains
/// the colour transform.
///
/// A truncated or invalid `Adobe` segment is left out, because the decoder refuses it and libjpeg
/// ignores it.
fn affects_pixels(marker: u8, body: &[u8]) -> bool {
    match marker {
        APP0 => body.starts_with(b"AVI1"),
        APP14 => matches!(body, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, 0..=2, ..]),
        _ => true,
    }
}

/// Copies the compressed data of a scan. Returns the marker that ends the data, or `None` at the
/// end of the file. Within the data, a 0xFF is followed by zero, or it starts a restart marker,
/// RST0 to RST7 (T.81, B.1.1.5).
fn copy_scan(reader: &mut Reader, output: &mut Vec<u8>) -> io::Result<Option<u8>> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let data_len = bytes.iter().position(|byte| *byte == 0xff).unwrap_or(bytes.len());
        output.extend_from_slice(&bytes[..data_len]);
        let has_no_ff = data_len == bytes.len();
        reader.consume(data_len);
        if has_no_ff {
            continue;
        }
        match next_marker(reader)? {
            Some(part_of_data @ (0 | 0xd0..=0xd7)) => output.extend([0xff, part_of_data]),
            marker => return Ok(marker),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Content;

    /// A frame header: one grey pixel.
    const SOF: &[u8] = b"\xff\xc0\0\x0b\x08\0\x01\0\x01\x01\x01\x11\0";
    /// A scan. Its data contains 0xFF with a zero, and then a restart marker.
    const SCAN: &[u8] = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\0\0\xff\0\xff\xd0\x07";
    const END: &[u8] = b"\xff\xd9";

    /// The decodable segments of a JPEG with these parts after its SOI.
    fn decodable_segments_of(parts: &[&[u8]]) -> Option<Vec<u8>> {
        let bytes = [&[&b"\xff\xd8"[..]], parts].concat().concat();
        let len = bytes.len();
        decodable_segments(&mut Content::Memory(bytes.into()).reader(), len).unwrap()
    }

    #[test]
    fn a_hundred_scans_are_accepted_and_a_hundred_and_one_are_refused() {
        assert!(decodable_segments_of(&[&SCAN.repeat(100)]).is_some());
        assert!(decodable_segments_of(&[&SCAN.repeat(100), END]).is_some());
        assert!(decodable_segments_of(&[&SCAN.repeat(101)]).is_none());
        // With additional 0xFF bytes before the first marker.
        assert!(decodable_segments_of(&[b"\xff\xff", &SCAN.repeat(101)]).is_none());
    }

    #[test]
    fn scan_markers_within_a_segment_or_after_the_end_are_not_counted() {
        // The segment's length is 0x07D2: two bytes of the length itself and 2000 bytes of markers.
        let scan_markers = b"\xff\xda".repeat(1000);
        assert!(decodable_segments_of(&[b"\xff\xe1\x07\xd2", &scan_markers, SCAN, END]).is_some());
        assert!(decodable_segments_of(&[SCAN, END, &SCAN.repeat(1000)]).is_some());
    }

    #[test]
    fn only_the_parts_that_affect_the_pixels_are_returned() {
        let table = b"\xff\xdb\0\x05\0\x01\x02";
        let adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";
        let clean = [b"\xff\xd8", &table[..], adobe, SOF, SCAN, END].concat();
        assert_eq!(decodable_segments_of(&[table, adobe, SOF, SCAN, END]), Some(clean.clone()));
        let other_frame = b"\xff\xc2\0\x0b\x08\0\x09\0\x09\x01\x01\x11\0";
        for superfluous in [
            &b"stray"[..],
            b"\0",
            b"\xff\xff\xff",
            b"\xff\0",
            // Markers without a segment.
            b"\xff\xd0\xff\xd8\xff\x01",
            // Segments with an invalid length.
            b"\xff\xe5\0\0",
            b"\xff\xfe\0\x01",
            // Segments that do not affect the pixels.
            b"\xff\xe1\0\x08Exif\0\0",
            b"\xff\xe0\0\x07JFIF\0",
            b"\xff\xee\0\x07Adobe",
            b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07",
        ] {
            let parts =
                [table, superfluous, adobe, SOF, superfluous, SCAN, superfluous, END, superfluous];
            let output = decodable_segments_of(&parts).unwrap();
            let label = superfluous.escape_ascii();
            assert!(output.starts_with(&clean[..clean.len() - END.len()]), "{label}");
            // After a scan, stray bytes, 0xFF with a zero, and restart markers become part of its data.
            let added_len = match superfluous {
                [0xff, 0 | 0xd0, ..] => 2,
                [0xff, ..] => 0,
                stray_bytes => stray_bytes.len(),
            };
            assert_eq!(output.len(), clean.len() + added_len, "{label}");
        }
        let with_two_frames = decodable_segments_of(&[table, adobe, SOF, other_frame, SCAN, END]);
        assert_eq!(with_two_frames, Some(clean));
    }

    #[test]
    fn the_segments_of_a_truncated_file_are_no_longer_than_the_file() {
        let after_soi = [SOF, SCAN, END].concat();
        for len in 0..after_soi.len() {
            let output = decodable_segments_of(&[&after_soi[..len]]).unwrap();
            let file_len = 2 + len;
            assert!(output.len() <= file_len, "{} of {file_len} bytes", output.len());
        }
    }
}
