//! What the tests share: a running service, the servers that it calls, most of them fake, and test data.
//!
//! An [`Answer`] comes from the service; a [`Reply`] is what a fake server sends to the service.

mod addresses;
mod answer;
mod app;
pub mod bombs;
mod bulk;
mod child;
pub mod craft;
mod decoder;
pub mod documents;
mod fake_bucket;
mod fake_nvidia;
mod fake_server;
pub mod kinds;
pub mod mutate;
pub mod nvidia_api;
mod pictures;
mod pixels;
mod programs;
mod raw_http;
mod replica;
mod request;
mod resources;
pub mod s3;
mod terminal;
pub mod tiff_tags;
mod valkey;

pub use addresses::{client_from, connect_from, free_address};
pub use answer::{Answer, assert_problem, metric};
pub use app::{BuildError, Config, TestApp};
pub use bulk::{Bulk, Finished};
pub use child::{ServiceProcess, children_of, memory_of, peak_memory_of};
pub use decoder::{decoder_settings, fake_decoder};
pub use fake_bucket::FakeBucket;
pub use fake_nvidia::{
    FakeNvidia, InlinePicture, created_asset, embedding, embedding_of, numbers, pending,
    picture_number, try_picture_number,
};
pub use fake_server::{FakeServer, Received, Reply};
pub use pictures::{
    CHELSEA, HUBBLE, PHONE, ROCKET, avif, converted, data_url, noise_png, tiny, variant,
};
pub use pixels::Difference;
pub use programs::{is_missing, python_lacks, report_skip};
pub use raw_http::{SMUGGLED_REQUEST, exchange, parse_answer, read_to_end, request_head};
pub use replica::{
    PATIENCE, POLL_INTERVAL, Replica, Setting, bucket_warnings, count_lines, wait_for,
};
pub use request::{FORM_CONTENT_TYPE, base64_body, form, post_head, wrapped_base64};
pub use resources::ResourceUsage;
pub use terminal::Terminal;
pub use valkey::{Link, RedisServer, ValkeyServer};
