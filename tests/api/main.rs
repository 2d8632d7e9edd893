//! Tests the real service over HTTP, and the program's other commands. NVIDIA and the picture servers are
//! fakes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub
)]

mod support;

mod access_control;
mod address_policy;
mod alerts;
mod assets;
mod base64;
mod batch_errors;
mod batch_limits;
mod batches;
mod bodies;
mod bombs;
mod bucket;
mod bucket_check;
mod bucket_credentials;
mod bucket_failures;
mod bucket_outages;
mod bulk;
mod bulk_export;
mod bulk_hosts;
mod bulk_resume;
mod bulk_service;
mod bulk_sources;
mod bulk_terminal;
mod cache;
mod check;
mod commands;
mod contract;
mod date;
mod deadline;
mod decoder;
mod disk;
mod docs;
mod durability;
mod errors;
mod fairness;
mod fallback;
mod formats;
mod framing;
mod fuzz;
mod health_and_metrics;
#[cfg(feature = "heic")]
mod heic;
mod help;
mod host_header;
mod hostile_names;
mod inline;
mod kinds;
mod leaks;
mod logs;
mod lookups;
mod memory;
mod mutations;
mod nearest;
mod numbers;
mod nvidia_faults;
mod orientation;
mod overload;
mod pages;
mod peaks;
mod picture_hosts;
mod pillow;
mod polling;
mod process;
mod proxy;
mod query;
mod replicas;
mod request_endings;
mod retention;
mod s3_support_tests;
mod sandbox;
mod sandbox_stand_in;
mod scaling;
mod single_flight;
mod slow;
mod soak;
mod stop;
mod stop_with_bucket;
mod systemd;
mod tiff;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
mod unusual_files;
mod unusual_headers;
mod upload;
mod url;
mod valkey;
mod valkey_leases;
mod valkey_limits;
mod valkey_outages;
