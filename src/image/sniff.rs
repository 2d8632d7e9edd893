//! Recognizes the format of a picture by its first bytes. File names and media types are ignored.

use std::fmt;

use super::header::bmp::is_header_length;

/// The formats that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// JPEG
    Jpeg,
    /// PNG
    Png,
    /// WebP
    WebP,
    /// GIF
    Gif,
    /// BMP
    Bmp,
    /// TIFF
    Tiff,
    /// HEIC, which is supported only if the service is built with the feature `heic`.
    Heic,
}

impl Format {
    /// Every format. [`Self::Heic`] is included even if this build does not support it: another build
    /// may have saved HEIC files in the same folder.
    pub const ALL: [Self; 7] =
        [Self::Jpeg, Self::Png, Self::WebP, Self::Gif, Self::Bmp, Self::Tiff, Self::Heic];

    /// The names of the supported formats, for use in a sentence.
    pub const NAMES: &str = if cfg!(feature = "heic") {
        "JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC"
    } else {
        "JPEG, PNG, WebP, GIF, BMP or TIFF"
    };

    /// The formats that this build supports.
    pub fn supported() -> impl Iterator<Item = Self> {
        let is_supported = |format: &Self| *format != Self::Heic || cfg!(feature = "heic");
        Self::ALL.into_iter().filter(is_supported)
    }

    /// The media type, as registered with IANA.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::WebP => "image/webp",
            Self::Gif => "image/gif",
            Self::Bmp => "image/bmp",
            Self::Tiff => "image/tiff",
            Self::Heic => "image/heic",
        }
    }

    /// The file name extension of a saved file, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
            Self::Heic => "heic",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Heic => "HEIC",
        })
    }
}

/// What the bytes are, if they are not a supported picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// HEIC, in a build without support for it. iPhones take HEIC pictures by default.
    Heic,
    /// AVIF
    Avif,
    /// SVG
    Svg,
    /// JPEG XL
    JpegXl,
    /// PDF
    Pdf,
    /// HTML
    WebPage,
    /// An unsupported kind of any supported format except JPEG. The text names the kind, with an
    /// article.
    Kind(&'static str),
    /// An unsupported kind of JPEG. The text names the kind, with an article.
    Jpeg(&'static str),
    /// Anything else.
    Unknown,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heic => f.write_str(
                "HEIC pictures are not supported: send a JPEG (on an iPhone: Settings, Camera, Formats, \
                 Most Compatible; in an app: export as JPEG).",
            ),
            Self::Avif => write!(f, "AVIF pictures are not supported: send a {}.", Format::NAMES),
            Self::Svg => f.write_str(
                "SVG drawings are not supported: render the drawing to a PNG and send that.",
            ),
            Self::Pdf => f.write_str(
                "PDF documents are not supported: send a page as a JPEG or PNG picture.",
            ),
            Self::JpegXl => {
                write!(f, "JPEG XL pictures are not supported: send a {}.", Format::NAMES)
            }
            Self::WebPage => {
                f.write_str("This is a web page, not a picture: send the picture itself.")
            }
            Self::Jpeg(kind) => write!(
                f,
                "This is {kind}, which is not supported: send a PNG, or a JPEG of the usual kind."
            ),
            Self::Kind(kind) => {
                write!(f, "This is {kind}, which is not supported: send a JPEG or PNG.")
            }
            Self::Unknown => write!(f, "These bytes are not a {} picture.", Format::NAMES),
        }
    }
}

/// [`sniff`] looks at no more than this many bytes.
pub(super) const MAX_SNIFF_LEN: usize = 512;

/// Recognizes the format by a picture's first bytes.
///
/// # Errors
/// [`Unsupported`], if the bytes are not a supported picture.
pub fn sniff(head: &[u8]) -> Result<Format, Unsupported> {
    match head {
        [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'B', b'M', ..] if is_bmp(head) => Ok(Format::Bmp),
        // 42 is TIFF, and 43 is BigTIFF.
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Format::Tiff),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => iso_media(head),
        [b'%', b'P', b'D', b'F', b'-', ..] => Err(Unsupported::Pdf),
        // JPEG XL without and with a container.
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => Err(Unsupported::JpegXl),
        _ => Err(markup(head).unwrap_or(Unsupported::Unknown)),
    }
}

/// Whether bytes that begin with "BM" are a BMP. A text may begin with "BM", too, so this checks the
/// length of the second header, which comes after the 14 bytes of the file header. Every known length is
/// less than 256, so three of the four bytes of the length are zero. Texts contain no zero bytes.
///
/// The reserved bytes of the file header are not checked. OS/2 stores the hotspot of a mouse pointer
/// there, and some programs write arbitrary bytes.
fn is_bmp(head: &[u8]) -> bool {
    let length = head.get(14..).and_then(<[u8]>::first_chunk);
    length.is_some_and(|length| is_header_length(u32::from_le_bytes(*length)))
}

