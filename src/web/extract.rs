//! Extracts what handlers need from a request.

pub(super) mod accept;
pub(super) mod body;
pub(super) mod boundary;
pub(super) mod cache_control;
pub(super) mod client_network;
mod disposition;
pub(super) mod file_name;
pub(super) mod head;
pub(super) mod json;
pub(super) mod large_body;
pub(super) mod multipart;
mod parameters;
pub(super) mod query;
