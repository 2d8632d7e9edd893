//! Chooses the limits of a child process that decodes a picture. The limit of its address space
//! depends on the picture's memory estimate, and the limit of its processor time on the number of
//! pixels. The child sets these limits itself, in `child.rs`.

use super::protocol::Job;
use crate::image::{self, Picture, Target};

/// The address space that the program maps at startup, in bytes. The program uses little of this
/// address space, which therefore takes almost no memory.
const STARTUP_ADDRESS_SPACE: u64 = 24 << 20;

/// The address space that each child gets in addition to 1.25 times the memory estimate, in bytes.
/// [`STARTUP_ADDRESS_SPACE`] is part of these bytes.
const FIXED_OVERHEAD: u64 = 64 << 20;

/// The result of [`memory_of_permit`] for the smallest picture, rounded up to MiB.
const SMALLEST_PERMIT_MEMORY: u64 = 51 << 20;

/// The limit for a picture of less than a million pixels, in seconds of processor time.
const MIN_CPU_SECONDS: u64 = 5;
/// The highest limit for any picture, in seconds of processor time.
const MAX_CPU_SECONDS: u64 = 20;
/// What each full million pixels adds to [`MIN_CPU_SECONDS`]. The slowest format needs far less.
const CPU_SECONDS_PER_MEGAPIXEL: u64 = 1;

/// Returns how much of `max_memory` is reserved for small jobs, in bytes: a quarter, or zero if a
/// quarter is too little for the job of the smallest picture. A job is small if its
/// [`memory_of_permit`] is at most the reserved memory. Small jobs do not wait for the memory of large jobs.
pub(super) fn memory_reserved_for_small_jobs(max_memory: u64) -> u64 {
    let quarter = max_memory / 4;
    if quarter < SMALLEST_PERMIT_MEMORY { 0 } else { quarter }
}

/// Returns the memory that a job's permit must include, in bytes. This is the limit of the child's
/// address space without [`STARTUP_ADDRESS_SPACE`], which takes almost no memory.
pub(super) fn memory_of_permit(job: &Job) -> u64 {
    job.address_space - STARTUP_ADDRESS_SPACE
}

/// Plans the job of one child, with the limits of the child. All children together may use
/// `max_memory` bytes. Blocks the thread, because it reads the picture's header.
pub(super) fn plan_job(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<Job, image::Error> {
    let memory_estimate = target.memory_estimate(picture)?;
    let largest_permit = max_memory - memory_reserved_for_small_jobs(max_memory);
    if memory_estimate > largest_permit {
        return Err(image::Error::TooMuchToDecode {
            needed: memory_estimate,
            limit: largest_permit,
        });
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
        // Less for the largest pictures, because the queue could never grant a permit with more
        // memory than `largest_permit`.
        address_space: address_space.min(largest_permit + STARTUP_ADDRESS_SPACE),
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
    fn a_quarter_is_reserved_for_small_jobs_unless_it_is_too_little_for_the_smallest_picture() {
        let max_pixels = 1;
        let pixel = probe(Content::Memory(super::super::BLACK_PIXEL.into()), max_pixels).unwrap();
        let any_len = 0; // does not change the memory that the job needs
        let job = plan_job(&pixel, Target::Converted { max_len: any_len }, 512 * MIB).unwrap();
        let needed = memory_of_permit(&job);
        let rounded_up = needed.next_multiple_of(MIB);
        assert_eq!(rounded_up, SMALLEST_PERMIT_MEMORY, "{needed}");
        // A quarter of 203 MiB is too little for the smallest picture.
        let reserved_mib =
            [203, 204, 512].map(|mib| memory_reserved_for_small_jobs(mib * MIB) / MIB);
        assert_eq!(reserved_mib, [0, 51, 128]);
    }
}
