//! The lengths of the pictures that are sent, and of the number that tells one from another.

/// A picture of a phone's messenger.
pub const SMALL: usize = 34 * 1024;
/// A photograph: too large to go to NVIDIA inline.
pub const LARGE: usize = 2 << 20;
/// About the largest that is taken.
pub const LARGEST: usize = 20_000_000;

/// How many characters a picture's number has.
pub const NUMBER: usize = 16;
