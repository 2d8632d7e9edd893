//! The arguments of `imagesvc embed`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
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
    /// The file that rows are appended to. `None` is standard output.
    pub out: Option<PathBuf>,
    /// The field of a list that contains the picture's path or URL. Dots lead into objects.
    pub field: Option<String>,
    /// The field of a list that identifies a row.
    pub id: Option<String>,
    /// What the names of the added fields begin with.
    pub prefix: String,
    /// The running service to use. `None` starts a service in this process.
    pub to: Option<Url>,
    /// The most requests at once.
    pub concurrency: Option<NonZeroUsize>,
    /// The most pictures that are fetched from one host at once.
    pub per_host: NonZeroUsize,
    /// The most pictures to send.
    pub limit: Option<u64>,
    /// Whether to only count the pictures.
    pub dry_run: bool,
    /// Whether the service saves the pictures.
    pub save: bool,
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
                .help(
                    "A folder, a picture, a list (.txt, .csv, .tsv, .json or .jsonl), or - for a \
                     list of paths and URLs on standard input",
                ),
        )
        .arg(
            value("out", "FILE", "Append the rows to this .jsonl file; without it, print them")
                .value_parser(jsonl_path),
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
                "The most requests at once; by default 8 with --to, else twice NVIDIA_MAX_CONCURRENCY",
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

fn jsonl_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        Ok(path)
    } else {
        Err("the output is JSON Lines: its name must end in .jsonl".into())
    }
}

/// Reads the arguments.
pub(super) fn arguments(matches: &ArgMatches) -> EmbedArguments {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    EmbedArguments {
        sources: matches.get_many("sources").into_iter().flatten().cloned().collect(),
        out: matches.get_one("out").cloned(),
        field: text("field"),
        id: text("id"),
        prefix: text("prefix").unwrap_or_default(),
        to: matches.get_one("to").cloned(),
        concurrency: matches.get_one("concurrency").copied(),
        per_host: matches.get_one("per-host").copied().unwrap_or(NonZeroUsize::MIN),
        limit: matches.get_one("limit").copied(),
        dry_run: matches.get_flag("dry-run"),
        save: matches.get_flag("save"),
    }
}

/// Adapts the settings to the command. A running service has its own key, and a dry run needs none.
pub(super) fn adapt(raw: &mut RawSettings, arguments: &EmbedArguments) {
    bulk_arguments::adapt(raw, arguments.to.is_none() && !arguments.dry_run);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line;

    #[test]
    fn an_output_that_is_not_jsonl_is_a_usage_error() {
        let parse = |out: &str| {
            let arguments = ["imagesvc", "embed", "photos", "--out", out];
            command_line().try_get_matches_from(arguments)
        };
        assert!(parse("vectors.jsonl").is_ok());
        for out in ["vectors.parquet", "vectors.npy", "vectors", ".jsonl", ""] {
            let error = parse(out).unwrap_err().to_string();
            assert!(error.contains("must end in .jsonl"), "{error}");
        }
    }

    #[test]
    fn flags_of_settings_are_accepted_beside_the_command() {
        let arguments = ["imagesvc", "embed", "a", "b.csv", "--sandbox", "--field", "x.y"];
        let matches = command_line().try_get_matches_from(arguments).unwrap();
        let embed = super::arguments(matches.subcommand_matches(EMBED).unwrap());
        assert_eq!(embed.sources, [PathBuf::from("a"), PathBuf::from("b.csv")]);
        assert_eq!(embed.field.as_deref(), Some("x.y"));
        assert_eq!((embed.per_host.get(), embed.concurrency, embed.dry_run), (2, None, false));
    }
}
