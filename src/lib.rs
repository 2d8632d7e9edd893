//! **imagesvc** takes a picture (by URL, as Base64 JSON, or as a multipart upload), saves it
//! under `downloads/`, asks NVIDIA's hosted NV-DINOv2 for its embedding, and answers with the 1536
//! numbers as JSON.
//!
//! This page describes the architecture. `CONTRIBUTING.md` explains how to run, test and extend the
//! service. The pages in `docs/` are for its users.
//!
//! # The path of a picture
//!
//! ```text
//! server ──► web ──► a route ──► pipeline: admit ──► receive ──┬──► save ────┬──► answer
//!                     │   ▲                                     └──► embed ───┘
//!                     ▼   │                                            │
//!                     fetch                                 cache, decoder, nvidia
//! ```
//!
//! 1. **[`server`]** accepts a connection if the limits allow it, and finds the client's address.
//! 2. **[`web`]** gives the request an id, checks the request's key, origin and other headers, and
//!    calls the route.
//! 3. Before it reads the body, each route asks the **[`pipeline`]** to *admit* the request. The
//!    pipeline refuses the request if the disk is full, if there is not enough memory for the
//!    picture, or if its call to NVIDIA would come too late. Then the route passes a file name and a stream of the picture's bytes to the
//!    pipeline. The upload route reads a form. The Base64 route reads JSON. The URL route calls
//!    [`fetch`], which connects to public addresses only.
//! 4. The pipeline *receives* the bytes. [`spool`] counts and hashes them as they arrive, and
//!    writes them to a file in `downloads/.incoming/`; only small pictures stay in memory.
//!    [`image`] then reads the picture's header: its format, size and orientation. Nothing is
//!    decoded.
//! 5. The pipeline *saves* and *embeds* the picture. With a downloads folder, it does both at the
//!    same time, because the call to NVIDIA takes longest. [`store`] syncs the file and renames it,
//!    so that the file is complete or absent. With a bucket, the call waits until the bucket has
//!    the picture. If step 6 finds that the picture is broken, the picture is removed again.
//! 6. **[`embed`]** looks in the cache (memory, then disk, then the bucket), or joins a running call
//!    for the same picture. (Replicas that share a bucket and a [`valkey`] also agree on one call.)
//!    Without a cached vector or a running call, it prepares the picture. Upright JPEGs and upright
//!    PNGs are sent unchanged, unless they are large and cannot be uploaded. [`decoder`] turns all
//!    others into an upright JPEG, in a child process with strict limits: a hostile picture may
//!    need far more memory and time than its header suggests.
//! 7. **[`nvidia`]** calls NVIDIA. The picture is part of the request, or an uploaded asset if it
//!    is large. Each call has retries and one deadline. All calls share a limit on calls per
//!    minute. NVIDIA's key is in a type that only this module can read.
//! 8. The answer or an error returns to [`web`]. The inner modules have their own error types,
//!    without any HTTP. [`web::error`] maps each error to a code, a status and a sentence. The
//!    outermost layer logs the error once.
//!
//! # Which module may import which
//!
//! A module imports only modules further down in this table. Modules of the last row may also import
//! each other, but not in a circle. Also, [`web`] and [`sandbox`] do not import each other,
//! nor do [`embed`], [`store`] and [`fetch`].
//!
//! | Module | What it does |
//! |---|---|
//! | [`cli`] | serves, or runs another command, such as `embed` |
//! | [`bulk`] | embeds the pictures of folders and lists, and finds similar ones, as a client of the service |
//! | [`app`] | builds the service from the settings, and binds its port |
//! | [`config`] | parses, checks and lists all settings |
//! | [`web`] | HTTP: middleware, extractors, routes, and errors as clients see them |
//! | [`sandbox`] | the stand-in for NVIDIA |
//! | [`server`] | TCP: connections, their limits and timeouts, shutdown, the client's address |
//! | [`pipeline`] | processes a picture: admits, receives, saves and embeds it |
//! | [`embed`] | computes embeddings, and avoids a second call for the same picture |
//! | [`store`] | saves pictures, in the downloads folder or in the bucket |
//! | [`fetch`] | fetches pictures from URLs, but not from private addresses |
//! | [`nvidia`] | calls NVIDIA's API |
//! | the rest | [`image`] (formats, headers, rendering), [`decoder`] (child processes that decode), [`spool`] (received bytes), [`disk_space`] (reserves space), [`shares`] and `fair_queue` (limits per client), [`sha256`], [`base64_text`], [`bucket`] (objects in S3), [`valkey`] (what replicas agree on), [`http_client`], [`telemetry`] (log, metrics and traces), `bearer_token` (checks the syntax of keys), `sampler` (runs system calls that may hang), `causes` (the causes of an error) |
//!
//! The reasons for these rules:
//!
//! - **No upward and no circular imports.** Each module can be read, tested and replaced with
//!   knowledge only of the modules below it.
//! - **axum only in [`web`], [`sandbox`], [`server`] and [`app`].** The processing of a picture
//!   does not depend on the route that received it.
//! - **[`config`] only in [`cli`], [`bulk`] and [`app`].** Each module defines its own `Settings`,
//!   which [`config`] fills. The tests of a module set these values directly, without an
//!   environment.
//! - **Only [`app`] connects the modules of the service.** Tests start the same service as `main`, with a fake
//!   NVIDIA.
//!
//! `tests/architecture.rs` reads the sources and checks these rules.

pub mod app;
pub mod base64_text;
mod bearer_token;
pub mod bucket;
pub mod bulk;
mod causes;
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
pub mod valkey;
pub mod web;
