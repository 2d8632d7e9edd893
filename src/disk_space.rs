//! Room on a disk: what files take of it, and which errors say that there is none.

use std::io;

/// The whole blocks, of the size that most file systems have, of a file of so many bytes; in bytes.
pub(crate) fn whole_blocks(len: u64) -> u64 {
    len.max(1).next_multiple_of(4096)
}

/// Whether the system says that there is no room.
pub(crate) fn lacks_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
