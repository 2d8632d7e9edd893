//! What a child may take: memory by the picture's estimate, processor time by its size.
//! (`child.rs` sets the limits, in the child itself.)

use super::protocol::Job;
use crate::image::{self, Picture, Target};

/// The address space that the program takes to start; little of it is ever resident. In bytes.
const START: u64 = 24 << 20;

/// What a child may take beside its estimate, [`START`] included, in bytes.
const BASE: u64 = 64 << 20;

/// The memory that the smallest picture's child is charged for, in bytes.
const SMALLEST: u64 = 50 << 20;

/// The processor time of any picture, and what each million pixels adds to it, in seconds: many
/// times what the slowest kind takes.
const LEAST_CPU: u64 = 5;
const MOST_CPU: u64 = 20;
const CPU_PER_MEGAPIXEL: u64 = 1;

/// The part of the children's memory that is left to small pictures, in bytes: a quarter, so that
/// they never wait for large ones; nothing, where a quarter would hold no child.
pub(super) fn for_small(max_memory: u64) -> u64 {
    let quarter = max_memory / 4;
    if quarter < SMALLEST { 0 } else { quarter }
}

/// The memory that a child is charged for, in bytes. What it maps to start is hardly ever resident:
/// the rest is what it can fill.
pub(super) fn queued_memory(job: &Job) -> u64 {
    job.address_space - START
}

/// What a child is to do, and what it may take, where all children may take so many bytes. Blocks: it
/// reads the picture's header.
pub(super) fn job(picture: &Picture, target: Target, max_memory: u64) -> Result<Job, image::Error> {
    let cost = target.cost(picture)?;
    let limit = max_memory - for_small(max_memory);
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
    fn what_is_left_to_small_pictures_holds_the_smallest_ones_child() {
        let pixel = probe(Content::Memory(super::super::PIXEL.into()), 1).unwrap();
        let smallest =
            queued_memory(&job(&pixel, Target::Converted { max_len: 0 }, 512 * MIB).unwrap());
        assert!((SMALLEST..SMALLEST + MIB).contains(&smallest), "{smallest}");
        assert_eq!([199, 200, 512].map(|mib| for_small(mib * MIB) / MIB), [0, 50, 128]);
    }
}
