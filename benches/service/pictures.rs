//! The lengths of the pictures in bytes, and of the number that makes each picture different.

/// A picture of the size that messengers send.
pub const SMALL: usize = 34 * 1024;
/// A photograph, which is too large to be sent to NVIDIA inline.
pub const LARGE: usize = 2 << 20;
/// About the largest picture that the service accepts.
pub const LARGEST: usize = 20_000_000;

/// The number of digits of a picture's number.
pub const NUMBER_LEN: usize = 16;
