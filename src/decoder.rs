//! Decodes pictures in processes of their own: the same program with a hidden command, which limits
//! itself before it reads a byte.
//!
//! Decoders read hostile bytes, and nothing that is known from outside holds them: a header of some
//! hundred bytes can make one take gigabytes, or never end. Only the system can stop that, and it
//! stops processes. A new one for each picture costs a millisecond or two, and leaves nothing behind.

use std::{io, path::PathBuf, sync::Arc, thread::available_parallelism};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, spawn_blocking},
    time::{Instant, timeout_at},
};

use crate::{
    image::{self, Content, Picture, Target, probe},
    spool::{self, Spool, Spooled, Staging},
    telemetry::Metrics,
};
use job::{Job, MAX_WORDS};
use process::Process;

mod child;
mod job;
mod process;

pub use child::run as run_child;

/// What the memory's semaphore counts: its permits are `u32`, bytes are more.
const UNIT: u64 = 1024;

/// The address space that the program takes to start; little of it is ever resident. In bytes.
const START: u64 = 24 << 20;

/// What a child may take beside its estimate, [`START`] included, in bytes.
const BASE: u64 = 64 << 20;

/// The processor time of any picture, and what each million pixels adds to it, in seconds: many
/// times what the slowest kind takes.
const LEAST_CPU: u64 = 5;
const MOST_CPU: u64 = 20;
const CPU_PER_MEGAPIXEL: u64 = 1;

/// A picture for [`Decoder::try_out`]: a GIF of one pixel.
const PIXEL: &[u8] =
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

/// How pictures are decoded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program that is started.
    pub program: PathBuf,
    /// Memory of all children together, in bytes.
    pub max_memory: u64,
    /// Children at once.
    pub max_children: usize,
}

impl Settings {
    /// This program itself, as many at once as there are cores, within this memory.
    pub fn new(max_memory: u64) -> Self {
        let max_children = available_parallelism().map_or(1, usize::from);
        Self { program: this_program(), max_memory, max_children }
    }
}

/// By what runs, not by its name: an upgrade may have put another program there.
#[cfg(target_os = "linux")]
fn this_program() -> PathBuf {
    "/proc/self/exe".into()
}

#[cfg(not(target_os = "linux"))]
fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "imagesvc".into())
}

/// Why a picture was not decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The picture is to blame: the decoder said so, or it died of the picture.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The deadline passed before there was room for another child.
    #[error("the deadline passed while waiting to decode")]
    Busy,
    /// The deadline passed, and the child was ended.
    #[error("the deadline passed while decoding")]
    Timeout,
    /// The system gave no child, or took it away.
    #[error("the decoder's process {fault}")]
    Unavailable {
        /// What happened.
        fault: String,
        /// What the system said.
        source: Option<io::Error>,
    },
    /// What was decoded cannot be kept.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The child does not keep to what was agreed: a bug.
    #[error("the decoder's process {0}")]
    Confused(String),
    /// A thread died: a bug.
    #[error("the thread that starts decoders died")]
    Died(#[from] JoinError),
}

/// Decodes pictures, so many at once. Cheap to clone; clones share the bounds.
#[derive(Debug, Clone)]
pub struct Decoder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    children: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// Large pictures wait here first, so that small ones never wait behind them: a child, and an
    /// eighth of the memory, are left to those.
    large_children: Arc<Semaphore>,
    large_memory: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// The room that a child takes, given back when dropped.
#[derive(Debug)]
struct Permits {
    _large: Option<[OwnedSemaphorePermit; 2]>,
    _child: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl Decoder {
    /// A decoder with these settings.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        let children = settings.max_children.max(1);
        Self(Arc::new(Inner {
            children: Arc::new(Semaphore::new(children)),
            memory: Arc::new(Semaphore::new(units(settings.max_memory) as usize)),
            large_children: Arc::new(Semaphore::new((children - 1).max(1))),
            large_memory: Arc::new(Semaphore::new(units(for_large(&settings)) as usize)),
            settings,
            metrics,
        }))
    }

