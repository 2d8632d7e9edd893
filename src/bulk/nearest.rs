//! `imagesvc nearest`: embeds one picture, and prints the rows of a file whose vectors are nearest.
//!
//! Like `imagesvc embed`, the command is a client of the service. It reads the file once, and keeps only
//! the nearest rows in memory.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    BulkError, Outcome,
    classify::Action,
    client::{Embedded, ServiceClient},
    interrupt::Interrupt,
    item::{Failure, ItemReader, Picture},
    numbers,
    progress::{self, write_line},
    retry::{Attempts, REQUEST_TIMEOUT},
    service::Service,
    vectors::{Labels, Row, VectorFile, VectorsError},
};
use crate::config::{Config, NearestArguments};
use ranking::{Hit, Query, Ranking};

mod ranking;

/// How long all attempts to embed the picture may take together. `imagesvc embed` allows more, but here
/// a person waits for the result.
const PICTURE_TIMEOUT: Duration = REQUEST_TIMEOUT;

/// The shortest wait before another attempt.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// The most characters of a label, or of the picture's name, that are printed. They are counted before
/// control characters are escaped.
const MAX_PRINTED_CHARS: usize = 4096;

/// Embeds the picture, and prints the nearest rows. Returns `Interrupted` if a signal ends the command
/// earlier.
///
/// # Errors
/// The file or the service cannot be used, the picture cannot be embedded, or standard output cannot be
/// written to.
pub async fn nearest(arguments: NearestArguments, config: Config) -> Result<Outcome, BulkError> {
    let mut interrupt = Interrupt::install().map_err(BulkError::System)?;
    tokio::select! {
        result = find_and_print(arguments, config) => result.map(|()| Outcome::Success),
        () = interrupt.wait() => Ok(Outcome::Interrupted),
    }
}

async fn find_and_print(arguments: NearestArguments, config: Config) -> Result<(), BulkError> {
    let NearestArguments { picture, vectors, count, field, id, prefix, to } = arguments;
    let reader = ItemReader { location_field: field, id_field: id, prefix };
    // The file is opened first: if it cannot be used, no call to NVIDIA is made.
    let file_reader = reader.clone();
    let open = move || Ok(VectorFile::open(&vectors, &file_reader)?);
    let file = super::on_blocking_thread(open).await?;
    // In the file, the names of the fields that `imagesvc embed` added begin with `prefix`. This command
    // adds no fields, so its service needs no prefix.
    let (save, no_prefix) = (false, "");
    let service = Service::open(to.as_ref(), save, no_prefix, config).await?;
    let embedded = embed(&service.client, &picture, &file).await;
    service.stop().await;
    let (query, model) = embedded?;
    super::on_blocking_thread(move || {
        let hits = rank(file, &reader, &query, &model, count.get())?;
        print(&hits)
    })
    .await
}

/// Embeds the picture. Fails without embedding it if the file's first row has another model than the
/// service. Returns the picture's vector, and the model that computed it.
async fn embed(
    client: &ServiceClient,
    picture: &str,
    file: &VectorFile,
) -> Result<(Query, String), BulkError> {
    let model = client.model().await?;
    check_model(file, file.model_of_first_row(), &model)?;
    let embedded = embed_patiently(client, &Picture::parse(picture)).await;
    let query = embedded.and_then(|embedded| {
        let vector = vector(&embedded)?;
        Ok((Query::new(&vector), embedded.model))
    });
    query.map_err(|Failure { code, detail, .. }| BulkError::Picture {
        picture: printable_beginning(picture),
        code,
        detail,
    })
}

/// Embeds the picture. Tries again after errors that may be temporary. If the service refuses the picture
/// because it is busy, that does not count as a failed attempt.
async fn embed_patiently(client: &ServiceClient, picture: &Picture) -> Result<Embedded, Failure> {
    let mut attempts = Attempts::within(PICTURE_TIMEOUT);
    loop {
        let (failure, pause) = match client.embed(picture, attempts.next_timeout()).await {
            Ok(embedded) => return Ok(embedded),
            Err(Action::NotSent(failure) | Action::Fail(failure) | Action::StopRun(failure)) => {
                return Err(failure);
            }
            Err(Action::PauseService(failure, pause)) => (failure, pause),
            Err(Action::PauseHost(failure, pause)) => {
                attempts.add_failure();
                (failure, pause)
            }
            Err(Action::TryAgain(failure) | Action::HostFailed(failure)) => {
                attempts.add_failure();
                (failure, Duration::ZERO)
            }
        };
        let wait = pause.max(attempts.backoff()).max(MIN_WAIT);
        if !attempts.may_continue(Instant::now() + wait) {
            return Err(failure);
        }
        let Failure { code, detail, .. } = &failure;
        write_line(&format!(
            "{code}: {detail} Trying again in {}.",
            humantime::format_duration(wait)
        ));
        sleep(wait).await;
    }
}

