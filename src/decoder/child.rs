//! What runs in a decoder's child process: it lowers its own resource limits, decodes the picture on
//! its standard input, and writes the result or an error to its standard output.

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
        #[allow(
            clippy::print_stderr,
            reason = "only a person who types this internal command sees it"
        )]
        {
            eprintln!(
                "imagesvc decode is an internal command: the service starts it for each picture"
            );
        }
        return Some(ExitCode::from(2));
    };
    // Writing fails only if the parent has stopped reading, and then nobody needs the answer.
    Some(if answer(job).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn answer(job: Job) -> io::Result<()> {
    // This comes before the limits: after them, the process can open no new file descriptor.
    let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let input = match apply_limits(&job).and(input) {
        Ok(input) => input,
        Err(error) => return write_message(AnswerKind::LimitsFailed, &error.to_string()),
    };
    panic::set_hook(Box::new(|_| {})); // prints nothing: the answer carries the panic's message
    match panic::catch_unwind(|| render(job, input)) {
        Ok(Ok(rendered)) => write_answer(AnswerKind::Done, &rendered),
        Ok(Err(Error::Unreadable(error))) => {
            write_message(AnswerKind::Unreadable, &error.to_string())
        }
        Ok(Err(Error::Broken { reason, .. })) => write_message(AnswerKind::Broken, &reason),
        Ok(Err(error)) => write_message(AnswerKind::Broken, &error.to_string()),
        Err(panic) => write_message(AnswerKind::Panicked, panic_message(&*panic)),
    }
}

/// Lowers this process's resource limits to what the job needs. If that fails, the child reports an
/// error: it never decodes without limits.
fn apply_limits(job: &Job) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // If the machine runs out of memory, the kernel kills this process first. A process may
        // raise its own score without privileges.
        std::fs::write("/proc/self/oom_score_adj", "1000")?;
        cap_limit(Resource::As, job.address_space, job.address_space)?;
    }
    // At the soft limit the kernel sends SIGXCPU, which ends the process; a second later, SIGKILL.
    cap_limit(Resource::Cpu, job.cpu_seconds, job.cpu_seconds + 1)?;
    // The process opens nothing, not even after it has closed something, and writes to no regular
    // file. Its answer goes to a pipe, to which RLIMIT_FSIZE does not apply.
    cap_limit(Resource::Nofile, 0, 0)?;
    cap_limit(Resource::Fsize, 0, 0)?;
    cap_limit(Resource::Core, 0, 0)
}

/// Sets a limit, but never raises one.
fn cap_limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let capped = |old: Option<u64>, new| Some(old.map_or(new, |old| old.min(new)));
    let limit = Rlimit { current: capped(current, soft), maximum: capped(maximum, hard) };
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

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
