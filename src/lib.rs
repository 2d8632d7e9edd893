//! **imagesvc** takes a picture (by address, as Base64 JSON, or as a multipart upload), saves it
//! under `downloads/`, asks NVIDIA's hosted NV-DINOv2 for its embedding, and answers with the 1536
//! numbers as JSON.
//!
//! # The path of a picture
//!
//! ```text
//! web::routes ──► pipeline ──► spool, image   received, and its header read
//!      │             ├───────► store          saved whole
//!      └► fetch      └───────► embed ──► nvidia  what NVIDIA is given, and how it is asked
//!                                └────► decoder  decodes, in a process of its own
//! ```
//!
//! Each route turns its request into a stream of bytes and a name. From there on there is one
//! path, [`pipeline`]: spool the bytes, read the header, then save and embed at the same time.
//!
//! # The rooms, from the top floor down
//!
//! | Room | What it does |
//! |---|---|
//! | [`cli`] | one command a file: serve, check |
//! | [`app`] | puts all rooms together: settings in, a bound service out |
//! | [`config`] | every setting of the process, checked |
//! | [`web`] | HTTP: the layers, what is taken from requests, the routes, the errors as clients see them |
//! | [`sandbox`] | the stand-in for NVIDIA |
//! | [`server`] | TCP: accepts, limits, times, drains; who the client is |
//! | [`pipeline`] | the one path, its limits and admission |
//! | [`embed`] | from a picture to its embedding, paid once |
//! | [`store`] | the folder of saved pictures |
//! | [`fetch`] | pictures by their address, guarded |
//! | [`nvidia`] | the client of NVIDIA's API, and the only room that sees the key |
//! | ground | [`image`] (what a picture is), [`decoder`], [`spool`] (bytes on their way), [`disk_space`] (the room for them), [`shares`] and `fair_queue` (what clients share), [`base64_text`], [`http_client`], [`telemetry`] |
//!
//! A room imports only from floors below its own, and nothing in a circle, but for a room's front and
//! the files behind it; axum is known to [`web`],
//! [`sandbox`], [`server`] and [`app`]. `tests/architecture.rs` holds that.

pub mod app;
pub mod base64_text;
mod bearer_token;
pub mod cli;
pub mod config;
pub mod decoder;
pub mod disk_space;
pub mod embed;
mod fair_queue;
pub mod fetch;
pub mod http_client;
pub mod image;
pub mod nvidia;
pub mod pipeline;
mod sampler;
pub mod sandbox;
pub mod server;
pub mod sha256;
pub mod shares;
pub mod spool;
pub mod store;
pub mod telemetry;
pub mod web;
