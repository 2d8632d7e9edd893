//! Chooses how a picture is sent to NVIDIA.
//!
//! Upright JPEGs and PNGs are sent unchanged; nothing says that NVIDIA applies their orientation.
//! Every other picture is re-encoded as JPEG. Small pictures go inline; large ones are uploaded, or
//! shrunk until they fit inline where uploads do not work.

use crate::image::{Format, Picture};

/// The next step for a picture, or for what it was re-encoded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Send it inside the request.
    SendInline,
    /// Upload it, and refer to it in the request.
    Upload,
    /// Re-encode it as a JPEG of the same size, then plan again.
    Reencode,
    /// Re-encode it as a JPEG that is small enough to go inline.
    Shrink,
}

/// Whether NVIDIA accepts a picture without re-encoding.
pub(super) fn can_be_sent_as_is(picture: &Picture) -> bool {
    let is_taken = match picture.format {
        Format::Jpeg | Format::Png => true,
        Format::WebP | Format::Gif | Format::Bmp | Format::Tiff | Format::Heic => false,
    };
    is_taken && picture.is_upright()
}

/// Chooses the next step for `len` bytes; up to `largest_inline` bytes go inline.
pub(super) fn plan(
    can_be_sent_as_is: bool,
    len: u64,
    may_upload: bool,
    largest_inline: u64,
) -> Plan {
    match len {
        _ if !can_be_sent_as_is => Plan::Reencode,
        _ if len <= largest_inline => Plan::SendInline,
        _ if may_upload => Plan::Upload,
        _ => Plan::Shrink,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::image::{Content, Orientation};

    #[test]
    fn only_upright_jpeg_and_png_are_sent_unchanged() {
        let goes = |format, orientation| {
            let content = Content::Memory(Bytes::new());
            can_be_sent_as_is(&Picture { content, format, width: 1, height: 1, orientation })
        };
        for format in Format::ALL {
            let is_taken = matches!(format, Format::Jpeg | Format::Png);
            assert_eq!(goes(format, Orientation::NoTransforms), is_taken, "{format}");
            for exif in 2..=8 {
                assert!(!goes(format, Orientation::from_exif(exif).unwrap()), "{format} {exif}");
            }
        }
    }

    #[test]
    fn the_plan_depends_on_the_length_and_on_whether_uploads_work() {
        use Plan::{Reencode, SendInline, Shrink, Upload};
        for (can_be_sent_as_is, len, with_uploads, without_uploads) in [
            (true, 1, SendInline, SendInline),
            (true, 149_997, SendInline, SendInline),
            (true, 149_998, Upload, Shrink),
            (true, u64::MAX, Upload, Shrink),
            (false, 1, Reencode, Reencode),
            (false, u64::MAX, Reencode, Reencode),
        ] {
            for (may_upload, expected) in [(true, with_uploads), (false, without_uploads)] {
                let plan = plan(can_be_sent_as_is, len, may_upload, 149_997);
                assert_eq!(plan, expected, "{can_be_sent_as_is} {len} {may_upload}");
            }
        }
    }
}
