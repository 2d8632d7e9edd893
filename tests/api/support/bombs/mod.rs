//! Generates hostile pictures, byte by byte. Their files are small.

mod bmp;
mod gif;
mod heic;
mod jpeg;
mod png;
mod tiff;
mod webp;

pub use tiff::shared_lzw;

/// The name of a hostile picture, and its bytes.
pub type Bomb = (&'static str, Vec<u8>);

/// Pictures that decoders refuse, or decode within seconds.
pub fn quick() -> Vec<Bomb> {
    [webp::all(), tiff::quick(), gif::all(), bmp::all(), png::all(), jpeg::quick(), heic::all()]
        .concat()
}

/// Pictures that keep a decoder busy for minutes or hours.
pub fn endless() -> Vec<Bomb> {
    [tiff::endless(), jpeg::endless()].concat()
}
