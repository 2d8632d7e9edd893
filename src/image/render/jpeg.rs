//! Decodes JPEG (ITU-T T.81).
//!
//! The decoder is given the tables, the first frame and its scans alone. Between them, it would pass
//! over stray bytes, wrong lengths and markers without a segment in another way than the header's
//! reader and libjpeg do: it would refuse pictures that everybody shows, or decode another frame than
//! the one that was judged by.

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

/// The most scans. Photographs have one, progressive ones about ten; each makes the decoder go over
/// all pixels, and thousands of empty ones would keep it busy for minutes.
const MAX_SCANS: usize = 100;

const APP0: u8 = 0xe0;
const APP14: u8 = 0xee;

/// Decodes the picture as it is stored.
pub(super) fn decode(picture: &Picture) -> Result<RgbImage, Error> {
    let len = usize::try_from(picture.content.len()).map_err(|_| broken("it is too long"))?;
    let bytes = essential(&mut picture.content.reader(), len)?;
    let bytes = bytes.ok_or_else(|| broken("too many scans"))?;
    // The size by which the picture was judged; a frame of another one is refused.
    let (width, height) = (picture.width, picture.height);
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(width as usize)
        .set_max_height(height as usize);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes[..]), options);
    decoder.decode_headers().map_err(|error| broken(&format!("{error:?}")))?;
    let is_grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colours = if is_grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(|error| broken(&format!("{error:?}")))?;
    let image = if is_grey {
        GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    Ok(image.ok_or_else(|| broken("its frame has another size"))?.into_rgb8())
}

fn broken(reason: &str) -> Error {
    Error::Broken { format: Format::Jpeg, reason: reason.to_owned() }
}

/// What is decoded of a file of this length; `None` if it has too many scans.
pub(super) fn essential(reader: &mut Reader, len: usize) -> io::Result<Option<Vec<u8>>> {
    const DHT: u8 = 0xc4;
    const DQT: u8 = 0xdb;
    const DRI: u8 = 0xdd;
    let mut kept = Vec::with_capacity(len);
    kept.extend([0xff, SOI]);
    let (mut has_frame, mut scans) = (false, 0);
    reader.seek(SeekFrom::Start(2))?;
    let mut next = next_marker(reader)?;
    while let Some(marker) = next {
        if marker == EOI {
            kept.extend([0xff, EOI]);
            break;
        }
        if has_no_segment(marker) {
            next = next_marker(reader)?;
            continue;
        }
        let mut length = [0; 2];
        if reader.read(&mut length)? < length.len() {
            break;
        }
        let length = u16::from_be_bytes(length).max(2);
        let is_first_frame = is_frame(marker) && !has_frame;
        has_frame |= is_first_frame;
        if is_first_frame || matches!(marker, DHT | DQT | DRI | APP0 | APP14 | SOS) {
            let start = kept.len();
            kept.extend([0xff, marker]);
            kept.extend(length.to_be_bytes());
            reader.by_ref().take(u64::from(length) - 2).read_to_end(&mut kept)?;
            if !is_understood(marker, &kept[start + 4..]) {
                kept.truncate(start);
            }
        } else {
            reader.seek_relative(i64::from(length) - 2)?;
        }
        next = if marker == SOS {
            scans += 1;
            if scans > MAX_SCANS {
                return Ok(None);
            }
            copy_scan(reader, &mut kept)?
        } else {
            next_marker(reader)?
        };
    }
    Ok(Some(kept))
}

/// Whether the decoder understands a segment. Of those that applications write, two change how a
/// picture is decoded: Motion JPEG's, which leaves out its tables, and Adobe's, which says how colours
/// are stored. The decoder refuses one that is cut short; libjpeg passes over it.
fn is_understood(marker: u8, body: &[u8]) -> bool {
    match marker {
        APP0 => body.starts_with(b"AVI1"),
        APP14 => matches!(body, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, 0..=2, ..]),
        _ => true,
    }
}

