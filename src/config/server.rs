//! Settings of the TCP server, and the proxies that it trusts.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use super::{
    parse,
    reader::Reader,
    row::{Optional, Setting},
};
use crate::server::{Settings, TrustedProxies};

pub(super) const HOST: Setting<IpAddr> =
    Setting::new("IMAGESVC_HOST", "0.0.0.0", parse::host, "The address to listen on");

pub(super) const PORT: Setting<u16> = Setting::new(
    "IMAGESVC_PORT",
    "8000",
    |text| parse::number(text, 0..=65535),
    "The port to listen on; 0 picks a free one, which the log names",
);

pub(super) const HEADER_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_HEADER_TIMEOUT",
    "10s",
    parse::positive_duration,
    "The longest time to receive a request's header; also ends idle keep-alive connections",
);

pub(super) const DRAIN_DELAY: Setting<Duration> = Setting::new(
    "IMAGESVC_DRAIN_DELAY",
    "2s",
    parse::duration,
    "How long new connections are still accepted after SIGTERM",
);

pub(super) const DRAIN_TIMEOUT: Setting<Duration> = Setting::new(
    "IMAGESVC_DRAIN_TIMEOUT",
    "70s",
    parse::duration,
    "How long running requests may take to finish once the listener has closed",
);

pub(super) const MAX_CONNECTIONS: Setting<usize> = Setting::new(
    "IMAGESVC_MAX_CONNECTIONS",
    "1024",
    |text| parse::number(text, 1..=1 << 20),
    "The most open connections",
);

pub(super) const MAX_CONNECTIONS_PER_PEER: Setting<usize> = Setting::new(
    "IMAGESVC_MAX_CONNECTIONS_PER_PEER",
    "64",
    |text| parse::number(text, 1..=1 << 20),
    "The most open connections of one peer",
);

pub(super) const TRUSTED_PROXIES: Optional<TrustedProxies> = Optional::new(
    "IMAGESVC_TRUSTED_PROXIES",
    |text| parse::list(text, parse::network).map(TrustedProxies::new),
    "Networks of proxies whose X-Forwarded-For is believed",
);

/// Reads the settings of the server.
pub(super) fn resolve(read: &mut Reader<'_>) -> Settings {
    Settings {
        listen: SocketAddr::new(read.value(&HOST), read.value(&PORT)),
        header_timeout: read.value(&HEADER_TIMEOUT),
        drain_delay: read.value(&DRAIN_DELAY),
        drain_timeout: read.value(&DRAIN_TIMEOUT),
        max_connections_per_peer: read.value(&MAX_CONNECTIONS_PER_PEER),
        max_connections: read.value(&MAX_CONNECTIONS),
        trusted_proxies: read.optional(&TRUSTED_PROXIES).unwrap_or_default(),
        clock: SystemTime::now,
    }
}
