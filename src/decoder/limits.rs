//! Chooses a child's limits: memory by the picture's estimate, processor time by its size.
//! `child.rs` applies them in the child itself.

use super::protocol::Job;
use crate::image::{self, Picture, Target};

/// The address space that the program needs to start, in bytes. Very little of it is ever resident.
const START: u64 = 24 << 20;

/// What a child may take besides its estimate, including [`START`], in bytes.
const BASE: u64 = 64 << 20;

/// The memory that the queue charges for the smallest picture, in bytes.
const SMALLEST: u64 = 50 << 20;

/// The least and the most processor time of a picture, and what each million pixels adds, in
/// seconds: many times what the slowest kind needs.
const LEAST_CPU: u64 = 5;
const MOST_CPU: u64 = 20;
const CPU_PER_MEGAPIXEL: u64 = 1;

/// The part of the children's memory that is kept for small pictures, in bytes: a quarter, so that
/// they never wait for large ones, or nothing if a quarter is too small for a child.
pub(super) fn reserved_for_small(max_memory: u64) -> u64 {
    let quarter = max_memory / 4;
    if quarter < SMALLEST { 0 } else { quarter }
}

/// The memory that the queue charges for a child, in bytes. What the child maps to start is hardly
/// ever resident; it can only fill the rest.
pub(super) fn charged_memory(job: &Job) -> u64 {
    job.address_space - START
}

/// The job and limits of a child, if all children together may take `max_memory` bytes. Blocks,
/// because it reads the picture's header.
pub(super) fn plan_job(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<Job, image::Error> {
    let cost = target.cost(picture)?;
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
        address_space: (cost / 4 * 5 + BASE).min(limit + START),
        cpu_seconds: (LEAST_CPU + megapixels * CPU_PER_MEGAPIXEL).min(MOST_CPU),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Content, probe};

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_part_for_small_pictures_has_room_for_the_smallest_one() {
        let pixel = probe(Content::Memory(super::super::PIXEL.into()), 1).unwrap();
        let smallest =
            charged_memory(&plan_job(&pixel, Target::Converted { max_len: 0 }, 512 * MIB).unwrap());
        assert!((SMALLEST..SMALLEST + MIB).contains(&smallest), "{smallest}");
        assert_eq!([199, 200, 512].map(|mib| reserved_for_small(mib * MIB) / MIB), [0, 50, 128]);
    }
}
