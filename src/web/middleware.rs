//! The layers that requests pass through on their way to a route.

pub(super) mod access_log;
pub(super) mod auth;
pub(super) mod cors;
pub(super) mod head_checking;
pub(super) mod rate_limit;
mod request_id;
pub(super) mod shutdown;
mod trace_context;
pub(super) mod trailing_slash;
pub(super) mod unread_body;
