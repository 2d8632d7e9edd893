//! Counts the scans of a JPEG.

use std::io::{self, BufRead};

/// Photographs have one scan, progressive ones about ten.
const MOST: usize = 100;

/// Each scan makes the decoder go over all the pixels: thousands of empty ones would keep it busy
/// for minutes. Markers cannot occur within compressed data (ITU-T T.81, B.1.1.5), so the bytes
/// alone tell how many there are.
pub(super) fn has_too_many_scans(reader: &mut impl BufRead) -> io::Result<bool> {
    let (mut scans, mut after_ff) = (0, false);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        for byte in bytes {
            scans += usize::from(after_ff && *byte == 0xda);
            after_ff = *byte == 0xff;
        }
        if scans > MOST {
            return Ok(true);
        }
        let len = bytes.len();
        reader.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_scans_are_read_and_one_more_is_too_many() {
        let scans = |count| {
            [&b"\xff\xd8"[..], &b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\0\0".repeat(count)].concat()
        };
        assert!(!has_too_many_scans(&mut &scans(100)[..]).unwrap());
        assert!(has_too_many_scans(&mut &scans(101)[..]).unwrap());
    }
}
