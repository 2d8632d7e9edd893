//! Adapts the settings to a service whose only client is in the same process, as for
//! `imagesvc embed`.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use super::{Config, NO_CLIENT_KEYS};
use crate::{
    disk_space::DiskSpace,
    fetch, nvidia,
    pipeline::Limits,
    server::TrustedProxies,
    shares::Clients,
    store::Retention,
    web::{self, ClientKeys},
};

impl Config {
    /// Listens on a free loopback port, accepts only `keys`, and sets no limits per client. If
    /// `folder` is set, it replaces the downloads folder, and the cache on disk is inside of it. The
    /// settings that remove old pictures then have no effect.
    #[must_use]
    pub fn for_own_client(self, keys: ClientKeys, folder: Option<PathBuf>) -> Self {
        let Self { mut server, mut store, mut embed, mut warnings, .. } = self;
        let limits = Limits { clients: Clients::One, ..self.limits };
        let nvidia = nvidia::Settings { clients: Clients::One, ..self.nvidia };
        let fetch = fetch::Settings { clients: Clients::One, ..self.fetch };
        server.listen = (Ipv4Addr::LOCALHOST, 0).into();
        server.max_connections_per_peer = server.max_connections;
        server.drain_delay = Duration::ZERO;
        server.trusted_proxies = TrustedProxies::default();
        if let Some(folder) = folder {
            let space = DiskSpace::new(folder.clone(), store.space.min_free_bytes());
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
        Self { server, store, embed, warnings, web, limits, nvidia, fetch, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawSettings;

    fn config_for_own_client() -> Config {
        let raw = RawSettings::from_pairs([
            ("IMAGESVC_SANDBOX", "true"),
            ("IMAGESVC_API_KEYS", "a,b"),
            ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1"),
            ("IMAGESVC_TRUSTED_PROXIES", "127.0.0.0/8"),
            ("IMAGESVC_DRAIN_DELAY", "5s"),
            ("IMAGESVC_DOWNLOADS_MAX_AGE", "1d"),
        ]);
        let keys = ClientKeys::parse("one-key").unwrap();
        Config::resolve(&raw).unwrap().for_own_client(keys, Some("own-folder".into()))
    }

    #[test]
    fn the_service_for_one_client_has_a_loopback_port_one_key_no_rate_limit_and_the_given_folder() {
        let config = config_for_own_client();
        assert!(config.server.listen.ip().is_loopback() && config.server.listen.port() == 0);
        assert_eq!(format!("{:?}", config.web.keys), "ClientKeys(1 redacted)");
        assert_eq!(config.web.rate_limit, None);
        assert_eq!(config.embed.cache_folder.to_str(), Some("own-folder/.vectors"));
        assert_eq!(config.store.folder.to_str(), Some("own-folder"));
    }

    #[test]
    fn the_service_for_one_client_keeps_old_pictures_trusts_no_proxy_and_stops_without_a_delay() {
        let config = config_for_own_client();
        assert_eq!(config.store.retention.max_age, None);
        assert!(!config.server.trusted_proxies.contains(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(config.server.drain_delay, Duration::ZERO);
    }
}
