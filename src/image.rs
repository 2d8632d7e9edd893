//! Recognizes pictures, reads their headers, estimates the memory to decode them, and renders them.
//!
//! - `content` provides a picture's bytes, from memory or from a file.
//! - `sniff` recognizes the format by the first bytes.
//! - `header` reads the size and the orientation.
//! - `probe` calls both `sniff` and `header`, and refuses a picture with too many pixels.
//! - `memory_estimate` estimates the memory that decoding needs.
//! - `render` decodes the pixels and encodes them again.
//!
//! `CONTRIBUTING.md` lists the steps to add a format.
//!
//! Everything here is synchronous, so callers use blocking threads. The service's own process reads
//! only headers, and limits the work for each header. Pixels are decoded only in the child processes
//! of [`crate::decoder`].

mod content;
mod header;
mod memory_estimate;
mod probe;
mod render;
mod sniff;

pub use content::{Content, Reader};
pub use image_rs::metadata::Orientation;
pub use probe::{Picture, probe};
pub use render::Target;
pub use sniff::{Format, Unsupported, sniff};

/// Why a picture is refused or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are no bytes.
    #[error("the picture is empty")]
    Empty,
    /// The format or this variant of the format is not supported.
    #[error("{0}")]
    Unsupported(Unsupported),
    /// The first bytes identify a supported format, but the header is invalid.
    #[error("the header of the {0} picture cannot be read")]
    BadHeader(Format),
    /// The picture has more pixels than the limit.
    #[error("the picture has {pixels} pixels, the limit is {limit}")]
    TooManyPixels {
        /// The number of pixels that would be decoded. A HEIC may show only a part of them.
        pixels: u64,
        /// The maximum number of pixels.
        limit: u64,
    },
    /// Decoding needs more memory than one picture may use.
    #[error("decoding the picture takes {needed} bytes, the limit is {limit}")]
    TooMuchToDecode {
        /// The memory estimate, in bytes.
        needed: u64,
        /// The maximum memory for one picture, in bytes.
        limit: u64,
    },
    /// The pixels cannot be decoded.
    #[error("the {format} picture cannot be decoded: {reason}")]
    Broken {
        /// The format, according to the first bytes.
        format: Format,
        /// The decoder's message, or how its process ended.
        reason: String,
    },
    /// The file that contains the picture's bytes cannot be read.
    #[error("the picture's bytes cannot be read")]
    Unreadable(#[from] std::io::Error),
}

impl Error {
    /// Whether the picture itself caused the error. Otherwise the operating system could not read the
    /// file.
    pub fn is_about_the_picture(&self) -> bool {
        !matches!(self, Self::Unreadable(_))
    }
}
