//! **imagesvc** takes a picture (by address, as Base64 JSON, or as a multipart upload), saves it
//! under `downloads/`, asks NVIDIA's hosted NV-DINOv2 for its embedding, and answers with the 1536
//! numbers as JSON.
//!
//! # The way of a picture
//!
//! ```text
//! routes ──► pipeline ──► spool, store       received, then saved whole
//!    │            ├──────► image             what the bytes are
//!    └► fetch     └──────► embed ──► nvidia  what NVIDIA is given, and how it is asked
//!                             └────► decoder decodes, in a process of its own
//! ```
//!
//! Each route turns its request into a stream of bytes and a name. From there on there is one
//! path: spool the bytes, read the header, then save and embed at the same time. Dependencies
//! point one way, and only `routes`, `guard`, `app`, `server`, `sandbox` and `error` know axum.

pub mod app;
pub mod base64_text;
mod blocks;
mod causes;
pub mod cli;
pub mod config;
pub mod decoder;
pub mod embed;
mod fair_queue;
pub mod fetch;
mod hex;
pub mod http_client;
pub mod image;
pub mod nvidia;
pub mod pipeline;
pub mod sandbox;
pub mod server;
pub mod shares;
pub mod spool;
pub mod store;
pub mod telemetry;
pub mod web;
