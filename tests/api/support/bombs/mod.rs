//! Small hostile pictures, built byte by byte.

mod bmp;
mod gif;
mod heic;
mod jpeg;
mod png;
mod tiff;
mod webp;

pub use tiff::shared_lzw;

/// A picture and its name.
pub type Bomb = (&'static str, Vec<u8>);

/// What decoders are done with in seconds, or refuse.
pub fn all() -> Vec<Bomb> {
    [webp::all(), tiff::all(), gif::all(), bmp::all(), png::all(), jpeg::all(), heic::all()]
        .concat()
}

/// What keeps a decoder busy for minutes or hours.
pub fn endless() -> Vec<Bomb> {
    [tiff::endless(), jpeg::endless()].concat()
}
