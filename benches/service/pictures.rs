//! The lengths of the pictures in bytes, and the length of the number that makes pictures different.

/// The length of a picture as messengers send it. It is sent to NVIDIA inline.
pub const SMALL: usize = 34 * 1024;
/// The length of a photograph that is too large to be sent to NVIDIA inline.
pub const LARGE: usize = 2 << 20;
/// A length a little below 20 MiB, which is the default limit of the service.
pub const LARGEST: usize = 20_000_000;

/// The number of digits of a picture's number, with zeros in front.
pub const NUMBER_LEN: usize = 16;
