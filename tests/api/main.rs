//! Speaks HTTP to the real service, with a scripted NVIDIA and a scripted origin behind it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

mod support;

mod assets;
mod base64;
mod docs;
mod errors;
mod fallback;
mod formats;
mod inline;
mod numbers;
mod ops;
mod polling;
mod process;
mod sandbox;
mod upload;
mod url;
