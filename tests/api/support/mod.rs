//! The service on a port of its own, and the servers that it talks to.

mod app;
pub mod bombs;
mod child;
pub mod craft;
mod decoder;
pub mod kinds;
mod nvidia;
mod pictures;
mod server;

pub use app::{Answer, TestApp, assert_problem, client_from, connect_from, metric};
pub use child::{Child, children_of, memory_of};
pub use decoder::{decoder_settings, misbehaving};
pub use nvidia::{KEY, Nvidia, embedding, embedding_of, number, numbers, try_number};
pub use pictures::{CHELSEA, HUBBLE, ROCKET, converted, form, heic, noise_png, tiny, variant};
pub use server::{Received, Reply, Server};
