//! Chooses how a picture is sent to NVIDIA.
//!
//! Upright JPEGs and PNGs can be sent unchanged. Every other picture is re-encoded as an upright JPEG:
//! NVIDIA accepts only JPEG and PNG, and does not document whether it applies a picture's
//! orientation. A picture that fits into the request is sent inline. A larger picture is uploaded
//! or, if uploads do not work, shrunk until it can be sent inline.

use crate::image::{Format, Picture};

/// What to do next with a picture, or with the JPEG that was made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Send it inside the request.
    SendInline,
    /// Upload it as an asset, and refer to the asset in the request.
    Upload,
    /// Re-encode it as an upright JPEG in full size, then plan again. If such a JPEG is impossible or
    /// too long, shrink the picture instead.
    Reencode,
    /// Re-encode it as a JPEG that is small enough to be sent inline, then plan again.
    Shrink,
}

/// Whether the format and the orientation of a picture allow the service to send it unchanged.
pub(super) fn can_be_sent_as_is(picture: &Picture) -> bool {
    let is_accepted_format = match picture.format {
        Format::Jpeg | Format::Png => true,
        Format::WebP | Format::Gif | Format::Bmp | Format::Tiff | Format::Heic => false,
    };
    is_accepted_format && picture.is_upright()
}

/// Chooses what to do next with a picture of `len` bytes. At most `largest_inline` bytes can be sent
/// inline.
pub(super) fn plan(
    can_be_sent_as_is: bool,
    len: u64,
    may_upload: bool,
    largest_inline: u64,
) -> Plan {
    if !can_be_sent_as_is {
        Plan::Reencode
    } else if len <= largest_inline {
        Plan::SendInline
    } else if may_upload {
        Plan::Upload
    } else {
        Plan::Shrink
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::image::{Content, Orientation};

    /// The Base64 text of a picture of this length has 199,996 characters, and that of a longer one at
    /// least 200,000. NVIDIA requires fewer than 200,000.
    const LARGEST_INLINE: u64 = 149_997;

    #[test]
    fn only_upright_jpeg_and_png_are_sent_unchanged() {
        let is_sent_as_is = |format, orientation| {
            let content = Content::Memory(Bytes::new());
            can_be_sent_as_is(&Picture { content, format, width: 1, height: 1, orientation })
        };
        for format in Format::ALL {
            let expected = matches!(format, Format::Jpeg | Format::Png);
            assert_eq!(is_sent_as_is(format, Orientation::NoTransforms), expected, "{format}");
            for exif in 2..=8 {
                let orientation = Orientation::from_exif(exif).unwrap();
                assert!(!is_sent_as_is(format, orientation), "{format} {exif}");
            }
        }
    }

    #[test]
    fn a_sendable_picture_is_sent_inline_uploaded_or_shrunk_and_any_other_is_reencoded() {
        use Plan::{Reencode, SendInline, Shrink, Upload};
        for (can_be_sent_as_is, len, with_uploads, without_uploads) in [
            (true, 1, SendInline, SendInline),
            (true, LARGEST_INLINE, SendInline, SendInline),
            (true, LARGEST_INLINE + 1, Upload, Shrink),
            (true, u64::MAX, Upload, Shrink),
            (false, 1, Reencode, Reencode),
            (false, u64::MAX, Reencode, Reencode),
        ] {
            for (may_upload, expected) in [(true, with_uploads), (false, without_uploads)] {
                let chosen = plan(can_be_sent_as_is, len, may_upload, LARGEST_INLINE);
                assert_eq!(chosen, expected, "{can_be_sent_as_is} {len} {may_upload}");
            }
        }
    }
}