/// Parses the vector in an answer. The vector is the last of [`Embedded::fields`], so it follows the last
/// colon.
fn vector(embedded: &Embedded) -> Result<Vec<f32>, Failure> {
    let mut vector = Vec::new();
    let text = embedded.fields.rsplit(':').next().unwrap_or_default();
    match numbers::append(text, &mut vector) {
        Ok(()) => Ok(vector),
        Err(detail) => {
            let detail = format!("The service's answer cannot be used: {detail}.");
            Err(Failure::permanent("invalid_answer", detail))
        }
    }
}

/// Finds the `count` rows that are nearest to `query`, whose model is `model`. Blocks the thread.
fn rank(
    mut file: VectorFile,
    reader: &ItemReader,
    query: &Query,
    model: &str,
    count: usize,
) -> Result<Vec<Hit>, BulkError> {
    let mut ranking = Ranking::new(count);
    let mut row = Row::default();
    let mut rows = 0;
    while file.next(&mut row)? {
        rows += 1;
        if let Some(other_model) = row.model.as_deref().filter(|of_row| *of_row != model) {
            let detail = format!("its model is {other_model}, not {model}");
            return Err(file.row_error(row.number, detail).into());
        }
        if row.vector.len() != query.len() {
            let (found, expected) = (row.vector.len(), query.len());
            let detail =
                format!("the vector has {found} numbers, but that of the picture has {expected}");
            return Err(file.row_error(row.number, detail).into());
        }
        ranking.offer(query.cosine(&row.vector), row.number, &mut row.label);
    }
    let mut hits = ranking.into_sorted();
    if file.has_separate_labels() {
        add_labels(&mut hits, &file, reader, model, rows)?;
    }
    Ok(hits)
}

/// Takes the labels from the `.jsonl` file beside `file`, if that file exists and has the same number of
/// rows. Fails if that file names another model for a hit. `rows` is the number of rows in `file`.
fn add_labels(
    hits: &mut [Hit],
    file: &VectorFile,
    reader: &ItemReader,
    model: &str,
    rows: u64,
) -> Result<(), BulkError> {
    let row_numbers: Vec<_> = hits.iter().map(|hit| hit.row).collect();
    let Some(mut labels) = Labels::beside(&file.path, reader, &row_numbers)? else { return Ok(()) };
    if labels.row_count != rows {
        let (path, found) = (labels.path.display(), labels.row_count);
        write_line(&format!(
            "{path} has {found} rows, not {rows}, so only the numbers of the rows are printed"
        ));
        return Ok(());
    }
    for row_model in &labels.models {
        check_model(file, Some(row_model), model)?;
    }
    for hit in hits {
        hit.label = labels.by_row.remove(&hit.row);
    }
    Ok(())
}

/// Refuses the file if its rows have another model than the service. `row_model` is `None` if the rows'
/// model is not known.
fn check_model(
    file: &VectorFile,
    row_model: Option<&str>,
    service_model: &str,
) -> Result<(), VectorsError> {
    match row_model {
        Some(row_model) if row_model != service_model => Err(VectorsError::OtherModel {
            path: file.path.clone(),
            row_model: row_model.to_owned(),
            service_model: service_model.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Prints one line for each hit. Blocks the thread.
fn print(hits: &[Hit]) -> Result<(), BulkError> {
    let mut text = String::new();
    for hit in hits {
        let label = match &hit.label {
            Some(label) => printable_beginning(label),
            None => format!("row {}", hit.row),
        };
        // Writing to a `String` never fails.
        let _ = writeln!(text, "{}  {label}", four_decimals(hit.cosine));
    }
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(BulkError::Write)
}

/// The cosine with four decimals, and without the sign of a negative zero.
fn four_decimals(cosine: f64) -> String {
    let text = format!("{cosine:.4}");
    if text == "-0.0000" { "0.0000".into() } else { text }
}

/// The beginning of a text, in one line. The characters that control a terminal are escaped.
fn printable_beginning(text: &str) -> String {
    let beginning: String = text.chars().take(MAX_PRINTED_CHARS).collect();
    progress::printable(&beginning).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_label_is_one_short_line_that_cannot_control_a_terminal() {
        assert_eq!(printable_beginning("a \u{1b}[31m\n\u{85}é"), r"a \u001b[31m\u000a\u0085é");
        let longer = "é".repeat(MAX_PRINTED_CHARS + 1);
        assert_eq!(printable_beginning(&longer).chars().count(), MAX_PRINTED_CHARS);
    }

    #[test]
    fn a_cosine_has_four_decimals_and_zero_has_no_sign() {
        for (cosine, text) in
            [(1.0, "1.0000"), (0.97314, "0.9731"), (-0.00001, "0.0000"), (-0.5, "-0.5000")]
        {
            assert_eq!(four_decimals(cosine), text);
        }
    }
}