/// Distinguishes HEIC and AVIF by the brands in the `ftyp` box: the major brand, four bytes of
/// version, and the compatible brands (ISO/IEC 14496-12, 4.3; ISO/IEC 23008-12, 10). An AVIF file may
/// list the generic brands of HEIF, too. A file with brands of both formats is HEIC, unless its major
/// brand is AVIF. A file with only generic brands counts as HEIC here. [`super::header::heif`] then
/// finds out which kind of picture the file contains.
fn iso_media(head: &[u8]) -> Result<Format, Unsupported> {
    const AVIF: &[&[u8]] = &[b"avif", b"avis"];
    const HEIC: &[&[u8]] = &[b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"];
    const GENERIC: &[&[u8]] = &[b"mif1", b"mif2", b"msf1"];
    // The length and the name of the box.
    const BOX_HEAD_LEN: usize = 8;
    // The major brand, the version and 14 compatible brands. Later brands are ignored.
    const MAX_BRANDS_LEN: usize = 64;
    let box_len = head.first_chunk().map_or(0, |len| u32::from_be_bytes(*len));
    let box_len = usize::try_from(box_len).unwrap_or(head.len());
    let brands_end = box_len.min(head.len()).min(BOX_HEAD_LEN + MAX_BRANDS_LEN);
    let brands = head.get(BOX_HEAD_LEN..brands_end).unwrap_or_default();
    let (major, version_and_others) = brands.split_at_checked(4).unwrap_or_default();
    let has_any = |wanted: &[&[u8]]| {
        let mut others = version_and_others.chunks_exact(4).skip(1);
        wanted.contains(&major) || others.any(|brand| wanted.contains(&brand))
    };
    if AVIF.contains(&major) {
        return Err(Unsupported::Avif);
    }
    if has_any(HEIC) {
        return heic();
    }
    if has_any(AVIF) {
        return Err(Unsupported::Avif);
    }
    match major {
        b"mif3" => Err(Unsupported::Kind("a HEIF picture with the short header (mini)")),
        _ if has_any(GENERIC) => heic(),
        _ => Err(Unsupported::Unknown),
    }
}

/// Returns the format HEIC, or an error if this build does not support it.
fn heic() -> Result<Format, Unsupported> {
    if cfg!(feature = "heic") { Ok(Format::Heic) } else { Err(Unsupported::Heic) }
}

/// Recognizes HTML and SVG by whichever of their tags comes first. Returns `None` without such a tag, and
/// for bytes that do not begin with `<`. Ignores a byte order mark and white space before the `<`.
fn markup(head: &[u8]) -> Option<Unsupported> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let text = &head[..head.len().min(MAX_SNIFF_LEN)];
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii_start();
    let text = text.to_ascii_lowercase();
    if !text.starts_with(b"<") {
        return None;
    }
    let first_position = |tags: &[&[u8]]| {
        let positions =
            tags.iter().filter_map(|tag| text.windows(tag.len()).position(|window| window == *tag));
        positions.min()
    };
    let html = first_position(&[b"<!doctype html", b"<html", b"<head", b"<body"]);
    let svg = first_position(&[b"<svg"]);
    match (html, svg) {
        (Some(html), Some(svg)) if html < svg => Some(Unsupported::WebPage),
        (Some(_), None) => Some(Unsupported::WebPage),
        (_, Some(_)) => Some(Unsupported::Svg),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unsupported_formats_and_unknown_bytes_are_distinguished() {
        for (head, expected) in [
            (&b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf"[..], Unsupported::Avif),
            (b"\0\0\0\x1cftypavif\0\0\0\0mif1heicmiaf", Unsupported::Avif),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", Unsupported::Avif),
            (
                b"\0\0\0\x10ftypmif3mini",
                Unsupported::Kind("a HEIF picture with the short header (mini)"),
            ),
            // The version (here `heic`) is no brand, and bytes after the box are no brands.
            (b"\0\0\0\x14ftypqt  heicqt  ", Unsupported::Unknown),
            (b"\0\0\0\x14ftypqt  \0\0\0\0qt  heic", Unsupported::Unknown),
            (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", Unsupported::Unknown),
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", Unsupported::Svg),
            (b"\xef\xbb\xbf <?xml version=\"1.0\"?><!-- x --><SVG/>", Unsupported::Svg),
            (b"<!DOCTYPE html><html><svg/></html>", Unsupported::WebPage),
            (b"\r\n<!-- x --><html lang=\"en\">", Unsupported::WebPage),
            (b"<svg><foreignObject><html/></foreignObject></svg>", Unsupported::Svg),
            (b"<Error><Code>AccessDenied</Code></Error>", Unsupported::Unknown),
            (b"a <html> in the middle", Unsupported::Unknown),
            (b"\xff\x0a\xfa\x1f", Unsupported::JpegXl),
            (b"\0\0\0\x0cJXL \r\n\x87\n", Unsupported::JpegXl),
            (b"%PDF-1.7", Unsupported::Pdf),
            (b"BM is how this text begins, and it goes on", Unsupported::Unknown),
            // A BMP that is cut within the length of its second header.
            (b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0", Unsupported::Unknown),
            (b"PK\x03\x04photo.jpg", Unsupported::Unknown),
            (b"", Unsupported::Unknown),
            (b"\xff", Unsupported::Unknown),
        ] {
            assert_eq!(sniff(head), Err(expected), "{}", head.escape_ascii());
        }
    }

    #[test]
    fn heic_is_recognized_by_its_brands() {
        let expected =
            if cfg!(feature = "heic") { Ok(Format::Heic) } else { Err(Unsupported::Heic) };
        for head in [
            &b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..],
            b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
            b"\0\0\0\x1cftypmif1\0\0\0\0avifheicmif1",
            b"\0\0\0\x14ftypmif1\0\0\0\0mif1",
            b"\0\0\0\x10ftypmsf1\0\0\0\0",
            // An unknown major brand.
            b"\0\0\0\x1cftypMiHE\0\0\0\0mif1heic",
        ] {
            assert_eq!(sniff(head), expected, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn the_text_of_format_names_lists_every_supported_format() {
        let names: Vec<_> = Format::supported().map(|format| format.to_string()).collect();
        let (last, others) = names.split_last().unwrap();
        assert_eq!(Format::NAMES, format!("{} or {last}", others.join(", ")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(head in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = sniff(&head);
        }
    }
}
