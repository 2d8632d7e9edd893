//! Completes the OpenAPI document: its title and version, client keys, and the headers of all
//! answers.

use utoipa::openapi::{
    Header, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi as Document, RefOr, Required,
    Response, Type,
    path::{Operation, ParameterBuilder, ParameterIn, PathItem},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

pub(super) mod error_responses;

/// Merges the documents of both groups of routes, and adds what they have in common.
pub(super) fn document(mut open: Document, mut keyed: Document) -> Document {
    keyed.paths.paths.values_mut().flat_map(operations).for_each(allow_key);
    open.paths.paths.values_mut().flat_map(operations).for_each(allow_anybody);
    open.merge(keyed);
    let mut document = open;
    let license = env!("CARGO_PKG_LICENSE");
    let license = LicenseBuilder::new().name(license).identifier(Some(license)).build();
    document.info = InfoBuilder::new()
        .title("imagesvc")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Takes a picture (by address, as Base64 JSON or as a multipart upload), saves it, and answers \
             with its NVIDIA NV-DINOv2 embedding: 1536 numbers. Errors are RFC 9457 problems with a stable `code`.",
        ))
        .license(Some(license))
        .build();
    let key = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A client's key, if the service requires one."))
            .build(),
    );
    document.components.get_or_insert_default().add_security_scheme("key", key);
    document.paths.paths.values_mut().flat_map(operations).for_each(describe);
    document
}

/// Marks the key as optional: it is required only if the operator has set client keys.
fn allow_key(operation: &mut Operation) {
    operation.security = Some(vec![
        SecurityRequirement::default(),
        SecurityRequirement::new::<_, [String; 0], String>("key", []),
    ]);
}

/// Marks an operation as open explicitly, so that no tool takes it for an omission.
fn allow_anybody(operation: &mut Operation) {
    operation.security = Some(Vec::new());
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post].into_iter().flatten()
}

fn describe(operation: &mut Operation) {
    let id = ParameterBuilder::new()
        .name("x-request-id")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Your own id for the request: 1 to 64 letters, digits, `.`, `_` or `-`."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .build();
    operation.parameters.get_or_insert_default().push(id.into());
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        add(response, "x-request-id", Type::String, "Your own id if you sent one, else a new one.");
        match status.as_str() {
            "415" => add(
                response,
                "accept-encoding",
                Type::String,
                "Always `identity`; only with `unsupported_content_encoding`.",
            ),
            "401" => add(response, "www-authenticate", Type::String, "Always `Bearer`."),
            "429" | "503" if is_problem(response) => {
                add(
                    response,
                    "retry-after",
                    Type::Integer,
                    "Seconds to wait before another attempt.",
                );
            }
            "502" if is_problem(response) => {
                let what = "Seconds to wait before another attempt, if the picture's host or NVIDIA says so.";
                add(response, "retry-after", Type::Integer, what);
            }
            _ => {}
        }
    }
}

/// Whether this response is an error.
fn is_problem(response: &Response) -> bool {
    response.content.contains_key(crate::web::error::PROBLEM_JSON)
}

fn add(response: &mut Response, name: &str, kind: Type, description: &str) {
    let mut header = Header::new(ObjectBuilder::new().schema_type(kind).build());
    header.description = Some(description.into());
    response.headers.insert(name.into(), header.into());
}
