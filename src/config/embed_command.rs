//! The arguments of `imagesvc embed`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, ValueHint, value_parser};
use url::Url;

use super::{
    bulk_arguments::{self, value},
    raw::RawSettings,
};

/// The command that embeds the pictures of folders and lists.
pub(super) const EMBED: &str = "embed";

/// What `imagesvc embed` should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedArguments {
    /// Folders, pictures and lists. `-` is a list on standard input.
    pub sources: Vec<PathBuf>,
    /// The `.jsonl` file that rows are appended to. If `--out` names an [`ExportFile`], this file is beside
    /// it. `None` means standard output.
    pub out: Option<PathBuf>,
    /// The file that is made from the rows when the run ends. `None` means no such file.
    pub export: Option<ExportFile>,
    /// In a list, the name of the field with the picture's path or URL. `a.b` is the field `b` of the
    /// object in `a`. `None` means that usual names such as `image_url` are tried.
    pub field: Option<String>,
    /// In a list, the name of the field that identifies each row of the list. `None` means that the path or
    /// URL identifies the row.
    pub id: Option<String>,
    /// The prefix of the names of the fields that `embed` adds.
    pub prefix: String,
    /// The running service to use. `None` means that a service is started in this process.
    pub to: Option<Url>,
    /// The most requests at once. `None` means the default, which depends on `to`.
    pub concurrency: Option<NonZeroUsize>,
    /// The most pictures that are fetched from one host at once.
    pub per_host: NonZeroUsize,
    /// The most pictures to send. `None` means no limit.
    pub limit: Option<u64>,
    /// Whether the pictures are only counted.
    pub dry_run: bool,
    /// Whether the service saves the pictures.
    pub save: bool,
}

/// A file that is made from the rows when the run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// The file's path, which is the value of `--out`.
    pub path: PathBuf,
    /// The file's format.
    pub format: ExportFormat,
}

/// The format of a file that is made from the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A Parquet file with all fields of the rows.
    #[cfg(feature = "parquet")]
    Parquet,
    /// A NumPy file with the vectors.
    Npy,
}

/// What `--out` names.
#[derive(Debug, Clone)]
struct Out {
    /// The `.jsonl` file.
    rows: PathBuf,
    /// The file that is made from it, if `--out` names another format.
    export: Option<ExportFile>,
}

/// Builds the parser of the command's arguments.
pub(super) fn command() -> clap::Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    clap::Command::new(EMBED)
        .about("Embeds the pictures of folders and lists, and writes one JSON line for each")
        .arg(
            Arg::new("sources")
                .required(true)
                .num_args(1..)
                .value_name("SOURCE")
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::AnyPath)
                .help(
                    "A folder, a picture, a list (.txt, .csv, .tsv, .json or .jsonl), or - for a \
                     list of paths and URLs on standard input",
                ),
        )
        .arg(
            value(
                "out",
                "FILE",
                "Append the rows to this .jsonl file; for a .parquet or .npy file, append them to the \
                 .jsonl file beside it, and convert that when the run ends; without --out, print \
                 the rows",
            )
            .value_parser(parse_out)
            .value_hint(ValueHint::FilePath),
        )
        .arg(value(
            "field",
            "NAME",
            "The field of a list that contains the path or URL; dots lead into objects",
        ))
        .arg(value("id", "NAME", "The field of a list that identifies a row"))
        .arg(bulk_arguments::prefix())
        .arg(bulk_arguments::to())
        .arg(
            value(
                "concurrency",
                "N",
                "The most requests at once; by default 8 with --to, else as many as NVIDIA's limits allow",
            )
            .value_parser(value_parser!(NonZeroUsize)),
        )
        .arg(
            value("per-host", "N", "The most pictures that are fetched from one host at once")
                .value_parser(value_parser!(NonZeroUsize))
                .default_value("2"),
        )
        .arg(
            value("limit", "N", "Send at most this many pictures")
                .value_parser(value_parser!(u64)),
        )
        .arg(switch("dry-run", "Only count the pictures"))
        .arg(switch("save", "Save the pictures in the service's downloads folder"))
}

