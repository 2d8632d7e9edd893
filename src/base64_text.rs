//! Base64 as clients write it: in either alphabet; with padding, without, or with too much;
//! wrapped, escaped, surrounded by blanks, or after a `data:` prefix. The text is normalized in
//! place, so that a large body needs no second buffer of its size.

use std::{ops::Range, sync::LazyLock};

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurposeConfig, Simd},
};

/// How much text is decoded at once, in characters; a multiple of four.
pub const PIECE: usize = 64 * 1024;

/// [`normalize`] checks the padding. Left-over bits in the last character are ignored, as Python
/// does.
static ENGINE: LazyLock<Simd> = LazyLock::new(|| {
    Simd::standard(
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    )
});

/// How much text [`plain_prefix`] checks at once, in bytes.
const BLOCK: usize = 64;

/// Marks line breaks and tabs in [`MEANINGS`].
const SKIPPED: u8 = 0;
/// Marks padding in [`MEANINGS`].
const PADDING: u8 = 1;
/// Marks anything that is not Base64 in [`MEANINGS`], including a blank within the text.
const INVALID: u8 = 2;

/// The meaning of each byte: a character of the standard alphabet, or one of the marks above. A
/// table is faster than comparisons, because a processor mispredicts nearly every branch that tells
/// letters from digits.
const MEANINGS: [u8; 256] = {
    let mut table = [INVALID; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'\r' | b'\n' | b'\t' => SKIPPED,
            b'=' => PADDING,
            b'-' => b'+',
            b'_' => b'/',
            own @ (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/') => own,
            _ => INVALID,
        };
        byte += 1;
    }
    table
};

/// The largest body that a picture may come in: four characters for three bytes, line breaks and
/// escapes, and the rest of the JSON.
pub fn body_limit(max_image_bytes: u64) -> u64 {
    let text = max_image_bytes.div_ceil(3) * 4;
    text + text / 12 + 64 * 1024
}

/// Why text is not Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A space, where form decoding replaced a `+`.
    #[error("image_base64 holds a space where a + got lost; send it as JSON, not form-encoded.")]
    Space,
    /// A `data:` URL without its comma.
    #[error("image_base64 begins with data: but has no comma before the Base64 text.")]
    NoComma,
    /// A character of neither alphabet.
    #[error("image_base64 holds characters that are not Base64; send the text that base64 prints.")]
    Alphabet,
    /// More text after the padding.
    #[error("image_base64 goes on after its padding (=); send one picture, as one text.")]
    Continued,
    /// A length or padding that no encoding of whole bytes has.
    #[error("image_base64 is not complete Base64; is it cut short?")]
    Length,
    /// No text to decode.
    #[error("image_base64 is empty; send the picture as Base64.")]
    Empty,
}

/// Decodes normalized text, or a piece of it that starts at a multiple of four characters.
///
/// # Errors
/// [`Fault::Length`] if the text ends within a byte.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, Fault> {
    ENGINE.decode(text).map_err(|_| Fault::Length)
}

/// How many bytes at the beginning are of the standard alphabet, in whole blocks. Nearly all text
/// is like this, and checking whole blocks is many times faster than checking single bytes.
fn plain_prefix(text: &[u8]) -> usize {
    let is_plain = |byte: &u8| {
        byte.is_ascii_uppercase()
            | byte.is_ascii_lowercase()
            | byte.is_ascii_digit()
            | (*byte == b'+')
            | (*byte == b'/')
    };
    // No branch for each byte, so that the compiler can vectorize the loop.
    let blocks = text.chunks_exact(BLOCK);
    blocks.take_while(|block| block.iter().fold(true, |plain, byte| plain & is_plain(byte))).count()
        * BLOCK
}

/// Turns the content of a JSON string into unpadded Base64 text of the standard alphabet, in place,
/// and returns its range. A plain beginning is not moved.
///
/// # Errors
/// [`Fault`]
pub fn normalize(text: &mut [u8]) -> Result<Range<usize>, Fault> {
    let len = unescape(text);
    let Range { start, end } = encoded_range(&text[..len])?;
    let mut from = start + plain_prefix(&text[start..end]);
    let (mut to, mut padding) = (from, 0);
    while from < end {
        let byte = text[from];
        from += 1;
        text[to] = match MEANINGS[usize::from(byte)] {
            character if character > INVALID && padding == 0 => character, // the usual case
            SKIPPED => continue,
            PADDING => {
                padding += 1;
                continue;
            }
            INVALID if byte == b' ' => return Err(Fault::Space),
            INVALID => return Err(Fault::Alphabet),
            _ => return Err(Fault::Continued),
        };
        to += 1;
    }
    match ((to - start) % 4, padding) {
        _ if to == start => Err(Fault::Empty),
        // Too much padding is harmless. A single `=` where two belong means that the text was
        // truncated.
        (0 | 3, _) | (2, 0 | 2..) => Ok(start..to),
        _ => Err(Fault::Length),
    }
}

/// The range of the Base64 text, without surrounding blanks and a `data:` prefix.
fn encoded_range(text: &[u8]) -> Result<Range<usize>, Fault> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let is_text = |byte: &u8| !is_blank(byte);
    let first =
        |from: usize| text[from..].iter().position(is_text).map_or(text.len(), |at| from + at);
    let mut start = first(0);
    if text[start..].get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:")) {
        let comma = text[start..].iter().position(|byte| *byte == b',').ok_or(Fault::NoComma)?;
        start = first(start + comma + 1);
    }
    let end = text.iter().rposition(is_text).map_or(start, |last| (last + 1).max(start));
    Ok(start..end)
}

/// Resolves JSON's escapes in place and returns the new length: `\/` from Android, `\n` from
/// encoders that wrap lines, `\u003d` for `=` from Gson. A character beyond ASCII becomes a byte
/// that is not Base64.
fn unescape(text: &mut [u8]) -> usize {
    if !text.contains(&b'\\') {
        return text.len(); // most clients escape nothing, and `contains` is fast
    }
    let first = text.iter().take_while(|byte| **byte != b'\\').count();
    let (mut from, mut to) = (first, first);
    while from < text.len() {
        let (byte, taken) = match text[from..] {
            [b'\\', b'u', a, b, c, d, ..] => {
                let hex = [a, b, c, d];
                let code = std::str::from_utf8(&hex)
                    .ok()
                    .and_then(|hex| u16::from_str_radix(hex, 16).ok());
                (code.and_then(|code| u8::try_from(code).ok()).unwrap_or(0xff), 6)
            }
            [b'\\', escaped, ..] => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' | b'f' => 0,
                    plain => plain,
                };
                (byte, 2)
            }
            [plain, ..] => (plain, 1),
            [] => break,
        };
        text[to] = byte;
        to += 1;
        from += taken;
    }
    to
}
