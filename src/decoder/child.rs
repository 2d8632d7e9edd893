//! The child: limits itself, decodes the one picture on its standard input, and says on its standard
//! output what became of it.

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

use super::protocol::{COMMAND, Job, Kind, MAX_WORDS};
use crate::image::{Content, Error, Picture};

/// Does the job that the arguments name and returns the exit code; `None` when they name another
/// command. To be called before anything else: what is done before it is not limited.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    if args.next()? != COMMAND {
        return None;
    }
    let args: Vec<_> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let Some(job) = Job::parse(&args) else {
        #[allow(clippy::print_stderr, reason = "somebody typed it")]
        {
            eprintln!("imagesvc decode is for the service itself: it starts it with each picture");
        }
        return Some(ExitCode::from(2));
    };
    // Whoever does not read the answer to its end needs none.
    Some(if answer(job).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn answer(job: Job) -> io::Result<()> {
    // Before the limits: there are no files after them.
    let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let input = match limit(&job).and(input) {
        Ok(input) => input,
        Err(error) => return say(Kind::Unlimited, &error.to_string()),
    };
    panic::set_hook(Box::new(|_| {})); // its words are in the answer
    match panic::catch_unwind(|| render(job, input)) {
        Ok(Ok(rendered)) => write(Kind::Done, &rendered),
        Ok(Err(Error::Unreadable(error))) => say(Kind::Unreadable, &error.to_string()),
        Ok(Err(Error::Broken { reason, .. })) => say(Kind::Broken, &reason),
        Ok(Err(error)) => say(Kind::Broken, &error.to_string()),
        Err(panic) => say(Kind::Panicked, words(&*panic)),
    }
}

/// Takes away from this process what decoding does not need. What cannot be taken away is an error:
/// a decoder without limits does not run.
fn limit(job: &Job) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // Where memory runs out all the same, this process is the one to end. It may always be
        // raised.
        std::fs::write("/proc/self/oom_score_adj", "1000")?;
        bound(Resource::As, job.address_space, job.address_space)?;
    }
    // At the first bound it is told to end, and dies of it.
    bound(Resource::Cpu, job.cpu_seconds, job.cpu_seconds + 1)?;
    // No files and no sockets, not even in place of one that was closed; nothing written to files
    // that are open, which pipes do not count as.
    bound(Resource::Nofile, 0, 0)?;
    bound(Resource::Fsize, 0, 0)?;
    bound(Resource::Core, 0, 0)
}

/// Sets a limit, and raises none.
fn bound(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
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

fn say(kind: Kind, words: &str) -> io::Result<()> {
    write(kind, &words.as_bytes()[..words.len().min(MAX_WORDS)])
}

fn write(kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&kind.head(bytes.len() as u64))?;
    stdout.write_all(bytes)?;
    stdout.flush()
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
