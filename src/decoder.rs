//! Decodes pictures in processes of their own: the same program with a hidden command, which limits
//! itself before it reads a byte.
//!
//! Decoders read hostile bytes, and nothing that is known from outside holds them: a header of some
//! hundred bytes can make one take gigabytes, or never end. Only the system can stop that, and it
//! stops processes. A new one for each picture costs a millisecond or two, and leaves nothing behind.

use std::{io, path::PathBuf, sync::Arc, thread::available_parallelism};

use tokio::{
    task::{JoinError, spawn_blocking},
    time::{Instant, timeout_at},
};

use crate::{
    disk_space::DiskSpace,
    fair_queue::FairQueue,
    image::{self, Content, Picture, Target, probe},
    shares::ClientNetwork,
    spool::{self, Spool, Spooled, Staging},
    telemetry::Metrics,
};
use limits::{for_small, job, queued_memory};
use process::Process;
use protocol::MAX_WORDS;

mod child;
mod limits;
mod process;
mod protocol;

pub use child::run as run_child;

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

/// Decodes pictures, so many at once, and clients in turns. Cheap to clone; clones share the bounds.
#[derive(Debug, Clone)]
pub struct Decoder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    queue: FairQueue,
    metrics: Arc<Metrics>,
}

impl Decoder {
    /// A decoder with these settings.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        let max_memory = settings.max_memory;
        let queue = FairQueue::new(settings.max_children, max_memory, for_small(max_memory));
        Self(Arc::new(Inner { settings, queue, metrics }))
    }

    /// Renders a client's picture into a spool, before the deadline.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn decode(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        target: Target,
        deadline: Instant,
        spool: Spool,
    ) -> Result<Spooled, Error> {
        let outcome = self.decode_uncounted(picture, client, target, deadline, spool).await;
        let name = match &outcome {
            Ok(_) => "done",
            Err(Error::Image(_)) => "refused",
            Err(Error::Busy) => "busy",
            Err(Error::Timeout) => "timeout",
            Err(Error::Unavailable { .. }) => "unavailable",
            Err(Error::Spool(_) | Error::Confused(_) | Error::Died(_)) => "failed",
        };
        self.0.metrics.decodes.with([name]).inc();
        outcome
    }

    async fn decode_uncounted(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        target: Target,
        deadline: Instant,
        spool: Spool,
    ) -> Result<Spooled, Error> {
        let header = picture.clone();
        let limit = self.0.settings.max_memory;
        let job = timeout_at(deadline, spawn_blocking(move || job(&header, target, limit)));
        let job = job.await.map_err(|_| Error::Busy)???;
        let permit = self.0.queue.take(client, queued_memory(&job), deadline);
        let permit = permit.await.ok_or(Error::Busy)?;
        let program = self.0.settings.program.clone();
        let content = picture.content.clone();
        let process = spawn_blocking(move || Process::start(&program, job, &content, permit));
        let process = timeout_at(deadline, process).await.map_err(|_| Error::Timeout)???;
        let answer = process.answer(picture, target.max_len(), spool);
        timeout_at(deadline, answer).await.unwrap_or(Err(Error::Timeout))
    }

    /// Decodes a tiny picture: whether the system lets the program be started, and limit itself.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn try_out(&self, deadline: Instant) -> Result<(), Error> {
        let picture = probe(Content::Memory(PIXEL.into()), 1)?;
        let target = Target::Square { side: 1 };
        // A pixel, or words, stay in memory: the folder is never asked for anything.
        let folder = std::env::temp_dir();
        let space = DiskSpace::new(folder.clone(), 0);
        let spool = Staging::new(folder, space).spool(MAX_WORDS);
        let pixel =
            self.decode(&picture, ClientNetwork::UNKNOWN, target, deadline, spool).await?.content;
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
) -> Result<[String; 10], image::Error> {
    Ok(job(picture, target, max_memory)?.to_args())
}
