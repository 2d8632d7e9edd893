//! Completes the OpenAPI document with what the routes have in common: title and version, client
//! keys, and headers.

use utoipa::openapi::{
    Header, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi as Document, RefOr, Required,
    Response, Type,
    path::{Operation, ParameterBuilder, ParameterIn, PathItem},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

pub(super) mod error_responses;

/// Merges the documents of the open routes and of the routes that may require a key, and completes the
/// result.
pub(super) fn document(mut open: Document, mut keyed: Document) -> Document {
    keyed.paths.paths.values_mut().flat_map(operations).for_each(mark_key_optional);
    open.paths.paths.values_mut().flat_map(operations).for_each(mark_open);
    open.merge(keyed);
    let mut document = open;
    let license = env!("CARGO_PKG_LICENSE");
    let license = LicenseBuilder::new().name(license).identifier(Some(license)).build();
    document.info = InfoBuilder::new()
        .title("imagesvc")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("openapi/introduction.md")))
        .license(Some(license))
        .build();
    let key = SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A client's key, if the service requires one."))
            .build(),
    );
    document.components.get_or_insert_default().add_security_scheme("key", key);
    document.paths.paths.values_mut().flat_map(operations).for_each(describe_headers);
    document
}

/// Marks the key as optional, since it is required only if the operator has set client keys.
fn mark_key_optional(operation: &mut Operation) {
    operation.security = Some(vec![
        SecurityRequirement::default(), // the alternative without a key
        SecurityRequirement::new::<_, [String; 0], String>("key", []),
    ]);
}

/// States explicitly that an operation requires no key. Some tools warn about operations without
/// such a statement.
fn mark_open(operation: &mut Operation) {
    operation.security = Some(Vec::new());
}

/// The operations of a path. All routes of the service use GET or POST.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post].into_iter().flatten()
}

/// Describes `x-request-id`, which every route reads, and the headers of responses.
fn describe_headers(operation: &mut Operation) {
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
        add_header(
            response,
            "x-request-id",
            Type::String,
            "Your own id if you sent one, otherwise a new one.",
        );
        match status.as_str() {
            "415" => add_header(
                response,
                "accept-encoding",
                Type::String,
                "Always `identity`; only with `unsupported_content_encoding`.",
            ),
            "401" => add_header(response, "www-authenticate", Type::String, "Always `Bearer`."),
            "429" if is_problem(response) => {
                let description = "Seconds to wait before another attempt.";
                add_header(response, "retry-after", Type::Integer, description);
            }
            "503" if is_problem(response) => {
                let description =
                    "Seconds to wait before another attempt; not with `embedding_exhausted`.";
                add_header(response, "retry-after", Type::Integer, description);
            }
            "502" if is_problem(response) => {
                let description = "Seconds to wait before another attempt, if the picture's host or NVIDIA sent such a time.";
                add_header(response, "retry-after", Type::Integer, description);
            }
            _ => {}
        }
    }
}

/// Whether this response contains a [`Problem`](crate::web::error::Problem). The 503 of `/ready`
/// does not.
fn is_problem(response: &Response) -> bool {
    response.content.contains_key(crate::web::error::PROBLEM_JSON)
}

fn add_header(response: &mut Response, name: &str, kind: Type, description: &str) {
    let mut header = Header::new(ObjectBuilder::new().schema_type(kind).build());
    header.description = Some(description.into());
    response.headers.insert(name.into(), header.into());
}
