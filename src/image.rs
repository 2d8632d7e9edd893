//! What a picture is: its bytes, its format, its size, and how it is decoded and encoded anew.
//!
//! A new format has its name, its media type and its first bytes in `sniff`, its size in `header`, its
//! memory in `cost`, its decoder in `render`, and its way to NVIDIA in `embed/plan.rs`: the compiler
//! names each of these once [`Format`] knows it. `fetch.rs`, `web/routes/url.rs`, `Cargo.toml` and the
//! pages name the formats, too: `CONTRIBUTING.md` has the steps.
//!
//! Everything here is synchronous; what takes time is called off the async threads. Headers are
//! read within bounds; pixels are decoded by [`crate::decoder`]'s processes alone.

mod content;
mod cost;
mod header;
mod probe;
mod render;
mod sniff;

pub use content::{Content, Reader};
pub use image_rs::metadata::Orientation;
pub use probe::{Picture, probe};
pub use render::Target;
pub use sniff::{Format, Unsupported, sniff};

/// Why bytes are refused as a picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bytes at all.
    #[error("the picture is empty")]
    Empty,
    /// Not one of the formats, or a kind of one that is not read.
    #[error("{0}")]
    Unsupported(Unsupported),
    /// One of them by its first bytes, but no size can be read.
    #[error("the header of the {0} picture cannot be read")]
    BadHeader(Format),
    /// More pixels than the limit.
    #[error("the picture has {pixels} pixels, the limit is {limit}")]
    TooManyPixels {
        /// Width times height.
        pixels: u64,
        /// Pixels allowed.
        limit: u64,
    },
    /// Decoding needs more memory than one decode may use.
    #[error("decoding the picture takes {needed} bytes, the limit is {limit}")]
    TooMuchToDecode {
        /// Bytes that decoding would take.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The pixels cannot be decoded.
    #[error("the {format} picture cannot be decoded: {reason}")]
    Broken {
        /// What it seemed to be.
        format: Format,
        /// What the decoder said, or how it ended.
        reason: String,
    },
    /// The saved bytes cannot be read back.
    #[error("the picture's bytes cannot be read")]
    Unreadable(#[from] std::io::Error),
}

impl Error {
    /// Whether the picture is at fault, and not the disk that it should be read from.
    pub fn is_about_the_picture(&self) -> bool {
        !matches!(self, Self::Unreadable(_))
    }
}
