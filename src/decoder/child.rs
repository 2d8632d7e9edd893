//! The child: limits itself, decodes the picture on its standard input, and writes the result or an
//! error to its standard output.

use std::{
    any::Any,
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    panic,
    process::ExitCode,
    sync::Arc,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::protocol::{AnswerKind, COMMAND, Job, MAX_MESSAGE};
use crate::image::{Content, Error, Picture};

/// Runs the job that the arguments describe and returns the exit code, or `None` if they are for
/// another command. Call this first in the program: nothing that runs earlier is limited.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    if args.next()? != COMMAND {
        return None;
    }
    let args: Vec<_> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let Some(job) = Job::parse(&args) else {
        #[allow(clippy::print_stderr, reason = "somebody typed it")]
        {
            eprintln!(
                "imagesvc decode is an internal command: the service starts it for each picture"
            );
        }
        return Some(ExitCode::from(2));
    };
    // A parent that stops reading does not need the rest of the answer.
    Some(if answer(job).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn answer(job: Job) -> io::Result<()> {
    // Before the limits, which allow no new file descriptors.
    let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let input = match limit(&job).and(input) {
        Ok(input) => input,
        Err(error) => return write_message(AnswerKind::LimitsFailed, &error.to_string()),
    };
    panic::set_hook(Box::new(|_| {})); // the answer contains the panic's message
    match panic::catch_unwind(|| render(job, input)) {
        Ok(Ok(rendered)) => write_answer(AnswerKind::Done, &rendered),
        Ok(Err(Error::Unreadable(error))) => {
            write_message(AnswerKind::Unreadable, &error.to_string())
        }
        Ok(Err(Error::Broken { reason, .. })) => write_message(AnswerKind::Broken, &reason),
        Ok(Err(error)) => write_message(AnswerKind::Broken, &error.to_string()),
        Err(panic) => write_message(AnswerKind::Panicked, message(&*panic)),
    }
}

/// Gives up everything that decoding does not need. If that fails, the child reports an error: it
/// never decodes without limits.
fn limit(job: &Job) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // If memory runs out anyway, the kernel kills this process first. Raising the value needs
        // no privilege.
        std::fs::write("/proc/self/oom_score_adj", "1000")?;
        lower_limit(Resource::As, job.address_space, job.address_space)?;
    }
    // At the soft limit the kernel sends a signal that ends the process.
    lower_limit(Resource::Cpu, job.cpu_seconds, job.cpu_seconds + 1)?;
    // No new files or sockets, not even in place of a closed one, and no writes to open files;
    // pipes are not files in this sense.
    lower_limit(Resource::Nofile, 0, 0)?;
    lower_limit(Resource::Fsize, 0, 0)?;
    lower_limit(Resource::Core, 0, 0)
}

/// Sets a limit, but never raises one.
fn lower_limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let lower = |old: Option<u64>, new| Some(old.map_or(new, |old| old.min(new)));
    let limit = Rlimit { current: lower(current, soft), maximum: lower(maximum, hard) };
    Ok(setrlimit(resource, limit)?)
}

fn render(job: Job, mut input: File) -> Result<Vec<u8>, Error> {
    let metadata = input.metadata()?;
    let content = if metadata.is_file() {
        Content::File(Arc::new(input), metadata.len())
    } else {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        Content::Memory(bytes.into())
    };
    let Job { target, format, width, height, orientation, cost, .. } = job;
    target.render(&Picture { content, format, width, height, orientation }, cost)
}

fn write_message(kind: AnswerKind, message: &str) -> io::Result<()> {
    write_answer(kind, &message.as_bytes()[..message.len().min(MAX_MESSAGE)])
}

fn write_answer(kind: AnswerKind, bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&kind.header(bytes.len() as u64))?;
    stdout.write_all(bytes)?;
    stdout.flush()
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
