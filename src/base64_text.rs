//! Decodes Base64 in the forms in which clients send it: in the standard or the URL-safe alphabet;
//! with correct, missing or surplus padding; with line breaks, JSON escapes, surrounding blanks or
//! a `data:` prefix.
//!
//! The text is normalized in place, so that a large body needs no second buffer of the same size.

use std::{ops::Range, sync::LazyLock};

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurposeConfig, Simd},
};

/// How many characters of a long text a caller of [`decode`] should pass at once. This is a multiple of
/// four, because four characters encode three whole bytes.
pub const CHUNK_LEN: usize = 64 * 1024;

/// Accepts no padding, because [`normalize`] has checked and removed the padding. Ignores unused
/// bits of the last character, like Python.
static ENGINE: LazyLock<Simd> = LazyLock::new(|| {
    Simd::standard(
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    )
});

/// How many bytes [`standard_prefix_len`] checks at once.
const BLOCK_LEN: usize = 64;

/// In [`MEANINGS`], marks line breaks and tabs.
const SKIPPED: u8 = 0;
/// In [`MEANINGS`], marks padding.
const PADDING: u8 = 1;
/// In [`MEANINGS`], marks all other bytes that are not Base64, including spaces. This is the largest mark,
/// so a larger value is a character of the alphabet.
const INVALID: u8 = 2;

/// The meaning of each byte: a character of the standard alphabet, or one of the marks above. A
/// table is faster than comparisons, because processors often mispredict branches that distinguish
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
            character @ (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/') => character,
            _ => INVALID,
        };
        byte += 1;
    }
    table
};

/// The most bytes that a JSON body may have if its picture may have `max_image_bytes`: the Base64 text, a
/// twelfth of this text's length for line breaks and escapes, and 64 KiB for the rest of the JSON.
pub fn body_limit(max_image_bytes: u64) -> u64 {
    let text_len = max_image_bytes.div_ceil(3) * 4;
    text_len + text_len / 12 + 64 * 1024
}

/// Why text is not Base64. The message is a sentence for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Base64Error {
    /// A space. Decoding a form replaces each `+` by a space.
    #[error("image_base64 contains a space instead of a +; send it as JSON, not as a form.")]
    Space,
    /// A `data:` URL without a comma.
    #[error("image_base64 begins with data: but has no comma before the Base64 text.")]
    NoComma,
    /// A character that belongs neither to the standard nor to the URL-safe alphabet.
    #[error(
        "image_base64 contains characters that are not Base64; send the output of the base64 command."
    )]
    Alphabet,
    /// Text after the padding.
    #[error("image_base64 has text after its padding (=); send one picture, as one text.")]
    TextAfterPadding,
    /// A length or padding that no Base64 text has.
    #[error("image_base64 is not complete Base64; is it cut short?")]
    Length,
    /// No text to decode.
    #[error("image_base64 is empty; send the picture as Base64.")]
    Empty,
}

/// Decodes text that [`normalize`] has returned, or a part of it that begins at a multiple of four
/// characters.
///
/// # Errors
/// [`Base64Error::Length`] if `text` ends in the middle of a byte.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, Base64Error> {
    ENGINE.decode(text).map_err(|_| Base64Error::Length)
}

/// The length of the longest prefix that consists of whole blocks in the standard alphabet. In most
/// texts, this is nearly all of the text. Checking blocks is many times faster than checking single
/// bytes.
fn standard_prefix_len(text: &[u8]) -> usize {
    let is_standard = |byte: &u8| {
        byte.is_ascii_uppercase()
            | byte.is_ascii_lowercase()
            | byte.is_ascii_digit()
            | (*byte == b'+')
            | (*byte == b'/')
    };
    // `fold` with `&` has no branch for each byte, so that the compiler can vectorize the loop.
    let is_standard_block = |block: &&[u8]| {
        block.iter().fold(true, |are_standard, byte| are_standard & is_standard(byte))
    };
    text.chunks_exact(BLOCK_LEN).take_while(is_standard_block).count() * BLOCK_LEN
}

