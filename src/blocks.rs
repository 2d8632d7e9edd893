//! What files take on a disk.

/// The whole blocks, of the size that most file systems have, of a file of so many bytes; in bytes.
pub(crate) fn whole_blocks(len: u64) -> u64 {
    len.max(1).next_multiple_of(4096)
}
