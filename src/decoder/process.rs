//! A child as its parent sees it: started, read, and ended.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
};

use bytes::{Bytes, BytesMut};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    runtime::Handle,
};

use super::{
    Error,
    protocol::{HEAD, Job, Kind, MAX_WORDS},
};
use crate::{
    fair_queue::Permit,
    image::{self, Content, Picture},
    spool::{Spool, Spooled},
};

/// How much of an answer is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Where an open file can be opened once more.
#[cfg(target_os = "linux")]
const OPEN_FILES: &str = "/proc/self/fd";
#[cfg(not(target_os = "linux"))]
const OPEN_FILES: &str = "/dev/fd";

/// The exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// A running child. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Process(Option<Running>);

#[derive(Debug)]
struct Running {
    child: Child,
    /// Held until the child has ended.
    permit: Permit,
}

impl Process {
    /// Starts a child with a picture on its standard input. Blocks.
    pub(super) fn start(
        program: &Path,
        job: Job,
        content: &Content,
        permit: Permit,
    ) -> Result<Self, Error> {
        let unavailable = |source| {
            let fault = "could not be started".to_owned();
            Error::Unavailable { fault, source: Some(source) }
        };
        let stdin = match content {
            Content::Memory(_) => Stdio::piped(),
            // Opened once more, to be read only, and from a place of its own.
            Content::File(file, _) => {
                let path = format!("{OPEN_FILES}/{}", file.as_raw_fd());
                File::open(path).map_err(unavailable)?.into()
            }
        };
        let mut child = Command::new(program)
            .args(job.to_args())
            .env_clear()
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A signal to the service's group, such as Ctrl-C, is not meant for it: the drain is.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(unavailable)?;
        if let (Content::Memory(bytes), Some(stdin)) = (content, child.stdin.take()) {
            // Beside the reading: each could wait for the other. It ends with the child.
            tokio::spawn(feed(stdin, bytes.clone()));
        }
        Ok(Self(Some(Running { child, permit })))
    }

    /// Receives the answer, and the child's end.
    pub(super) async fn answer(
        mut self,
        picture: &Picture,
        max_len: u64,
        mut spool: Spool,
    ) -> Result<Spooled, Error> {
        let stdout = self.0.as_mut().and_then(|running| running.child.stdout.take());
        let Some(mut stdout) = stdout else { return Err(confused("has no standard output")) };
        let mut head = [0; HEAD];
        if stdout.read_exact(&mut head).await.is_err() {
            return Err(fate(self.end().await?, picture, "said nothing"));
        }
        let Some((kind, len)) = Kind::parse(head) else {
            return Err(confused("said what makes no sense"));
        };
        let max_len = if kind == Kind::Done { max_len } else { MAX_WORDS as u64 };
        if len > max_len {
            return Err(confused("said too much"));
        }
        // One byte more: whether it ends where it said.
        let mut rest = stdout.take(len + 1);
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(PIECE);
            match rest.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => spool.write(&piece.split().freeze()).await?,
                Err(_) => break, // how the child ends tells why
            }
        }
        match spool.received() {
            received if received > len => return Err(confused("said more than it announced")),
            received => match self.end().await? {
                status if received == len && status.success() => {}
                status => return Err(fate(status, picture, "broke off in its answer")),
            },
        }
        let said = spool.finish().await?;
        let words = || {
            let words = said.content.read_at(0, MAX_WORDS).unwrap_or_default();
            String::from_utf8_lossy(&words).into_owned()
        };
        Err(match kind {
            Kind::Done => return Ok(said),
            Kind::Broken => broken(picture, words()),
            Kind::Panicked => broken(picture, format!("the decoder panicked: {}", words())),
            Kind::Unreadable => image::Error::Unreadable(io::Error::other(words())).into(),
            Kind::Unlimited => {
                let fault = format!("could not limit itself: {}", words());
                Error::Unavailable { fault, source: None }
            }
        })
    }

    /// Waits for the child's end, and gives its room back.
    async fn end(&mut self) -> Result<ExitStatus, Error> {
        let Some(running) = &mut self.0 else { return Err(confused("was waited for twice")) };
        let status = running.child.wait().await.map_err(|source| {
            let fault = "could not be waited for".to_owned();
            Error::Unavailable { fault, source: Some(source) }
        })?;
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(Running { mut child, permit }) = self.0.take() else { return };
        // The room is not free before the child has ended. Outside of a runtime, at the very end,
        // nobody waits for room: `kill_on_drop` does the rest.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = child.kill().await {
                    tracing::warn!(%error, "a decoder's process could not be ended");
                }
                drop(permit);
            });
        }
    }
}

async fn feed(mut stdin: ChildStdin, bytes: Bytes) {
    // A child that ends early does not read all; what it says, or its end, tells why.
    let _ = stdin.write_all(&bytes).await;
}

/// What a child's end means when it did not answer in full.
fn fate(status: ExitStatus, picture: &Picture, otherwise: &str) -> Error {
    match (status.signal(), status.signal().and_then(Signal::from_named_raw)) {
        (_, Some(Signal::XCPU)) => broken(picture, "it takes too much processor time"),
        // Rust ends a process that has no memory left so.
        (_, Some(Signal::ABORT)) => broken(picture, "it takes too much memory"),
        // What a process does to itself.
        (_, Some(Signal::BUS | Signal::FPE | Signal::ILL | Signal::SEGV | Signal::TRAP)) => {
            broken(picture, "the decoder crashed")
        }
        (Some(signal), _) => {
            let fault = format!("was ended from outside by signal {signal}");
            Error::Unavailable { fault, source: None }
        }
        (None, _) if status.code() == Some(PANICKED) => broken(picture, "the decoder panicked"),
        (None, _) => confused(&format!("{otherwise} ({status})")),
    }
}

fn broken(picture: &Picture, reason: impl Into<String>) -> Error {
    image::Error::Broken { format: picture.format, reason: reason.into() }.into()
}

fn confused(fault: &str) -> Error {
    Error::Confused(fault.to_owned())
}