/// Turns the content of a JSON string into Base64 text in the standard alphabet without padding, in place.
/// Returns the range of the Base64 text in `text`.
///
/// # Errors
/// Any [`Base64Error`].
pub fn normalize(text: &mut [u8]) -> Result<Range<usize>, Base64Error> {
    let len = unescape(text);
    let Range { start, end } = encoded_range(&text[..len])?;
    let mut read_index = start + standard_prefix_len(&text[start..end]);
    let (mut write_index, mut padding) = (read_index, 0);
    while read_index < end {
        let byte = text[read_index];
        read_index += 1;
        text[write_index] = match MEANINGS[usize::from(byte)] {
            character if character > INVALID && padding == 0 => character, // the usual case
            SKIPPED => continue,
            PADDING => {
                padding += 1;
                continue;
            }
            INVALID if byte == b' ' => return Err(Base64Error::Space),
            INVALID => return Err(Base64Error::Alphabet),
            _ => return Err(Base64Error::TextAfterPadding),
        };
        write_index += 1;
    }
    match ((write_index - start) % 4, padding) {
        _ if write_index == start => Err(Base64Error::Empty),
        // The last group may have two or three characters instead of four. The padding may be missing or
        // too long. But a single `=` after a group of two characters means that the text was cut.
        (0 | 3, _) | (2, 0 | 2..) => Ok(start..write_index),
        _ => Err(Base64Error::Length),
    }
}

/// The blanks that may surround a text, as they are and as JSON escapes them.
const BLANKS: [(u8, &str); 4] = [(b' ', " "), (b'\t', r"\t"), (b'\r', r"\r"), (b'\n', r"\n")];

/// Removes white space and escaped blanks from the beginning of a JSON string's content. Any white space of
/// Unicode counts, because a string in a batch may be a URL that was copied from a web page.
pub fn trim_json_start(content: &str) -> &str {
    let mut rest = content.trim_start();
    while let Some(trimmed) = BLANKS.iter().find_map(|(_, escape)| rest.strip_prefix(escape)) {
        rest = trimmed.trim_start();
    }
    rest
}

/// Returns the range of the Base64 text, without surrounding blanks and without a `data:` prefix.
fn encoded_range(text: &[u8]) -> Result<Range<usize>, Base64Error> {
    let is_not_blank = |byte: &u8| !BLANKS.iter().any(|(blank, _)| blank == byte);
    // Returns the index of the first byte at or after `from` that is not blank.
    let skip_blanks = |from: usize| {
        text[from..]
            .iter()
            .position(is_not_blank)
            .map_or(text.len(), |blank_count| from + blank_count)
    };
    let mut start = skip_blanks(0);
    if text[start..].get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:")) {
        let comma =
            text[start..].iter().position(|byte| *byte == b',').ok_or(Base64Error::NoComma)?;
        start = skip_blanks(start + comma + 1);
    }
    // If only blanks follow the comma, the last byte that is not blank is before `start`.
    let end = text.iter().rposition(is_not_blank).map_or(start, |last| (last + 1).max(start));
    Ok(start..end)
}

/// Resolves the escapes of a JSON string in place, and returns the new length. Clients escape `/`
/// (Android), line breaks (encoders that wrap lines) and `=` (Gson). A character that is not ASCII
/// becomes a byte that is not Base64, so that [`normalize`] refuses it.
fn unescape(text: &mut [u8]) -> usize {
    // Most clients escape nothing, and `contains` is fast.
    if !text.contains(&b'\\') {
        return text.len();
    }
    let first_escape = text.iter().take_while(|byte| **byte != b'\\').count();
    let (mut read_index, mut write_index) = (first_escape, first_escape);
    while read_index < text.len() {
        let (byte, read_len) = match text[read_index..] {
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
                    // Backspace and form feed are not Base64, and neither is NUL.
                    b'b' | b'f' => b'\0',
                    itself => itself,
                };
                (byte, 2)
            }
            [unescaped, ..] => (unescaped, 1),
            [] => break,
        };
        text[write_index] = byte;
        write_index += 1;
        read_index += read_len;
    }
    write_index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_escaped_blanks_are_removed_from_the_beginning() {
        for blanks in ["", " ", "\t\r\n", r"\t\r\n", r" \n \n", "\u{a0}"] {
            let content = format!("{blanks}text {blanks}");
            assert_eq!(trim_json_start(&content), format!("text {blanks}"), "{blanks:?}");
        }
        for no_blank in [r"\b", r"\\n", r"\u0041"] {
            assert_eq!(trim_json_start(no_blank), no_blank);
        }
    }
}
