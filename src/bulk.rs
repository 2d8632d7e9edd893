//! The commands `embed` and `nearest`, which are clients of the service.
//!
//! [`embed`] embeds the pictures of folders and lists, and writes one JSON line for each picture.
//! [`nearest`](fn@nearest) compares one picture with these lines. Both use a running service, or start
//! one in this process on a loopback port. In both cases the cache, the limits and the errors are those
//! of the service.
//!
//! The parts of `embed`, and the path of a row through them:
//!
//! ```text
//! source ──► feeder ──► lanes ──► client ──► classify ──► writer ──► output, failures
//!           (thread)      ▲                      │        (thread)
//!                         └────── try again ─────┘
//! ```
//!
//! Every part limits its memory. A list of a million rows needs no more memory than one of a thousand,
//! except for a 64-bit hash of each row that the output or the file of failures already contains.

use std::path::PathBuf;

use tokio::task::spawn_blocking;

use crate::{
    config::{Config, EmbedArguments, ExportFile},
    nvidia::CallLimit,
};
use export::Export;
use failures::Failures;
use feeder::Feeder;
use interrupt::Interrupt;
use item::ItemReader;
use output::{Appender, Existing, OutputError};
use progress::Progress;
use run::{Plan, Run};
use service::Service;
use writer::{Target, Writer};

mod attempt;
mod classify;
mod client;
mod counter;
mod dry_run;
mod error;
mod export;
mod failures;
mod feeder;
mod form;
mod interrupt;
mod item;
mod json_object;
mod lanes;
mod nearest;
mod numbers;
mod output;
mod progress;
mod retry;
mod rows;
mod run;
mod same_file;
mod selection;
mod service;
mod silence;
mod source;
mod tally;
mod vectors;
mod window;
mod writer;

pub use error::{BulkError, Outcome};
pub use nearest::nearest;

/// The default limit on concurrent requests to a running service, which may have other clients.
const SHARED_CONCURRENCY: usize = 8;

/// Embeds the pictures of the sources.
///
/// # Errors
/// Why the run cannot start, or why its output cannot be written.
pub async fn embed(arguments: EmbedArguments, config: Config) -> Result<Outcome, BulkError> {
    let mut interrupt = Interrupt::install().map_err(BulkError::System)?;
    let reader = ItemReader {
        location_field: arguments.field.clone(),
        id_field: arguments.id.clone(),
        prefix: arguments.prefix.clone(),
    };
    source::check(&arguments.sources)?;
    check_output(&arguments)?;
    if arguments.dry_run {
        return count(arguments, reader, config.nvidia.call_limit).await;
    }
    let (target, existing, export) =
        open_target(arguments.out.clone(), arguments.export.clone(), reader.clone()).await?;
    let default_concurrency =
        if arguments.to.is_some() { SHARED_CONCURRENCY } else { concurrency_in_process(&config) };
    let service =
        Service::open(arguments.to.as_ref(), arguments.save, &arguments.prefix, config).await?;
    let model = service.client.model().await?;
    match (&arguments.out, &existing.model) {
        (Some(path), Some(existing_model)) if *existing_model != model => {
            let (path, row_model) = (path.clone(), existing_model.clone());
            return Err(OutputError::OtherModel { path, row_model, service_model: model }.into());
        }
        _ => {}
    }
    let plan = Plan {
        concurrency: arguments.concurrency.map_or(default_concurrency, Into::into),
        per_host: arguments.per_host.get(),
        model,
    };
    let prints_rows = arguments.out.is_none();
    let progress = Progress::start(prints_rows);
    let writer = Writer::start(target, progress.console()).map_err(BulkError::System)?;
    let feeder = Feeder::start(arguments.sources, reader, existing, arguments.limit);
    let feeder = feeder.map_err(BulkError::System)?;
    let run = Run::new(plan, service.client.clone(), writer, progress);
    let run_result = run.send_all(feeder, &mut interrupt).await;
    service.stop().await;
    match export {
        Some(export) => export.finish(run_result, &mut interrupt).await,
        None => run_result,
    }
}

/// The default limit on concurrent requests to a service in this process. It is twice the number of
/// permits for calls to NVIDIA, because a request needs its permit for only a part of its time. But it is
/// at most the number of calls to NVIDIA that `call_limit` allows in half a minute, and at least one. With
/// more requests, some would wait for their calls past their deadlines (by default, after a minute), and
/// would be refused.
fn concurrency_in_process(config: &Config) -> usize {
    let twice_the_permits = 2 * config.embed.call.max_concurrency;
    let limit = config.nvidia.call_limit;
    let calls_in_half_a_minute = limit.map(|limit| (limit.calls_per_minute() as usize / 2).max(1));
    calls_in_half_a_minute.map_or(twice_the_permits, |calls| calls.min(twice_the_permits))
}

/// Checks that neither the output nor the exported file is a source, and that the exported file does not
/// exist or is from an earlier run.
fn check_output(arguments: &EmbedArguments) -> Result<(), BulkError> {
    let EmbedArguments { sources, out, export, .. } = arguments;
    let export_path = export.as_ref().map(|export| &export.path);
    let outputs: Vec<_> = out.iter().chain(export_path).map(PathBuf::as_path).collect();
    same_file::check(sources, &outputs).map_err(|error| BulkError::Output(error.to_string()))?;
    match (export, out) {
        (Some(export), Some(rows)) => export::check(export, rows),
        _ => Ok(()),
    }
}

/// Opens the output and the file of failures, and reads which rows the output contains. Prepares the
/// export: the Parquet or NumPy file that is made from the rows at the end. Without `out`, the target is
/// standard output, and there is no export.
async fn open_target(
    out: Option<PathBuf>,
    export: Option<ExportFile>,
    reader: ItemReader,
) -> Result<(Target, Existing, Option<Export>), BulkError> {
    let Some(path) = out else { return Ok((Target::Standard(reader), Existing::default(), None)) };
    let open = move || {
        let io_error = |error| OutputError::Io(path.clone(), error);
        let file = output::open(&path)?;
        // `output::open` has moved the position in `file`, so the rows are read through another handle.
        let existing = output::read(std::fs::File::open(&path).map_err(io_error)?, &path, &reader)?;
        let export = match export {
            Some(export) => Some(Export::prepare(export, &path, &file, &reader)?),
            None => None,
        };
        let failures = Failures::open(&path, reader, |identity| existing.contains(identity));
        let failures = failures.map_err(|error| OutputError::Io(Failures::path(&path), error))?;
        let rows = Appender::new(file).map_err(io_error)?;
        Ok((Target::Files(rows, failures), existing, export))
    };
    on_blocking_thread(open).await
}

/// Counts the pictures and prints the counts, without a service.
async fn count(
    arguments: EmbedArguments,
    reader: ItemReader,
    call_limit: Option<CallLimit>,
) -> Result<Outcome, BulkError> {
    let work = move || {
        let existing = match arguments.out.as_ref().filter(|path| path.exists()) {
            Some(path) => {
                let file = std::fs::File::open(path);
                let file = file.map_err(|error| OutputError::Io(path.clone(), error))?;
                output::read(file, path, &reader)?
            }
            None => Existing::default(),
        };
        let EmbedArguments { sources, limit, .. } = arguments;
        dry_run::count(&sources, &reader, existing, limit, call_limit)
    };
    on_blocking_thread(work).await?;
    Ok(Outcome::Success)
}

/// Runs `work` on a thread that it may block.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BulkError> + Send + 'static,
) -> Result<T, BulkError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(BulkError::System(error.into())))
}
