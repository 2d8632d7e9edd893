//! The parent's side: starts a child process, reads its result, and waits for its exit or kills it.

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
    protocol::{HEADER_LEN, Job, MAX_MESSAGE_LEN, ResultKind},
};
use crate::{
    fair_queue::Permit,
    image::{self, Content, Picture},
    spool::{Spool, Spooled},
};

/// At most this many bytes of a result are read at once.
const READ_SIZE: usize = 64 * 1024;

/// The folder with links to this process's open files.
#[cfg(target_os = "linux")]
const OPEN_FILES: &str = "/proc/self/fd";
#[cfg(not(target_os = "linux"))]
const OPEN_FILES: &str = "/dev/fd";

/// The exit code of a Rust program that ends because of an uncaught panic.
const PANICKED: i32 = 101;

/// A running child. Dropping this kills the child. Contains `None` after the child has exited.
#[derive(Debug)]
pub(super) struct Process(Option<Running>);

#[derive(Debug)]
struct Running {
    child: Child,
    /// The queue gets this permit back when the child has exited.
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
            let what_happened = "could not be started".to_owned();
            Error::Unavailable { what_happened, source: Some(source) }
        };
        let stdin = match content {
            Content::Memory(_) => Stdio::piped(),
            // Open the file again, so that the child can only read it and has its own file
            // position.
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
            // Signals to the service's process group, as from Ctrl-C, must not reach the child: the
            // service finishes its requests before it exits.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(unavailable)?;
        if let (Content::Memory(bytes), Some(stdin)) = (content, child.stdin.take()) {
            // The child may start to write before it has read its whole input, so a separate task
            // writes the input. The task ends when the child exits.
            tokio::spawn(write_input(stdin, bytes.clone()));
        }
        Ok(Self(Some(Running { child, permit })))
    }

    /// Reads the result into `spool` and waits for the child to exit. A rendered picture may have
    /// at most `max_rendered_len` bytes.
    pub(super) async fn read_result(
        mut self,
        picture: &Picture,
        max_rendered_len: u64,
        mut spool: Spool,
    ) -> Result<Spooled, Error> {
        let stdout = self.0.as_mut().and_then(|running| running.child.stdout.take());
        let Some(mut stdout) = stdout else {
            return Err(protocol_violation("has no standard output"));
        };
        let mut header = [0; HEADER_LEN];
        if stdout.read_exact(&mut header).await.is_err() {
            return Err(classify_exit(self.wait().await?, picture, "exited without a result"));
        }
        let Some((kind, len)) = ResultKind::parse(header) else {
            return Err(protocol_violation("sent an invalid result"));
        };
        let max_len =
            if kind == ResultKind::Done { max_rendered_len } else { MAX_MESSAGE_LEN as u64 };
        if len > max_len {
            return Err(protocol_violation("announced a result that is too long"));
        }
        // Read up to one byte more, to notice a result that is longer than announced.
        let mut rest = stdout.take(len + 1);
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(READ_SIZE);
            match rest.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => spool.write(&piece.split().freeze()).await?,
                Err(_) => break, // the child's exit status shows the reason
            }
        }
        let received = spool.received();
        if received > len {
            return Err(protocol_violation("sent more than it announced"));
        }
        let status = self.wait().await?;
        if received < len {
            return Err(classify_exit(status, picture, "exited in the middle of its result"));
        }
        if !status.success() {
            return Err(classify_exit(status, picture, "failed after its result"));
        }
        let result = spool.finish().await?;
        let message = || {
            let message = result.content.read_at(0, MAX_MESSAGE_LEN).unwrap_or_default();
            String::from_utf8_lossy(&message).into_owned()
        };
        Err(match kind {
            ResultKind::Done => return Ok(result),
            ResultKind::Broken => broken(picture, message()),
            ResultKind::Panicked => broken(picture, format!("the decoder panicked: {}", message())),
            ResultKind::Unreadable => image::Error::Unreadable(io::Error::other(message())).into(),
            ResultKind::LimitsFailed => {
                let what_happened = format!("could not limit itself: {}", message());
                Error::Unavailable { what_happened, source: None }
            }
        })
    }

    /// Waits for the child to exit, then gives its permit back.
    async fn wait(&mut self) -> Result<ExitStatus, Error> {
        let Some(running) = &mut self.0 else {
            return Err(protocol_violation("was waited for twice"));
        };
        let status = running.child.wait().await.map_err(|source| {
            let what_happened = "could not be waited for".to_owned();
            Error::Unavailable { what_happened, source: Some(source) }
        })?;
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(Running { mut child, permit }) = self.0.take() else { return };
        // The permit is given back only after the child has exited. When the service itself exits,
        // there may be no runtime any more. Then `kill_on_drop` kills the child.
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

async fn write_input(mut stdin: ChildStdin, bytes: Bytes) {
    // Writing fails if the child exits early. Its result or its exit status then shows the reason.
    let _ = stdin.write_all(&bytes).await;
}

/// Returns the error for a child that exited without a complete result, or that failed after a
/// complete result. If the exit status shows no other reason, the error is a protocol violation with
/// the text `violation`.
fn classify_exit(status: ExitStatus, picture: &Picture, violation: &str) -> Error {
    let signal_number = status.signal();
    match (signal_number, signal_number.and_then(Signal::from_named_raw)) {
        (_, Some(Signal::XCPU)) => broken(picture, "it takes too much processor time"),
        // Rust aborts a process that cannot allocate memory.
        (_, Some(Signal::ABORT)) => broken(picture, "it takes too much memory"),
        // The kernel sends one of these signals to a program that crashes. Other signals come from
        // outside.
        (_, Some(Signal::BUS | Signal::FPE | Signal::ILL | Signal::SEGV | Signal::TRAP)) => {
            broken(picture, "the decoder crashed")
        }
        (Some(signal), _) => {
            let what_happened = format!("was killed from outside with signal {signal}");
            Error::Unavailable { what_happened, source: None }
        }
        (None, _) if status.code() == Some(PANICKED) => broken(picture, "the decoder panicked"),
        (None, _) => protocol_violation(&format!("{violation} ({status})")),
    }
}

fn broken(picture: &Picture, reason: impl Into<String>) -> Error {
    image::Error::Broken { format: picture.format, reason: reason.into() }.into()
}

/// `what_happened` completes the sentence "the decoder's process …".
fn protocol_violation(what_happened: &str) -> Error {
    Error::ProtocolViolation(what_happened.to_owned())
}
