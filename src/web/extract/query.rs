//! Reads the query of a route that takes pictures.

use axum::{extract::FromRequestParts, http::request::Parts};
use url::form_urlencoded;
use utoipa::IntoParams;

use crate::{
    pipeline::{OnError, SaveMode},
    web::error::{Error, Invalid},
};

/// The only backend. The Python service that this service replaces uses the same name.
const BACKEND: &str = "nv_dino";

/// The options `save` and `backend`, which every route for pictures reads from its query. This type ignores
/// all other options. `backend` has no field, because it has only one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::web) struct PictureOptions {
    /// Whether to save the picture, from the option `save`.
    pub save_mode: SaveMode,
}

/// The option `errors` in the query of a batch: what happens if one of the batch's pictures fails.
#[derive(Debug, Clone, Copy)]
pub(in crate::web) struct ErrorOption(pub(in crate::web) OnError);

/// Describes [`ErrorOption`] in the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the query; `ErrorOption` reads it")]
pub(in crate::web) struct BatchQuery {
    /// With `item`, a batch succeeds even if some of its pictures fail: the answer contains an error in
    /// place of each failed picture.
    #[param(inline)]
    errors: Option<Errors>,
}

/// The values of `errors`.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "names the only value of `errors` in the OpenAPI document")]
enum Errors {
    Item,
}

impl<S: Sync> FromRequestParts<S> for ErrorOption {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let query = parts.uri.query().unwrap_or_default();
        let mut on_error = OnError::FailBatch;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match (&*name, &*value) {
                ("errors", "item") => on_error = OnError::ReportItem,
                ("errors", _) => return Err(unknown_errors_value()),
                _ => {}
            }
        }
        Ok(Self(on_error))
    }
}

/// Describes [`PictureOptions`] in the OpenAPI document.
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
#[allow(dead_code, reason = "names the value of `backend` in the OpenAPI document")]
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
                let value = parse_bool(&value).ok_or_else(not_a_bool)?;
                if *save.get_or_insert(value) != value {
                    return Err(contradictory_save());
                }
            }
            "backend" if value != BACKEND => return Err(unknown_backend()),
            _ => {}
        }
    }
    let save_mode = if save == Some(false) { SaveMode::Discard } else { SaveMode::Save };
    Ok(PictureOptions { save_mode })
}

/// Parses `true` or `false`, ignoring the case, since Python writes `False`.
fn parse_bool(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn not_a_bool() -> Error {
    Invalid::at(
        &["query", "save"],
        "bool_parsing",
        "Input should be true or false",
        "The query parameter save must be true or false: with save=false, the picture is embedded but not kept.",
    )
}

fn contradictory_save() -> Error {
    Invalid::at(
        &["query", "save"],
        "value_error",
        "Input is both true and false",
        "The query contains both save=true and save=false; send only one of them.",
    )
}

fn unknown_errors_value() -> Error {
    Invalid::at(
        &["query", "errors"],
        "literal_error",
        "Input should be 'item'",
        "The only value of the query parameter errors is item: with errors=item, the answer contains an error in place of each failed picture.",
    )
}

fn unknown_backend() -> Error {
    Invalid::at(
        &["query", "backend"],
        "literal_error",
        "Input should be 'nv_dino'",
        "The only backend is nv_dino: send backend=nv_dino, or leave the parameter out.",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns whether the picture would be saved, or the `loc` of the error if the query is refused.
    fn is_saved(query: &str) -> Result<bool, Vec<String>> {
        match parse(query) {
            Ok(options) => Ok(options.save_mode == SaveMode::Save),
            Err(Error::Invalid(invalid)) => Err(invalid.errors[0].loc.clone()),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn save_and_backend_are_read_and_other_names_are_ignored() {
        for (query, expected) in [
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
            assert_eq!(is_saved(query), Ok(expected), "{query}");
        }
    }

    #[test]
    fn an_invalid_or_contradictory_value_is_refused() {
        for query in [
            "save",
            "save=",
            "save=0",
            "save=no",
            "save=fal%73", // an encoded letter, and not a whole word
            "save=%zz",
            "save=+true", // ` true`
            "save=true&save=false",
        ] {
            assert_eq!(is_saved(query).unwrap_err(), ["query", "save"], "{query}");
        }
        for query in ["backend=clip", "backend", "backend=NV_DINO", "backend=nv_dino&backend=x"] {
            assert_eq!(is_saved(query).unwrap_err(), ["query", "backend"], "{query}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(query in any::<String>()) {
            let _ = parse(&query);
        }
    }
}
