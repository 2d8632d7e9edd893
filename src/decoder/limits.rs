//! Chooses a child's limits. The limit of its address space depends on the memory estimate, and the
//! limit of its processor time on the number of pixels. `child.rs` sets these limits in the child
//! itself.

use super::protocol::Job;
use crate::image::{self, Picture, Target};

/// The address space that the program maps at startup, in bytes. The program touches little of this
/// address space, so it needs almost no memory.
const STARTUP_ADDRESS_SPACE: u64 = 24 << 20;

/// The address space that each child gets in addition to 1.25 times the memory estimate, in bytes.
/// [`STARTUP_ADDRESS_SPACE`] is part of these bytes.
const FIXED_OVERHEAD: u64 = 64 << 20;

/// The memory that the queue reserves for the smallest picture, in bytes.
const MIN_RESERVED_MEMORY: u64 = 50 << 20;

/// The processor time for a picture of less than a million pixels, in seconds.
const MIN_CPU_SECONDS: u64 = 5;
/// The most processor time for any picture, in seconds.
const MAX_CPU_SECONDS: u64 = 20;
/// The processor time for each million pixels, in seconds. The slowest format needs far less.
const CPU_SECONDS_PER_MEGAPIXEL: u64 = 1;

/// Returns how much of `max_memory`, the decode memory, is reserved for jobs that need little
/// memory, in bytes. These jobs then do not wait for jobs that need much memory. Returns a quarter
/// of the decode memory, or zero if a quarter is too little for the job of the smallest picture.
pub(super) fn memory_reserved_for_small_jobs(max_memory: u64) -> u64 {
    let quarter = max_memory / 4;
    if quarter < MIN_RESERVED_MEMORY { 0 } else { quarter }
}

/// Returns the memory that the queue must reserve for a job, in bytes. This is the address space of
/// the child, except [`STARTUP_ADDRESS_SPACE`], which needs almost no memory.
pub(super) fn memory_to_reserve(job: &Job) -> u64 {
    job.address_space - STARTUP_ADDRESS_SPACE
}

/// Plans the job of one child and its limits. All children together may use `max_memory` bytes.
/// Blocks the thread, because it reads the picture's header.
pub(super) fn plan_job(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<Job, image::Error> {
    let memory_estimate = target.memory_estimate(picture)?;
    let limit = max_memory - memory_reserved_for_small_jobs(max_memory);
    if memory_estimate > limit {
        return Err(image::Error::TooMuchToDecode { needed: memory_estimate, limit });
    }
    let address_space = memory_estimate / 4 * 5 + FIXED_OVERHEAD;
    let megapixels = picture.pixels() / 1_000_000;
    Ok(Job {
        target,
        format: picture.format,
        width: picture.width,
        height: picture.height,
        orientation: picture.orientation,
        memory_estimate,
        // The queue cannot reserve more than `limit` for one job.
        address_space: address_space.min(limit + STARTUP_ADDRESS_SPACE),
        cpu_seconds: (MIN_CPU_SECONDS + megapixels * CPU_SECONDS_PER_MEGAPIXEL)
            .min(MAX_CPU_SECONDS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Content, probe};

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_memory_reserved_for_small_jobs_is_enough_for_the_smallest_picture() {
        let pixel = probe(Content::Memory(super::super::BLACK_PIXEL.into()), 1).unwrap();
        let job = plan_job(&pixel, Target::Converted { max_len: 0 }, 512 * MIB).unwrap();
        let needed = memory_to_reserve(&job);
        assert!((MIN_RESERVED_MEMORY..MIN_RESERVED_MEMORY + MIB).contains(&needed), "{needed}");
        // A quarter is reserved. A quarter of 199 MiB is too little for the smallest picture.
        let reserved_mib =
            [199, 200, 512].map(|mib| memory_reserved_for_small_jobs(mib * MIB) / MIB);
        assert_eq!(reserved_mib, [0, 50, 128]);
    }
}
