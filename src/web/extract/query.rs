//! Reads the query of a route that takes pictures.

use axum::{extract::FromRequestParts, http::request::Parts};
use url::form_urlencoded;
use utoipa::IntoParams;

use crate::{
    pipeline::SaveMode,
    web::error::{Error, Invalid},
};

/// The only backend, by its name in the Python service.
const BACKEND: &str = "nv_dino";

/// The options in the query. Unknown names are ignored, and so is invalid percent-encoding, since
/// no valid value contains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::web) struct PictureOptions {
    /// Whether to keep the picture.
    pub save_mode: SaveMode,
}

/// Describes the query in the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the query; `PictureOptions` reads it")]
pub(in crate::web) struct PictureQuery {
    /// With `false` the service embeds the picture without keeping it, and the answer has no
    /// `saved_as` and no `path`.
    #[param(default = true)]
    save: Option<bool>,
    /// The backend that computes the embedding. There is only one.
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

/// Parses a boolean in any case, since Python's clients write `False`.
fn boolean(text: &str) -> Option<bool> {
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    if is("true") { Some(true) } else { is("false").then_some(false) }
}

fn not_a_boolean() -> Error {
    Invalid::at(
        &["query", "save"],
        "bool_parsing",
        "Input should be true or false",
        "The query's save must be true or false: with save=false the picture is embedded and not kept.",
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

    /// Returns whether the picture is saved, or the place of the fault.
    fn read(query: &str) -> Result<bool, Vec<String>> {
        match parse(query) {
            Ok(options) => Ok(options.save_mode == SaveMode::Save),
            Err(Error::Invalid(invalid)) => Err(invalid.errors[0].loc.clone()),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn save_is_read_from_the_query_and_unknown_names_are_ignored() {
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
    fn an_unclear_value_is_refused_and_its_parameter_named() {
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
