//! Decodes pictures in child processes: the same program, started with a hidden command, which
//! limits itself before it reads a byte.
//!
//! Decoders read hostile bytes, and no check beforehand can bound what they do: a header of a few
//! hundred bytes can make one take gigabytes or run for ever. Only the system can stop that, and it
//! stops processes, not threads. A new process for each picture costs a millisecond or two, and
//! leaves nothing behind.

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
use limits::{plan_job, reserved_for_small, reserved_memory};
use process::Process;
use protocol::MAX_MESSAGE;

mod child;
mod limits;
mod process;
mod protocol;

pub use child::run as run_child;

/// The picture of [`Decoder::self_test`]: a GIF of one pixel.
const PIXEL: &[u8] =
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

/// Settings for decoding pictures.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program to start.
    pub program: PathBuf,
    /// The memory of all children together, in bytes.
    pub max_memory: u64,
    /// The most children at once.
    pub max_children: usize,
}

impl Settings {
    /// Starts this program itself, with one child for each core, within `max_memory` bytes.
    pub fn new(max_memory: u64) -> Self {
        let max_children = available_parallelism().map_or(1, usize::from);
        Self { program: this_program(), max_memory, max_children }
    }
}

/// The running program and not its path, because an upgrade may have replaced the file.
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
    /// The picture is at fault: the decoder reported it, or the picture made it crash.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The deadline passed before there was room for another child.
    #[error("the deadline passed while waiting to decode")]
    QueueTimeout,
    /// The deadline passed while decoding, and the child was killed.
    #[error("the deadline passed while decoding")]
    Timeout,
    /// The system did not start the child, or killed it.
    #[error("the decoder's process {fault}")]
    Unavailable {
        /// What happened.
        fault: String,
        /// The system's error.
        source: Option<io::Error>,
    },
    /// The result could not be stored.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The child did not follow the protocol, which is a bug.
    #[error("the decoder's process {0}")]
    ProtocolViolation(String),
    /// A thread panicked, which is a bug.
    #[error("the thread that starts decoders panicked")]
    Panicked(#[from] JoinError),
}

/// Decodes pictures; bounds how many at once, and is fair to clients. Cheap to clone; clones share
/// the bounds.
#[derive(Debug, Clone)]
pub struct Decoder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    queue: FairQueue,
    metrics: Arc<Metrics>,
}

impl Decoder {
    /// Creates a decoder.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        let max_memory = settings.max_memory;
        let queue =
            FairQueue::new(settings.max_children, max_memory, reserved_for_small(max_memory));
        Self(Arc::new(Inner { settings, queue, metrics }))
    }

    /// Decodes a client's picture into a spool before the deadline.
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
            Err(Error::QueueTimeout) => "busy",
            Err(Error::Timeout) => "timeout",
            Err(Error::Unavailable { .. }) => "unavailable",
            Err(Error::Spool(_) | Error::ProtocolViolation(_) | Error::Panicked(_)) => "failed",
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
        let job = timeout_at(deadline, spawn_blocking(move || plan_job(&header, target, limit)));
        let job = job.await.map_err(|_| Error::QueueTimeout)???;
        let permit = self.0.queue.take(client, reserved_memory(&job), deadline);
        let permit = permit.await.ok_or(Error::QueueTimeout)?;
        let program = self.0.settings.program.clone();
        let content = picture.content.clone();
        let process = spawn_blocking(move || Process::start(&program, job, &content, permit));
        let process = timeout_at(deadline, process).await.map_err(|_| Error::Timeout)???;
        let answer = process.answer(picture, target.max_len(), spool);
        timeout_at(deadline, answer).await.unwrap_or(Err(Error::Timeout))
    }

    /// Decodes a tiny picture, to check that the system lets the program start and limit itself.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn self_test(&self, deadline: Instant) -> Result<(), Error> {
        let picture = probe(Content::Memory(PIXEL.into()), 1)?;
        let target = Target::Square { side: 1 };
        // The result or an error message is short enough to stay in memory, so the folder is never
        // used.
        let folder = std::env::temp_dir();
        let space = DiskSpace::new(folder.clone(), 0);
        let spool = Staging::new(folder, space).spool(MAX_MESSAGE);
        let pixel =
            self.decode(&picture, ClientNetwork::UNKNOWN, target, deadline, spool).await?.content;
        match pixel.read_at(0, 3).as_deref() {
            Ok([0, 0, 0]) => Ok(()),
            _ => Err(Error::ProtocolViolation("did not decode the black pixel as black".into())),
        }
    }
}

/// The arguments of the child for a picture, its limits included, if all children together may take
/// `max_memory` bytes. Blocks the thread.
///
/// # Errors
/// [`image::Error::BadHeader`], [`image::Error::TooMuchToDecode`].
pub fn child_args(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<[String; 10], image::Error> {
    Ok(plan_job(picture, target, max_memory)?.to_args())
}