/// Copies compressed data up to the next marker that is none of its own, and gives its second byte;
/// `None` at the end. Within the data, 0xFF is followed by zero or is a restart (T.81, B.1.1.5).
fn copy_scan(reader: &mut Reader, kept: &mut Vec<u8>) -> io::Result<Option<u8>> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let data = bytes.iter().position(|byte| *byte == 0xff).unwrap_or(bytes.len());
        kept.extend_from_slice(&bytes[..data]);
        let is_all = data == bytes.len();
        reader.consume(data);
        if is_all {
            continue;
        }
        match next_marker(reader)? {
            Some(own @ (0 | 0xd0..=0xd7)) => kept.extend([0xff, own]),
            next => return Ok(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Content;

    const SOF: &[u8] = b"\xff\xc0\0\x0b\x08\0\x01\0\x01\x01\x01\x11\0";
    const SCAN: &[u8] = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\0\0\xff\0\xff\xd0\x07";
    const END: &[u8] = b"\xff\xd9";

    fn essential_of(parts: &[&[u8]]) -> Option<Vec<u8>> {
        let bytes = [&[&b"\xff\xd8"[..]], parts].concat().concat();
        let len = bytes.len();
        essential(&mut Content::Memory(bytes.into()).reader(), len).unwrap()
    }

    #[test]
    fn a_hundred_scans_are_decoded_and_one_more_is_too_many() {
        assert!(essential_of(&[&SCAN.repeat(100)]).is_some());
        assert!(essential_of(&[&SCAN.repeat(100), END]).is_some());
        assert!(essential_of(&[&SCAN.repeat(101)]).is_none());
        assert!(essential_of(&[b"\xff\xff", &SCAN.repeat(101)]).is_none());
    }

    #[test]
    fn what_segments_hold_and_what_follows_the_end_are_no_scans() {
        let filled = b"\xff\xda".repeat(1000);
        assert!(essential_of(&[b"\xff\xe1\x07\xd2", &filled, SCAN, END]).is_some());
        assert!(essential_of(&[SCAN, END, &SCAN.repeat(1000)]).is_some());
    }

    #[test]
    fn the_decoder_sees_the_tables_the_first_frame_and_its_scans_alone() {
        let table = b"\xff\xdb\0\x05\0\x01\x02";
        let adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";
        let clean = [b"\xff\xd8", &table[..], adobe, SOF, SCAN, END].concat();
        assert_eq!(essential_of(&[table, adobe, SOF, SCAN, END]), Some(clean.clone()));
        let other_frame = b"\xff\xc2\0\x0b\x08\0\x09\0\x09\x01\x01\x11\0";
        for dirt in [
            &b"stray"[..],
            b"\0",
            b"\xff\xff\xff",
            b"\xff\0",
            // Markers that no segment follows.
            b"\xff\xd0\xff\xd8\xff\x01",
            // Lengths that no segment has.
            b"\xff\xe5\0\0",
            b"\xff\xfe\0\x01",
            b"\xff\xe1\0\x08Exif\0\0",
            // What tells the decoder nothing.
            b"\xff\xe0\0\x07JFIF\0",
            b"\xff\xee\0\x07Adobe",
            b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07",
        ] {
            let parts = [table, dirt, adobe, SOF, dirt, SCAN, dirt, END, dirt];
            // Behind the compressed data, stray bytes are a part of it.
            let stray = if dirt.starts_with(b"\xff") { 0 } else { dirt.len() };
            let found = essential_of(&parts).unwrap();
            let expected = clean.len() + stray;
            let is_data = dirt == b"\xff\0" || dirt.starts_with(b"\xff\xd0");
            if !is_data {
                assert_eq!(found.len(), expected, "{}", dirt.escape_ascii());
            }
            assert!(found.starts_with(&clean[..clean.len() - END.len()]));
        }
        let two = essential_of(&[table, adobe, SOF, other_frame, SCAN, END]);
        assert_eq!(two, Some(clean));
    }

    #[test]
    fn a_file_that_is_cut_anywhere_keeps_what_there_is() {
        let whole = [SOF, SCAN, END].concat();
        for len in 0..whole.len() {
            let kept = essential_of(&[&whole[..len]]).unwrap();
            assert!(kept.len() <= len + 4, "{len}");
        }
    }
}
