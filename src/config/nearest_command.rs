//! The arguments of `imagesvc nearest`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Arg, ArgMatches, ValueHint};
use url::Url;

use super::{
    bulk_arguments::{self, value},
    raw::RawSettings,
};

/// The name of the command that finds the vectors nearest to a picture's vector.
pub(super) const NEAREST: &str = "nearest";

/// The most rows that can be printed. The command keeps them all in memory before it prints them.
const MAX_COUNT: usize = 10_000;

/// What `imagesvc nearest` should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearestArguments {
    /// The path or URL of the picture.
    pub picture: String,
    /// The file with the vectors.
    pub vectors: PathBuf,
    /// The number of rows to print.
    pub count: NonZeroUsize,
    /// The field of a row that contains its path or URL. Dots lead into objects. `None` means the usual
    /// fields, such as `path`.
    pub field: Option<String>,
    /// The field to print in place of the path or URL. `None` means that the path or URL is printed.
    pub id: Option<String>,
    /// The beginning of the names of the fields that `embed` has added to the rows.
    pub prefix: String,
    /// The running service to use. `None` starts a service in this process.
    pub to: Option<Url>,
}

/// Builds the parser of the command's arguments.
pub(super) fn command() -> clap::Command {
    clap::Command::new(NEAREST)
        .about("Embeds a picture, and prints the nearest rows of a file that embed has written")
        .arg(
            Arg::new("picture")
                .required(true)
                .value_name("PICTURE")
                .value_hint(ValueHint::AnyPath)
                .help("The path or URL of the picture"),
        )
        .arg(
            value("in", "FILE", "The vectors: a file that ends in .jsonl, .npy or .parquet")
                .required(true)
                .value_parser(parse_vectors_path)
                .value_hint(ValueHint::FilePath),
        )
        .arg(
            value("count", "N", "How many rows to print")
                .value_parser(parse_count)
                .default_value("10"),
        )
        .arg(value(
            "field",
            "NAME",
            "The field that contains the path or URL; dots lead into objects",
        ))
        .arg(value("id", "NAME", "The field to print in place of the path or URL"))
        .arg(bulk_arguments::prefix())
        .arg(bulk_arguments::to())
}

fn parse_vectors_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "npy" | "parquet") => Ok(path),
        _ => Err("its name must end in .jsonl, .npy or .parquet".into()),
    }
}

fn parse_count(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= MAX_COUNT);
    count.ok_or_else(|| format!("it must be a number from 1 to {MAX_COUNT}"))
}

/// Reads the arguments.
pub(super) fn arguments(matches: &ArgMatches) -> NearestArguments {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    NearestArguments {
        // clap requires `picture` and `in`, and has defaults for `count` and `prefix`: the fallbacks for
        // these four are never used.
        picture: text("picture").unwrap_or_default(),
        vectors: matches.get_one("in").cloned().unwrap_or_default(),
        count: matches.get_one("count").copied().unwrap_or(NonZeroUsize::MIN),
        field: text("field"),
        id: text("id"),
        prefix: text("prefix").unwrap_or_default(),
        to: matches.get_one("to").cloned(),
    }
}

/// Adapts the settings to the command.
pub(super) fn adapt_settings(raw: &mut RawSettings, arguments: &NearestArguments) {
    bulk_arguments::adapt_settings(raw, arguments.to.is_none());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line;

    /// Parses the words that follow `imagesvc nearest`.
    fn parse(text: &str) -> Result<NearestArguments, String> {
        let words = ["imagesvc", NEAREST].into_iter().chain(text.split_whitespace());
        let matches =
            command_line().try_get_matches_from(words).map_err(|error| error.to_string())?;
        Ok(arguments(matches.subcommand_matches(NEAREST).unwrap()))
    }

    #[test]
    fn a_picture_and_a_file_of_a_known_format_are_required_and_other_values_are_checked() {
        let arguments = parse("http://a/b.jpg --in dir/v.jsonl --sandbox").unwrap();
        assert_eq!(arguments.picture, "http://a/b.jpg");
        assert_eq!((arguments.vectors, arguments.count.get()), ("dir/v.jsonl".into(), 10));
        assert!(parse("a.jpg --in v.npy --count 1 --to http://h:1").unwrap().to.is_some());
        for (wrong, message) in [
            ("--in v.npy", "<PICTURE>"),
            ("a.jpg", "--in"),
            ("a.jpg b.jpg --in v.npy", "b.jpg"),
            ("a.jpg --in v.csv", ".jsonl, .npy or .parquet"),
            ("a.jpg --in jsonl", ".jsonl, .npy or .parquet"),
            ("a.jpg --in v.npy --count 0", "1 to 10000"),
            ("a.jpg --in v.npy --count 10001", "1 to 10000"),
            ("a.jpg --in v.npy --to nowhere", "--to"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(message), "{wrong}: {error}");
        }
    }
}
