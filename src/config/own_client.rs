//! Adapts the settings to a service that has one client, which is in the same process.

use std::{net::Ipv4Addr, path::PathBuf};

use super::{Config, NO_CLIENT_KEYS};
use crate::{
    disk_space::DiskSpace,
    server::TrustedProxies,
    store::Retention,
    web::{self, ClientKeys},
};

impl Config {
    /// Listens on a free loopback port, accepts only this key, and removes the limits that separate
    /// clients from each other. If `folder` is set, it replaces the downloads folder.
    #[must_use]
    pub fn for_own_client(self, keys: ClientKeys, folder: Option<PathBuf>) -> Self {
        let Self { mut server, mut store, mut embed, mut warnings, .. } = self;
        server.listen = (Ipv4Addr::LOCALHOST, 0).into();
        server.max_connections_per_peer = server.max_connections;
        server.drain_delay = std::time::Duration::ZERO;
        server.trusted_proxies = TrustedProxies::default();
        if let Some(folder) = folder {
            let space = DiskSpace::new(folder.clone(), store.space.reserve());
            embed.cache_folder = folder.join(".vectors");
            embed.cache_space = space.clone();
            store.folder = folder;
            store.space = space;
            store.retention = Retention::default();
        }
        warnings.retain(|warning| !warning.starts_with(NO_CLIENT_KEYS));
        let web = web::Settings {
            keys,
            rate_limit: None,
            origins: Default::default(),
            hosts: Vec::new(),
        };
        Self { server, store, embed, warnings, web, ..self }
    }
}
