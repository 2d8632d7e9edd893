//! The parent's side of a child: starts it, reads its answer, and ends it.

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
    protocol::{AnswerKind, HEADER_LEN, Job, MAX_MESSAGE},
};
use crate::{
    fair_queue::Permit,
    image::{self, Content, Picture},
    spool::{Spool, Spooled},
};

/// How much of an answer is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The folder through which an open file can be opened again.
#[cfg(target_os = "linux")]
const OPEN_FILES: &str = "/proc/self/fd";
#[cfg(not(target_os = "linux"))]
const OPEN_FILES: &str = "/dev/fd";

/// The exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// A running child. Dropping this kills it.
#[derive(Debug)]
pub(super) struct Process(Option<Running>);

#[derive(Debug)]
struct Running {
    child: Child,
    /// Held until the child has ended.
    permit: Permit,
}

impl Process {
    /// Starts a child with a picture on its standard input. Blocks the thread.
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
            // Opened again, so that the child can only read, and has a file position of its own.
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
            // Ctrl-C and other signals to the service's process group must not reach the child: the
            // service still drains its requests.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(unavailable)?;
        if let (Content::Memory(bytes), Some(stdin)) = (content, child.stdin.take()) {
            // On a task of its own, because the child may write while it still has input to read.
            // The task ends with the child.
            tokio::spawn(feed(stdin, bytes.clone()));
        }
        Ok(Self(Some(Running { child, permit })))
    }

    /// Reads the answer, and waits for the child's end.
    pub(super) async fn answer(
        mut self,
        picture: &Picture,
        max_len: u64,
        mut spool: Spool,
    ) -> Result<Spooled, Error> {
        let stdout = self.0.as_mut().and_then(|running| running.child.stdout.take());
        let Some(mut stdout) = stdout else {
            return Err(protocol_violation("has no standard output"));
        };
        let mut header = [0; HEADER_LEN];
        if stdout.read_exact(&mut header).await.is_err() {
            return Err(classify_exit(self.end().await?, picture, "ended without an answer"));
        }
        let Some((kind, len)) = AnswerKind::parse(header) else {
            return Err(protocol_violation("sent an invalid answer"));
        };
        let max_len = if kind == AnswerKind::Done { max_len } else { MAX_MESSAGE as u64 };
        if len > max_len {
            return Err(protocol_violation("announced too long an answer"));
        }
        // Reads one byte more, to notice an answer that is longer than announced.
        let mut rest = stdout.take(len + 1);
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(PIECE);
            match rest.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => spool.write(&piece.split().freeze()).await?,
                Err(_) => break, // the child's exit status shows why
            }
        }
        match spool.received() {
            received if received > len => {
                return Err(protocol_violation("sent more than it announced"));
            }
            received => match self.end().await? {
                status if received == len && status.success() => {}
                status => {
                    return Err(classify_exit(
                        status,
                        picture,
                        "ended in the middle of its answer",
                    ));
                }
            },
        }
        let answer = spool.finish().await?;
        let message = || {
            let message = answer.content.read_at(0, MAX_MESSAGE).unwrap_or_default();
            String::from_utf8_lossy(&message).into_owned()
        };
        Err(match kind {
            AnswerKind::Done => return Ok(answer),
            AnswerKind::Broken => broken(picture, message()),
            AnswerKind::Panicked => broken(picture, format!("the decoder panicked: {}", message())),
            AnswerKind::Unreadable => image::Error::Unreadable(io::Error::other(message())).into(),
            AnswerKind::LimitsFailed => {
                let fault = format!("could not limit itself: {}", message());
                Error::Unavailable { fault, source: None }
            }
        })
    }

    /// Waits for the child's end, then gives its permit back.
    async fn end(&mut self) -> Result<ExitStatus, Error> {
        let Some(running) = &mut self.0 else {
            return Err(protocol_violation("was waited for twice"));
        };
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
        // The permit is given back only after the child has ended. Outside of a runtime (at the
        // very end of the process) nobody waits for it, and `kill_on_drop` is enough.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = child.kill().await {
                    tracing::warn!(%error, "a decoder's process could not be killed");
                }
                drop(permit);
            });
        }
    }
}

async fn feed(mut stdin: ChildStdin, bytes: Bytes) {
    // A child that ends early does not read everything; its answer or exit status shows why.
    let _ = stdin.write_all(&bytes).await;
}

/// Classifies the exit of a child that did not answer completely.
fn classify_exit(status: ExitStatus, picture: &Picture, otherwise: &str) -> Error {
    match (status.signal(), status.signal().and_then(Signal::from_named_raw)) {
        (_, Some(Signal::XCPU)) => broken(picture, "it takes too much processor time"),
        // Rust aborts a process that cannot allocate memory.
        (_, Some(Signal::ABORT)) => broken(picture, "it takes too much memory"),
        // Signals that a process causes itself.
        (_, Some(Signal::BUS | Signal::FPE | Signal::ILL | Signal::SEGV | Signal::TRAP)) => {
            broken(picture, "the decoder crashed")
        }
        (Some(signal), _) => {
            let fault = format!("was ended from outside by signal {signal}");
            Error::Unavailable { fault, source: None }
        }
        (None, _) if status.code() == Some(PANICKED) => broken(picture, "the decoder panicked"),
        (None, _) => protocol_violation(&format!("{otherwise} ({status})")),
    }
}

fn broken(picture: &Picture, reason: impl Into<String>) -> Error {
    image::Error::Broken { format: picture.format, reason: reason.into() }.into()
}

fn protocol_violation(fault: &str) -> Error {
    Error::ProtocolViolation(fault.to_owned())
}
