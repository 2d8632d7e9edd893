//! **imagesvc** takes a picture (by address, as Base64 JSON, or as a multipart upload), saves it
//! under `downloads/`, asks NVIDIA's hosted NV-DINOv2 for its embedding, and answers with the 1536
//! numbers as JSON.
//!
//! This page is the architecture, for a newcomer. `CONTRIBUTING.md` says how to run, test and extend
//! it, and `docs/` what users see of it.
//!
//! # The way of a picture
//!
//! ```text
//! server ──► web ──► a route ──► pipeline: admit ──► receive ──┬──► save ────┬──► answer
//!                     │   ▲                                     └──► embed ───┘
//!                     ▼   │                                            │
//!                     fetch                                 cache, decoder, nvidia
//! ```
//!
//! 1. **[`server`]** accepts a connection, if the limits allow it, and knows who the client is.
//! 2. **[`web`]** gives the request an id, checks its head, its key and its origin, and chooses the
//!    route. Each route only turns its request into a stream of bytes and a name: the upload route
//!    from a form, the Base64 route from JSON, the URL route by [`fetch`], which calls public addresses
//!    only. From there on there is one path for all.
//! 3. **[`pipeline`]** *admits* the request before its body is read: a picture that cannot be served in
//!    time, or has no room on the disk or in memory, is refused while that is still cheap.
//! 4. It *receives* the bytes: [`spool`] writes them to a file in `downloads/.incoming/` as they arrive,
//!    counts and hashes them, and keeps only small pictures in memory. [`image`] then reads the header:
//!    format, size, and which way is up. Nothing is decoded.
//! 5. It *saves* and *embeds* at the same time, because the call to NVIDIA is the slow part. [`store`]
//!    syncs the file and renames it, so that it is there completely or not at all.
//! 6. **[`embed`]** looks into the cache (memory, then disk) and joins a call that runs for the same
//!    picture. Else it prepares the picture: upright JPEG and PNG go as they are; all others are made
//!    an upright JPEG by [`decoder`], in a child process with strict limits, since no estimate bounds
//!    what a hostile picture makes a decoder do.
//! 7. **[`nvidia`]** makes the call: inline, or as an uploaded asset if the picture is large; with
//!    retries, one deadline, and the pace that the key allows. No other module sees the key.
//! 8. The answer, or an error, goes back the same way. Inner modules have errors of their own without
//!    any HTTP; [`web::error`] gives each its code, status and sentence, and the outermost layer logs
//!    it, once.
//!
//! # Who may import whom
//!
//! From the top down; a module imports only from floors below its own, and nothing in a circle:
//!
//! | Module | What it does |
//! |---|---|
//! | [`cli`] | one command a file: serve, check |
//! | [`app`] | puts everything together: settings in, a bound service out |
//! | [`config`] | every setting of the process, checked |
//! | [`web`] | HTTP: the layers, what is taken from requests, the routes, the errors as clients see them |
//! | [`sandbox`] | the stand-in for NVIDIA; on the floor of [`web`], and unknown to it |
//! | [`server`] | TCP: accepts, limits, timeouts, shutdown; who the client is |
//! | [`pipeline`] | the one path, its limits and admission |
//! | [`embed`] | from a picture to its embedding, paid once |
//! | [`store`] | the folder of saved pictures |
//! | [`fetch`] | pictures by their address, guarded |
//! | [`nvidia`] | the client of NVIDIA's API |
//! | ground | [`image`] (what a picture is), [`decoder`] (its pixels), [`spool`] (bytes on their way), [`disk_space`] (the room for them), [`shares`] and `fair_queue` (what clients share), [`sha256`], [`base64_text`], [`http_client`], [`telemetry`], `bearer_token`, `sampler` |
//!
//! The reasons for these rules:
//!
//! - **Only downwards, no circles.** Each module can be read, tested and replaced knowing only what is
//!   below it. [`pipeline`] can serve a command as well as a route.
//! - **axum only in [`web`], [`sandbox`], [`server`] and [`app`].** What a picture needs does not depend
//!   on how it came.
//! - **[`config`] only in [`cli`] and [`app`].** Each module defines a `Settings` of its own, which
//!   [`config`] fills. A module's tests build those few values and no environment.
//! - **One place puts all together.** [`app`] is the only one that knows every module; a test starts
//!   the same service as `main` does, with a fake NVIDIA behind it.
//!
//! `tests/architecture.rs` reads the sources and holds these rules.

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
