//! The child's side: lowers the process's own resource limits, decodes the picture on standard
//! input, and writes the result or an error to standard output.

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

use super::protocol::{COMMAND, Job, MAX_MESSAGE_LEN, ResultKind};
use crate::image::{Content, Error, Picture};

/// Runs the job in the program's arguments and returns the exit code. Returns `None` if the
/// arguments are for another command. Call this first in `main`, so that a child does nothing
/// without the limits.
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
    // `run_job` fails only if the parent has stopped reading. The parent then needs no result.
    Some(if run_job(job).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the job and writes its result to standard output.
fn run_job(job: Job) -> io::Result<()> {
    // Duplicate the descriptor before setting the limits, because they allow no new descriptors.
    let duplicate = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let input = match apply_limits(&job).and(duplicate) {
        Ok(input) => input,
        Err(error) => return write_message(ResultKind::LimitsFailed, &error.to_string()),
    };
    // Do not print panics: the result contains the message.
    panic::set_hook(Box::new(|_| {}));
    match panic::catch_unwind(|| render(job, input)) {
        Ok(Ok(rendered)) => write_result(ResultKind::Done, &rendered),
        Ok(Err(Error::Unreadable(error))) => {
            write_message(ResultKind::Unreadable, &error.to_string())
        }
        Ok(Err(Error::Broken { reason, .. })) => write_message(ResultKind::Broken, &reason),
        // `render` returns another error only if the file was changed after the parent read its header.
        Ok(Err(error)) => write_message(ResultKind::Broken, &error.to_string()),
        Err(payload) => write_message(ResultKind::Panicked, panic_message(&*payload)),
    }
}

/// Lowers this process's resource limits to the limits of the job. If this fails, the child must
/// not decode anything.
fn apply_limits(job: &Job) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // If the machine runs out of memory, the kernel kills this process first. A process may
        // raise its own score without privileges.
        std::fs::write("/proc/self/oom_score_adj", "1000")?;
        lower_limit(Resource::As, job.address_space, job.address_space)?;
    }
    // At the soft limit, the kernel sends SIGXCPU, which ends the process and tells the parent the
    // reason. With an equal hard limit, it would send SIGKILL instead.
    lower_limit(Resource::Cpu, job.cpu_seconds, job.cpu_seconds + 1)?;
    // The process can open no files or sockets. Closing a descriptor does not allow a new one.
    lower_limit(Resource::Nofile, 0, 0)?;
    // The process cannot write to regular files. The result goes to a pipe, which has no such
    // limit.
    lower_limit(Resource::Fsize, 0, 0)?;
    lower_limit(Resource::Core, 0, 0)
}

/// Lowers the limits of a resource. Limits that are already lower stay unchanged.
fn lower_limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    // `None` means that there is no limit yet.
    let smaller = |old: Option<u64>, new| Some(old.map_or(new, |old| old.min(new)));
    let limit = Rlimit { current: smaller(current, soft), maximum: smaller(maximum, hard) };
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
    let Job { target, format, width, height, orientation, memory_estimate, .. } = job;
    target.render(&Picture { content, format, width, height, orientation }, memory_estimate)
}

fn write_message(kind: ResultKind, message: &str) -> io::Result<()> {
    write_result(kind, &message.as_bytes()[..message.len().min(MAX_MESSAGE_LEN)])
}

fn write_result(kind: ResultKind, bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&kind.header(bytes.len() as u64))?;
    stdout.write_all(bytes)?;
    stdout.flush()
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a panic without a text)")
}
