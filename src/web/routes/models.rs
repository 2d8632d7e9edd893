//! `GET /v1/models` and `/v1/models/{id}`: the one model, in OpenAI's shape. LangChain's NVIDIA
//! connector requests the list when its caller chooses no model.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, Response},
};

use super::openapi::error_responses;
use crate::{
    nvidia,
    web::{
        error::{Code, Error},
        extract::file_name,
        state::AppState,
    },
};

/// A list with the one model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    /// The one model.
    data: [Model; 1],
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    /// The model's name in answers.
    #[schema(example = "nvidia/nv-dinov2")]
    id: &'static str,
    /// Always `model`.
    #[schema(example = "model")]
    object: &'static str,
    /// Always 0: NVIDIA does not publish when the model was created, and clients require a number.
    #[schema(example = 0)]
    created: u64,
    /// The part of the name before the slash.
    #[schema(example = "nvidia")]
    owned_by: &'static str,
}

impl Model {
    fn new(id: &'static str) -> Self {
        Self { id, object: "model", created: 0, owned_by: id.split('/').next().unwrap_or(id) }
    }
}

/// The errors of the route for the list.
struct ListErrors;

impl IntoResponses for ListErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of(&[Code::Unauthorized])
    }
}

/// The errors of the route for one model.
struct ModelErrors;

impl IntoResponses for ModelErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of(&[Code::ModelNotFound, Code::Unauthorized])
    }
}

/// List the models
///
/// There is only one model. LangChain's NVIDIA connector requests this list when its caller chooses no
/// model.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "OpenAI",
    responses((status = 200, description = "The one model", body = ModelList), ListErrors)
)]
pub(super) async fn list_models(State(app): State<AppState>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: [Model::new(app.model)] })
}

/// Describe a model
///
/// Upper and lower case are equal, and `nv-dinov2` without the vendor is the same model. Every other name is
/// a `404`.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "The model's name, with its slash", example = "nvidia/nv-dinov2")),
    responses((status = 200, description = "The model", body = Model), ModelErrors)
)]
pub(super) async fn get_model(
    State(app): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, Error> {
    // An id that is not UTF-8 becomes empty, and no model has an empty id.
    let id = id.map_or_else(|_| String::new(), |Path(id)| id);
    check_model(&id, app.model)?;
    Ok(Json(Model::new(app.model)))
}

/// Checks that a name is one of the model's names: NVIDIA's name with or without the vendor, or `served`, the
/// name in answers. Only in the sandbox, `served` is not NVIDIA's name. Upper and lower case are equal.
///
/// # Errors
/// [`Error::ModelNotFound`]
pub(super) fn check_model(name: &str, served: &'static str) -> Result<(), Error> {
    let without_vendor = nvidia::MODEL.rsplit('/').next().unwrap_or_default();
    if [served, nvidia::MODEL, without_vendor].iter().any(|known| known.eq_ignore_ascii_case(name))
    {
        return Ok(());
    }
    let requested = file_name::printable(name).unwrap_or_default();
    Err(Error::ModelNotFound { requested, served })
}
