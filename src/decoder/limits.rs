//! Chooses a child's limits: memory from the estimated cost of decoding, processor time from the
//! number of pixels.
//! `child.rs` applies them in the child itself.

use super::protocol::Job;
use crate::image::{self, Picture, Target};

/// The address space that the program maps at startup, in bytes. Hardly any of it becomes resident.
const STARTUP_ADDRESS_SPACE: u64 = 24 << 20;

/// The address space that each child gets on top of 1.25 times its estimate, in bytes. It includes
/// [`STARTUP_ADDRESS_SPACE`].
const FIXED_OVERHEAD: u64 = 64 << 20;

/// The memory that the queue reserves for the smallest picture, in bytes.
const MIN_RESERVED_MEMORY: u64 = 50 << 20;

/// The least processor time of a picture, in seconds.
const MIN_CPU: u64 = 5;
/// The most processor time of a picture, in seconds.
const MAX_CPU: u64 = 20;
/// What each million pixels adds, in seconds: many times what the slowest format needs.
const CPU_PER_MEGAPIXEL: u64 = 1;

/// The memory that is reserved for small pictures, in bytes, so that they never wait for large ones:
/// a quarter, or nothing if a quarter cannot hold even the smallest picture's child.
pub(super) fn reserved_for_small(max_memory: u64) -> u64 {
    let quarter = max_memory / 4;
    if quarter < MIN_RESERVED_MEMORY { 0 } else { quarter }
}

/// The memory that the queue reserves for a child, in bytes: its address space without what the
/// program maps at startup, because those pages hardly ever become resident.
pub(super) fn reserved_memory(job: &Job) -> u64 {
    job.address_space - STARTUP_ADDRESS_SPACE
}

/// Plans the job of one child, its limits included, where all children together may take `max_memory`
/// bytes. Blocks the thread: it reads the picture's header.
pub(super) fn plan_job(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<Job, image::Error> {
    let cost = target.memory_estimate(picture)?;
    let limit = max_memory - reserved_for_small(max_memory);
    if cost > limit {
        return Err(image::Error::TooMuchToDecode { needed: cost, limit });
    }
    let megapixels = picture.pixels() / 1_000_000;
    Ok(Job {
        target,
        format: picture.format,
        width: picture.width,
        height: picture.height,
        orientation: picture.orientation,
        cost,
        address_space: (cost / 4 * 5 + FIXED_OVERHEAD).min(limit + STARTUP_ADDRESS_SPACE),
        cpu_seconds: (MIN_CPU + megapixels * CPU_PER_MEGAPIXEL).min(MAX_CPU),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Content, probe};

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_reserved_for_small_pictures_holds_the_smallest_one() {
        let pixel = probe(Content::Memory(super::super::PIXEL.into()), 1).unwrap();
        let smallest = reserved_memory(
            &plan_job(&pixel, Target::Converted { max_len: 0 }, 512 * MIB).unwrap(),
        );
        assert!((MIN_RESERVED_MEMORY..MIN_RESERVED_MEMORY + MIB).contains(&smallest), "{smallest}");
        assert_eq!([199, 200, 512].map(|mib| reserved_for_small(mib * MIB) / MIB), [0, 50, 128]);
    }
}