    /// Renders a picture into a spool, before the deadline.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn decode(
        &self,
        picture: &Picture,
        target: Target,
        deadline: Instant,
        spool: Spool,
    ) -> Result<Spooled, Error> {
        let outcome = self.decode_uncounted(picture, target, deadline, spool).await;
        self.0.metrics.decode(match &outcome {
            Ok(_) => "done",
            Err(Error::Image(_)) => "refused",
            Err(Error::Busy) => "busy",
            Err(Error::Timeout) => "timeout",
            Err(Error::Unavailable { .. }) => "unavailable",
            Err(Error::Spool(_) | Error::Confused(_) | Error::Died(_)) => "failed",
        });
        outcome
    }

    async fn decode_uncounted(
        &self,
        picture: &Picture,
        target: Target,
        deadline: Instant,
        spool: Spool,
    ) -> Result<Spooled, Error> {
        let header = picture.clone();
        let limit = self.0.settings.max_memory;
        let job = timeout_at(deadline, spawn_blocking(move || job(&header, target, limit)));
        let job = job.await.map_err(|_| Error::Busy)???;
        // What it maps to start is hardly ever resident: the rest is what it can fill.
        let permits = timeout_at(deadline, self.permits(job.address_space - START));
        let permits = permits.await.map_err(|_| Error::Busy)?;
        let program = self.0.settings.program.clone();
        let content = picture.content.clone();
        let process = spawn_blocking(move || Process::start(&program, job, &content, permits));
        let process = timeout_at(deadline, process).await.map_err(|_| Error::Timeout)???;
        let answer = process.answer(picture, target.max_len(picture), spool);
        timeout_at(deadline, answer).await.unwrap_or(Err(Error::Timeout))
    }

    /// Waits until there is room for a child that takes so many bytes.
    async fn permits(&self, bytes: u64) -> Permits {
        let Inner { settings, children, memory, large_children, large_memory, .. } = &*self.0;
        let large = if bytes > settings.max_memory / 4 {
            // One may be larger than the part for large ones: it takes all of that.
            let part = units(bytes.min(for_large(settings)));
            Some([acquire(large_children, 1).await, acquire(large_memory, part).await])
        } else {
            None
        };
        let child = acquire(children, 1).await;
        let memory = acquire(memory, units(bytes)).await;
        Permits { _large: large, _child: child, _memory: memory }
    }

    /// Decodes a tiny picture: whether the system lets the program be started, and limit itself.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn try_out(&self, deadline: Instant) -> Result<(), Error> {
        let picture = probe(Content::Memory(PIXEL.into()), 1)?;
        let target = Target::Square { side: 1 };
        // A pixel, or words, stay in memory: the folder is never asked for anything.
        let spool = Staging::new(std::env::temp_dir()).spool(MAX_WORDS);
        let pixel = self.decode(&picture, target, deadline, spool).await?.content;
        match pixel.read_at(0, 3).as_deref() {
            Ok([0, 0, 0]) => Ok(()),
            _ => Err(Error::Confused("decoded the black pixel to something else".into())),
        }
    }
}

/// The arguments of the child that renders a picture, its limits among them, where all children
/// may take so many bytes. Blocks.
///
/// # Errors
/// [`image::Error::BadHeader`], [`image::Error::TooMuchToDecode`].
pub fn child_args(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<[String; 9], image::Error> {
    Ok(job(picture, target, max_memory)?.to_args())
}

fn job(picture: &Picture, target: Target, max_memory: u64) -> Result<Job, image::Error> {
    let cost = target.cost(picture)?;
    if cost > max_memory {
        return Err(image::Error::TooMuchToDecode { needed: cost, limit: max_memory });
    }
    let megapixels = picture.pixels() / 1_000_000;
    Ok(Job {
        target,
        format: picture.format,
        width: picture.width,
        height: picture.height,
        cost,
        address_space: (cost / 4 * 5 + BASE).min(max_memory + START),
        cpu_seconds: (LEAST_CPU + megapixels * CPU_PER_MEGAPIXEL).min(MOST_CPU),
    })
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_many_owned(permits).await {
        Ok(permit) => permit,
        // Nothing closes the semaphores.
        Err(_) => std::future::pending().await,
    }
}

/// The part of the memory that large pictures may take together, in bytes.
fn for_large(settings: &Settings) -> u64 {
    settings.max_memory - settings.max_memory / 8
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).min(u32::MAX >> 3)
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, poll};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn decoder(max_children: usize) -> Decoder {
        let settings = Settings { max_children, ..Settings::new(512 * MIB) };
        Decoder::new(settings, Metrics::new())
    }

    #[tokio::test]
    async fn large_pictures_leave_a_child_and_memory_to_small_ones() {
        let decoder = decoder(2);
        let large = decoder.permits(200 * MIB).await;
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(decoder.permits(200 * MIB))).collect();
        for waiting in &mut waiting {
            assert!(poll!(waiting).is_pending());
        }
        let small = decoder.permits(50 * MIB).now_or_never().expect("there is room for it");
        assert!(decoder.permits(MIB).now_or_never().is_none(), "two at once, no more");
        drop((large, small));
        assert!(poll!(&mut waiting[0]).is_ready(), "first come, first served");
    }

    #[tokio::test]
    async fn children_share_the_memory() {
        let decoder = decoder(8);
        let _first = decoder.permits(300 * MIB).await;
        let mut second = Box::pin(decoder.permits(300 * MIB));
        assert!(poll!(&mut second).is_pending());
        let small = decoder.permits(100 * MIB).now_or_never().expect("it does not wait behind it");
        assert!(decoder.permits(120 * MIB).now_or_never().is_none(), "there is no more");
        drop(small);
        assert!(decoder.permits(120 * MIB).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_single_core_decodes_large_pictures_too() {
        let decoder = decoder(1);
        let all = decoder.permits(512 * MIB).await;
        assert!(decoder.permits(MIB).now_or_never().is_none());
        drop(all);
        assert!(decoder.permits(MIB).now_or_never().is_some());
    }
}
