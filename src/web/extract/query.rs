//! Reads what stands in the query of a route that takes pictures.

use axum::{extract::FromRequestParts, http::request::Parts};
use url::form_urlencoded;
use utoipa::IntoParams;

use crate::{
    pipeline::SaveMode,
    web::error::{Error, Invalid},
};

/// The one backend that there is, by the name that the Python service gave it.
const BACKEND: &str = "nv_dino";

/// How a picture is to be treated. Names that are unknown are ignored, and so is percent-encoding
/// that is none: those stand in no value that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::web) struct PictureOptions {
    /// Whether the picture is saved.
    pub save_mode: SaveMode,
}

/// The same, for the documentation.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the query; `PictureOptions` reads it")]
pub(in crate::web) struct PictureQuery {
    /// `false`: the picture is embedded and not kept, and the answer has no `saved_as` and `path`.
    #[param(default = true)]
    save: Option<bool>,
    /// Who computes the embedding: there is one backend.
    #[param(inline)]
    backend: Option<Backend>,
}

/// The backends.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "names the values of `backend` in the documentation")]
enum Backend {
    NvDino,
}

impl<S: Sync> FromRequestParts<S> for PictureOptions {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parse(parts.uri.query().unwrap_or_default())
    }
}

fn parse(query: &str) -> Result<PictureOptions, Error> {
    let mut save = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "save" => {
                let value = boolean(&value).ok_or_else(not_a_boolean)?;
                if *save.get_or_insert(value) != value {
                    return Err(contradiction());
                }
            }
            "backend" if value != BACKEND => return Err(unknown_backend()),
            _ => {}
        }
    }
    let save_mode = if save == Some(false) { SaveMode::Discard } else { SaveMode::Save };
    Ok(PictureOptions { save_mode })
}

/// In any case: Python's clients write `False`.
fn boolean(text: &str) -> Option<bool> {
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    if is("true") { Some(true) } else { is("false").then_some(false) }
}

fn not_a_boolean() -> Error {
    Invalid::at(
        &["query", "save"],
        "bool_parsing",
        "Input should be true or false",
        "The query's save must be true or false: save=false has the picture embedded and not kept.",
    )
}

fn contradiction() -> Error {
    Invalid::at(
        &["query", "save"],
        "value_error",
        "Given as true and as false",
        "The query says save=true and save=false; send one of them.",
    )
}

fn unknown_backend() -> Error {
    Invalid::at(
        &["query", "backend"],
        "literal_error",
        "Input should be 'nv_dino'",
        "There is one backend, nv_dino: send backend=nv_dino, or no backend at all.",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the picture is saved, or the place of the fault.
    fn read(query: &str) -> Result<bool, Vec<String>> {
        match parse(query) {
            Ok(options) => Ok(options.save_mode == SaveMode::Save),
            Err(Error::Invalid(invalid)) => Err(invalid.errors[0].loc.clone()),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_query_says_whether_the_picture_is_saved_and_what_is_unknown_is_ignored() {
        for (query, is_saved) in [
            ("", true),
            ("save=true", true),
            ("save=false", false),
            ("save=False", false),
            ("save=TRUE", true),
            ("s%61ve=f%61lse", false),
            ("save=false&save=false", false),
            ("backend=nv_dino", true),
            ("backend=nv%5Fdino&save=false", false),
            ("backend=nv_dino&backend=nv_dino", true),
            ("saved=no&SAVE=false&Backend=clip", true),
            ("&&=&a&a=1&a=2&%zz=%&%ff=%fe&save=false", false),
        ] {
            assert_eq!(read(query), Ok(is_saved), "{query}");
        }
    }

    #[test]
    fn a_value_that_is_not_clear_is_refused_by_its_place() {
        for value in ["save", "save=", "save=0", "save=no", "save=fal%73", "save=%zz", "save=+true"]
        {
            assert_eq!(read(value).unwrap_err(), ["query", "save"], "{value}");
        }
        assert_eq!(read("save=true&save=false").unwrap_err(), ["query", "save"]);
        for value in ["backend=clip", "backend", "backend=NV_DINO", "backend=nv_dino&backend=x"] {
            assert_eq!(read(value).unwrap_err(), ["query", "backend"], "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in any::<String>()) {
            let _ = parse(&query);
        }
    }
}
