//! The lengths of the pictures in bytes, and how many digits a picture's number has. The number is at the
//! picture's end, so pictures with different numbers are different.

/// The length of a picture as messenger apps send it. It is sent to NVIDIA inline.
pub const SMALL: usize = 34 * 1024;
/// The length of a photograph that is too large to be sent to NVIDIA inline.
pub const LARGE: usize = 2 << 20;
/// A length a little below 20 MiB, which is the default limit of the service.
pub const LARGEST: usize = 20_000_000;

/// How many digits a picture's number has, including leading zeros.
pub const NUMBER_LEN: usize = 16;
