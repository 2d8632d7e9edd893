//! What a handler takes from a request.

pub(super) mod body;
pub(super) mod cache_control;
pub(super) mod client;
pub(super) mod file_name;
pub(super) mod head;
pub(super) mod json;
pub(super) mod multipart;
