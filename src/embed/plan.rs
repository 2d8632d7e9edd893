//! Chooses how a picture goes to NVIDIA.
//!
//! JPEG and PNG go as they are if they stand upright: nothing says that NVIDIA turns them. All else
//! goes as JPEG. What fits goes inline; what does not is
//! uploaded, and where uploads do not work it is shrunk until it fits.

use crate::image::{Format, Picture};

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

/// Whether NVIDIA can be given a picture as it is.
pub(super) fn goes_as_it_is(picture: &Picture) -> bool {
    let is_taken = match picture.format {
        Format::Jpeg | Format::Png => true,
        Format::WebP | Format::Gif | Format::Bmp | Format::Tiff | Format::Heic => false,
    };
    is_taken && picture.is_upright()
}

/// What is done with so many bytes, of which `largest_inline` go inline.
pub(super) fn plan(goes_as_it_is: bool, len: u64, may_upload: bool, largest_inline: u64) -> Plan {
    match len {
        _ if !goes_as_it_is => Plan::Reencode,
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
    fn only_upright_jpeg_and_png_go_as_they_are() {
        let goes = |format, orientation| {
            let content = Content::Memory(Bytes::new());
            goes_as_it_is(&Picture { content, format, width: 1, height: 1, orientation })
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
    fn a_picture_goes_by_its_length_and_by_whether_uploads_work() {
        use Plan::{Reencode, SendInline, Shrink, Upload};
        for (goes_as_it_is, len, with_uploads, without_uploads) in [
            (true, 1, SendInline, SendInline),
            (true, 149_997, SendInline, SendInline),
            (true, 149_998, Upload, Shrink),
            (true, u64::MAX, Upload, Shrink),
            (false, 1, Reencode, Reencode),
            (false, u64::MAX, Reencode, Reencode),
        ] {
            for (may_upload, expected) in [(true, with_uploads), (false, without_uploads)] {
                let plan = plan(goes_as_it_is, len, may_upload, 149_997);
                assert_eq!(plan, expected, "{goes_as_it_is} {len} {may_upload}");
            }
        }
    }
}
