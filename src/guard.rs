//! What stands between the connection and the routes: what every request gets, whatever it asks.

pub mod body;
pub mod client;
pub mod cut;
pub mod drain;
pub mod gate;
pub mod keys;
pub mod observe;
pub mod origin;
mod rate;
