//! Decodes pictures in child processes. A child runs the same program with a hidden command. The
//! child lowers its own resource limits before it reads the picture.
//!
//! Pictures may be hostile, and no check of a header can predict how much memory and time a decoder
//! will take: a file of a few hundred bytes can make a decoder take gigabytes or run for ever. Only
//! the operating system can stop such a decoder, and it can stop only a whole process, not a single
//! thread. Starting a process for each picture takes a millisecond or two. When the process ends,
//! the system frees all its memory.

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
use limits::{memory_of_permit, memory_reserved_for_small_jobs, plan_job};
use process::Process;
use protocol::MAX_MESSAGE_LEN;

mod child;
mod limits;
mod process;
mod protocol;

pub use child::run as run_child;

/// The picture of [`Decoder::self_test`]: a GIF of one black pixel.
const BLACK_PIXEL: &[u8] =
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

/// Settings for decoding pictures.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program that the children run.
    pub program: PathBuf,
    /// The memory that all children together may use, in bytes.
    pub max_memory: u64,
    /// The most children that run at the same time.
    pub max_children: usize,
}

impl Settings {
    /// Returns settings for the running program, with one child for each core.
    pub fn new(max_memory: u64) -> Self {
        let max_children = available_parallelism().map_or(1, usize::from);
        Self { program: this_program(), max_memory, max_children }
    }
}

/// Returns a link to the running program. An upgrade may have replaced the file at the program's
/// path with another version.
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
    /// The picture cannot be decoded: it is not supported, its bytes cannot be read, or the decoder
    /// reported an error, crashed, or reached its limits.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The deadline passed before the queue granted a permit, or before the job was planned.
    #[error("the deadline passed while waiting to decode")]
    QueueTimeout,
    /// The deadline passed while the child started or decoded. The child is killed.
    #[error("the deadline passed while decoding")]
    Timeout,
    /// The system did not start the child, or did not let it lower its limits, or something outside
    /// killed it.
    #[error("the decoder's process {what_happened}")]
    Unavailable {
        /// What happened to the process. This completes the sentence "the decoder's process …".
        what_happened: String,
        /// The system's error, if there is one.
        source: Option<io::Error>,
    },
    /// The result could not be stored.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The child did not follow the protocol, which is a bug. The text completes the sentence "the
    /// decoder's process …".
    #[error("the decoder's process {0}")]
    ProtocolViolation(String),
    /// A thread panicked, which is a bug.
    #[error("the thread that starts decoders panicked")]
    Panicked(#[from] JoinError),
}

/// Decodes pictures. Limits how many pictures are decoded at the same time. Further pictures wait in
/// a queue that is fair to all clients. Clones are cheap and share the queue.
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
        let reserved = memory_reserved_for_small_jobs(max_memory);
        let queue = FairQueue::new(settings.max_children, max_memory, reserved);
        Self(Arc::new(Inner { settings, queue, metrics }))
    }

    /// Decodes a client's picture and writes the result to `spool`. Fails if the deadline passes
    /// first.
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
        let result = self.decode_without_metric(picture, client, target, deadline, spool).await;
        let outcome = match &result {
            Ok(_) => "done",
            Err(Error::Image(_)) => "refused",
            Err(Error::QueueTimeout) => "busy",
            Err(Error::Timeout) => "timeout",
            Err(Error::Unavailable { .. }) => "unavailable",
            Err(Error::Spool(_) | Error::ProtocolViolation(_) | Error::Panicked(_)) => "failed",
        };
        self.0.metrics.decodes.with([outcome]).inc();
        result
    }

    /// Does the work of [`Self::decode`], except for the metric.
    async fn decode_without_metric(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        target: Target,
        deadline: Instant,
        spool: Spool,
    ) -> Result<Spooled, Error> {
        let picture_to_plan = picture.clone();
        let max_memory = self.0.settings.max_memory;
        let planning = spawn_blocking(move || plan_job(&picture_to_plan, target, max_memory));
        // The three `?` return an error if the deadline passed, if the thread panicked, and if the
        // picture cannot be planned.
        let job = timeout_at(deadline, planning).await.map_err(|_| Error::QueueTimeout)???;

        let permit = self.0.queue.take(client, memory_of_permit(&job), deadline);
        let permit = permit.await.ok_or(Error::QueueTimeout)?;

        let program = self.0.settings.program.clone();
        let content = picture.content.clone();
        let starting = spawn_blocking(move || Process::start(&program, job, &content, permit));
        let process = timeout_at(deadline, starting).await.map_err(|_| Error::Timeout)???;

        let result = process.read_result(picture, target.max_result_len(), spool);
        timeout_at(deadline, result).await.unwrap_or(Err(Error::Timeout))
    }

    /// Decodes a tiny picture, to check that the system allows the program to start a child and the
    /// child to lower its limits.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn self_test(&self, deadline: Instant) -> Result<(), Error> {
        let max_pixels = 1;
        let picture = probe(Content::Memory(BLACK_PIXEL.into()), max_pixels)?;
        let target = Target::Square { side: 1 };
        // The spool keeps up to `MAX_MESSAGE_LEN` bytes in memory. The result and any error message are
        // not longer, so the spool never uses its folder.
        let folder = std::env::temp_dir();
        let space = DiskSpace::new(folder.clone(), 0);
        let spool = Staging::new(folder, space).spool(MAX_MESSAGE_LEN);
        let pixel =
            self.decode(&picture, ClientNetwork::UNKNOWN, target, deadline, spool).await?.content;
        // The result for `Target::Square` is three bytes for each pixel: red, green and blue.
        match pixel.read_at(0, 3).as_deref() {
            Ok([0, 0, 0]) => Ok(()),
            _ => Err(Error::ProtocolViolation("did not decode the black pixel as black".into())),
        }
    }
}

/// Returns the arguments of a child process that decodes this picture. They include the limits of
/// the process. All child processes together may use `max_memory` bytes. Blocks the thread.
///
/// # Errors
/// [`image::Error::BadHeader`], [`image::Error::Unsupported`], [`image::Error::TooMuchToDecode`],
/// [`image::Error::Unreadable`].
pub fn child_args(
    picture: &Picture,
    target: Target,
    max_memory: u64,
) -> Result<[String; 10], image::Error> {
    Ok(plan_job(picture, target, max_memory)?.to_args())
}
