//! Chooses how a picture goes to NVIDIA.
//!
//! JPEG and PNG go as they are, the other formats as JPEG. What fits goes inline; what does not is
//! uploaded, and where uploads do not work it is shrunk until it fits.

use crate::image::Format;

/// What is done next with a picture, or with what it was re-encoded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// It is sent as it is, in the request itself.
    SendInline,
    /// It is uploaded as it is, and the request refers to it.
    Upload,
    /// It is re-encoded as a JPEG of the same size, for which there is a plan of its own.
    Reencode,
    /// It is re-encoded as a JPEG that fits inline.
    Shrink,
}

/// What is done with a picture of so many bytes, of which `largest_inline` go inline.
pub(super) fn plan(format: Format, len: u64, may_upload: bool, largest_inline: u64) -> Plan {
    match format {
        Format::WebP | Format::Gif | Format::Bmp | Format::Tiff | Format::Heic => Plan::Reencode,
        Format::Jpeg | Format::Png if len <= largest_inline => Plan::SendInline,
        Format::Jpeg | Format::Png if may_upload => Plan::Upload,
        Format::Jpeg | Format::Png => Plan::Shrink,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_goes_by_its_format_its_size_and_whether_uploads_work() {
        use Format::{Bmp, Gif, Heic, Jpeg, Png, Tiff, WebP};
        use Plan::{Reencode, SendInline, Shrink, Upload};
        for (formats, len, with_uploads, without_uploads) in [
            (&[Jpeg, Png][..], 1, SendInline, SendInline),
            (&[Jpeg, Png], 149_997, SendInline, SendInline),
            (&[Jpeg, Png], 149_998, Upload, Shrink),
            (&[Jpeg, Png], u64::MAX, Upload, Shrink),
            (&[WebP, Gif, Bmp, Tiff, Heic], 1, Reencode, Reencode),
            (&[WebP, Gif, Bmp, Tiff, Heic], u64::MAX, Reencode, Reencode),
        ] {
            for format in formats {
                for (may_upload, expected) in [(true, with_uploads), (false, without_uploads)] {
                    let plan = plan(*format, len, may_upload, 149_997);
                    assert_eq!(plan, expected, "{format} {len} {may_upload}");
                }
            }
        }
    }
}
