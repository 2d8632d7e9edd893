//! The lengths of the pictures, and of the number that makes each picture different.

/// A picture as a messenger on a phone sends it.
pub const SMALL: usize = 34 * 1024;
/// A photograph: too large to go to NVIDIA inline.
pub const LARGE: usize = 2 << 20;
/// About the largest picture that the service accepts.
pub const LARGEST: usize = 20_000_000;

/// The digits of a picture's number.
pub const NUMBER: usize = 16;
