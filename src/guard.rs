//! What stands between the connection and the routes: what every request gets, whatever it asks.

pub mod body;
pub mod drain;
pub mod observe;
