//! Counts the scans of a JPEG.

use std::io::{self, BufRead, Seek};

use super::jpeg::{EOI, SOS, next_marker, stands_alone};

/// Photographs have one scan, progressive ones about ten.
const MOST: usize = 100;

/// Each scan makes the decoder go over all the pixels: thousands of empty ones would keep it busy
/// for minutes. Only the picture's own scans count: segments are skipped by their length, for they
/// may hold anything (a thumbnail, a profile), and so may what follows the end (a phone's film).
/// Within compressed data 0xFF is followed by 0 or by a marker (ITU-T T.81, B.1.1.5).
pub(in crate::image) fn has_too_many_scans(reader: &mut (impl BufRead + Seek)) -> io::Result<bool> {
    let mut scans = 0;
    loop {
        let Some(marker) = next_marker(reader)? else { return Ok(false) };
        match marker {
            EOI => return Ok(false),
            _ if stands_alone(marker) => continue,
            SOS => scans += 1,
            _ => {}
        }
        if scans > MOST {
            return Ok(true);
        }
        let mut len = [0; 2];
        if reader.read_exact(&mut len).is_err() {
            return Ok(false); // cut short
        }
        reader.seek_relative(i64::from(u16::from_be_bytes(len)).saturating_sub(2).max(0))?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const SCAN: &[u8] = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\0\0\xff\0\xff\xd0\x07";

    fn too_many(parts: &[&[u8]]) -> bool {
        has_too_many_scans(&mut Cursor::new([&[&b"\xff\xd8"[..]], parts].concat().concat()))
            .unwrap()
    }

    #[test]
    fn a_hundred_scans_are_read_and_one_more_is_too_many() {
        assert!(!too_many(&[&SCAN.repeat(100)]));
        assert!(!too_many(&[&SCAN.repeat(100), b"\xff\xd9"]));
        assert!(too_many(&[&SCAN.repeat(101)]));
        assert!(too_many(&[b"\xff\xff", &SCAN.repeat(101)]));
    }

    #[test]
    fn what_segments_hold_and_what_follows_the_end_are_no_scans() {
        let filled = b"\xff\xda".repeat(1000);
        assert!(!too_many(&[b"\xff\xe1\x07\xd2", &filled, SCAN, b"\xff\xd9"]));
        assert!(!too_many(&[SCAN, b"\xff\xd9", &SCAN.repeat(1000)]));
    }
}