/// Parses the value of `--out`. The ending of the name selects the format.
fn parse_out(text: &str) -> Result<Out, String> {
    let path = PathBuf::from(text);
    let extension = path.extension().and_then(|extension| extension.to_str());
    let format = match extension {
        Some("jsonl") => return Ok(Out { rows: path, export: None }),
        #[cfg(feature = "parquet")]
        Some("parquet") => ExportFormat::Parquet,
        #[cfg(not(feature = "parquet"))]
        Some("parquet") => {
            return Err("this program was built without Parquet (the Cargo feature \"parquet\"): \
                        use a .jsonl or .npy file"
                .into());
        }
        Some("npy") => ExportFormat::Npy,
        _ => return Err("the name must end in .jsonl, .parquet or .npy".into()),
    };
    Ok(Out { rows: path.with_extension("jsonl"), export: Some(ExportFile { path, format }) })
}

/// Reads the arguments.
pub(super) fn arguments(matches: &ArgMatches) -> EmbedArguments {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let (out, export) = match matches.get_one::<Out>("out").cloned() {
        Some(Out { rows, export }) => (Some(rows), export),
        None => (None, None),
    };
    EmbedArguments {
        sources: matches.get_many("sources").into_iter().flatten().cloned().collect(),
        out,
        export,
        field: text("field"),
        id: text("id"),
        prefix: text("prefix").unwrap_or_default(),
        to: matches.get_one("to").cloned(),
        concurrency: matches.get_one("concurrency").copied(),
        // The argument has a default, so it is never missing.
        per_host: matches.get_one("per-host").copied().unwrap_or(NonZeroUsize::MIN),
        limit: matches.get_one("limit").copied(),
        dry_run: matches.get_flag("dry-run"),
        save: matches.get_flag("save"),
    }
}

/// Adapts the settings to the command. If it starts no service, it needs no key for NVIDIA.
pub(super) fn adapt_settings(raw: &mut RawSettings, arguments: &EmbedArguments) {
    let starts_service = arguments.to.is_none() && !arguments.dry_run;
    bulk_arguments::adapt_settings(raw, starts_service);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line;

    /// The arguments of a command with this `--out`.
    fn parse_with(out: &str) -> Result<EmbedArguments, String> {
        let arguments = ["imagesvc", "embed", "photos", "--out", out];
        let matches = command_line().try_get_matches_from(arguments);
        let matches = matches.map_err(|error| error.to_string())?;
        Ok(super::arguments(matches.subcommand_matches(EMBED).unwrap()))
    }

    #[test]
    fn the_ending_of_the_output_selects_what_is_made_from_the_rows() {
        // The dot in the folder's name does not count.
        let jsonl = parse_with("a.b/vectors.jsonl").unwrap();
        assert_eq!((jsonl.out, jsonl.export), (Some("a.b/vectors.jsonl".into()), None));
        let npy = parse_with("a.b/vectors.npy").unwrap();
        assert_eq!(npy.out, Some("a.b/vectors.jsonl".into()));
        let file = ExportFile { path: "a.b/vectors.npy".into(), format: ExportFormat::Npy };
        assert_eq!(npy.export, Some(file));
        // To Rust, `.jsonl` and `.npy` are names without an ending.
        for out in ["vectors.csv", "vectors", ".jsonl", ".npy", "vectors.NPY", ""] {
            let error = parse_with(out).unwrap_err();
            assert!(error.contains("must end in .jsonl, .parquet or .npy"), "{error}");
        }
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn an_output_may_be_parquet() {
        let parquet = parse_with("vectors.parquet").unwrap();
        assert_eq!(parquet.out, Some("vectors.jsonl".into()));
        assert_eq!(parquet.export.unwrap().format, ExportFormat::Parquet);
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn a_build_without_parquet_refuses_an_output_in_this_format() {
        let error = parse_with("vectors.parquet").unwrap_err();
        assert!(error.contains("was built without Parquet"), "{error}");
    }

    #[test]
    fn the_command_may_be_followed_by_sources_options_and_flags_of_settings() {
        let arguments = ["imagesvc", "embed", "a", "b.csv", "--sandbox", "--field", "x.y"];
        let matches = command_line().try_get_matches_from(arguments).unwrap();
        let embed = super::arguments(matches.subcommand_matches(EMBED).unwrap());
        assert_eq!(embed.sources, [PathBuf::from("a"), PathBuf::from("b.csv")]);
        assert_eq!(embed.field.as_deref(), Some("x.y"));
        assert_eq!((embed.per_host.get(), embed.concurrency, embed.dry_run), (2, None, false));
    }
}
