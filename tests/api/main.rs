//! Speaks HTTP to the real service, with a fake NVIDIA and a fake origin behind it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub
)]

mod support;

mod addresses;
mod alerts;
mod assets;
mod base64;
mod bodies;
mod bombs;
mod cache;
mod check;
mod commands;
mod contract;
mod deadline;
mod decoder;
mod disk;
mod docs;
mod durability;
mod endings;
mod errors;
mod fallback;
mod faults;
mod formats;
mod framing;
mod fuzz;
mod guard;
#[cfg(feature = "heic")]
mod heic;
mod hosts;
mod inline;
mod kinds;
mod leaks;
mod logs;
mod lookups;
mod memory;
mod mutations;
mod names;
mod numbers;
mod odd_forms;
mod odd_headers;
mod ops;
mod orientation;
mod overload;
mod pages;
mod peaks;
mod pillow;
mod polling;
mod process;
mod proxy;
mod query;
mod retention;
mod sandbox;
mod shares;
mod sharing;
mod slow;
mod soak;
mod stand_in;
mod stop;
mod supervisor;
mod tiff;
mod tls;
mod upload;
mod url;
