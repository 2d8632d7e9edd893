//! The tags and the types of a TIFF's entries (TIFF 6.0, sections 2 and 8), some of their values, and
//! the offset of the data in a crafted file.

pub const WIDTH: u16 = 256;
pub const HEIGHT: u16 = 257;
pub const BITS_PER_SAMPLE: u16 = 258;
pub const COMPRESSION: u16 = 259;
pub const PHOTOMETRIC: u16 = 262;
pub const STRIP_OFFSETS: u16 = 273;
pub const ORIENTATION: u16 = 274;
pub const SAMPLES_PER_PIXEL: u16 = 277;
pub const ROWS_PER_STRIP: u16 = 278;
pub const STRIP_BYTE_COUNTS: u16 = 279;
pub const PLANAR_CONFIGURATION: u16 = 284;
pub const PREDICTOR: u16 = 317;
pub const COLOR_MAP: u16 = 320;
pub const TILE_WIDTH: u16 = 322;
pub const TILE_LENGTH: u16 = 323;
pub const TILE_OFFSETS: u16 = 324;
pub const TILE_BYTE_COUNTS: u16 = 325;
pub const EXTRA_SAMPLES: u16 = 338;
pub const SAMPLE_FORMAT: u16 = 339;
pub const JPEG_TABLES: u16 = 347;

// The types of an entry's values: unsigned numbers of 16 and of 32 bits.
pub const SHORT: u16 = 3;
pub const LONG: u16 = 4;

/// In [`PLANAR_CONFIGURATION`]: each channel has a plane of its own.
pub const SEPARATE_PLANES: u64 = 2;
/// In [`PREDICTOR`]: the predictor for floating-point numbers.
pub const FLOAT_PREDICTOR: u64 = 3;
/// In [`SAMPLE_FORMAT`]: the sample is a floating-point number.
pub const FLOAT: u64 = 3;
/// In [`EXTRA_SAMPLES`]: alpha that the colours are not multiplied by.
pub const UNASSOCIATED_ALPHA: u64 = 2;

/// [`tiff`](super::craft::tiff) puts its argument `data` at this offset in the file.
pub const DATA_AT: u64 = 16;
