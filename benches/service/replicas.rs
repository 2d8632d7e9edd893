//! Measures what a Valkey adds to the latency of a service with a bucket. The fake bucket in this
//! process keeps vectors but discards pictures, and needs little processor time.

use std::{thread, time::Duration};

use crate::{
    Bench,
    child::Service,
    load::Load,
    pictures::SMALL,
    report::{heading, row},
    request::Request,
};
use discarding::DiscardingBucket;
use test_server::RedisServer;

#[path = "../../tests/api/support/s3/discarding.rs"]
mod discarding;
#[path = "../../src/valkey/test_server.rs"]
mod test_server;

/// The delay of each inference.
const CALL_TIME: Duration = Duration::from_millis(20);

/// How many times the two services are measured, one after the other. The round with the median
/// difference is reported.
const ROUNDS: u32 = 5;

impl Bench {
    /// Measures the latency that a Valkey adds, for one client.
    pub fn replicas(&mut self) {
        let Some(valkey) = RedisServer::start(&[]) else { return };
        let (bucket, url) = (DiscardingBucket::start().settings(), valkey.url());
        let bucket: Vec<_> = bucket.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let more = [
            // Without the other levels of the cache, each hit comes from the bucket.
            ("IMAGESVC_CACHE_MEMORY", "0"),
            ("IMAGESVC_CACHE_DISK", "0"),
            ("NVIDIA_REQUESTS_PER_MINUTE", "100000"),
            ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1000000"),
        ];
        let settings = [&bucket[..], &more].concat();
        let settings_with_valkey = [&settings[..], &[("IMAGESVC_VALKEY_URL", &*url)]].concat();
        let folder = self.folder("bucket");
        let without_valkey = Service::start(&folder, &self.nvidia, &settings);
        let folder = self.folder("valkey");
        let with_valkey = Service::start(&folder, &self.nvidia, &settings_with_valkey);
        // For three seconds after its start, a service with a Valkey may make fewer calls: see
        // `Mode::Settling`.
        thread::sleep(Duration::from_secs(4));

        self.nvidia.set_delay(CALL_TIME);
        heading(
            "one client, a bucket and an NVIDIA of 20 ms on loopback; median latency",
            &["picture", "bucket alone ms", "with Valkey ms", "added ms"],
        );
        // Each request sends a new picture, or all requests send the same one.
        for (sent, is_fresh, max_added_ms) in [("fresh", true, 5.0), ("again", false, 2.0)] {
            let load = Load {
                request: Request::upload(SMALL),
                is_fresh,
                clients: 1,
                run_for: self.load_time / ROUNDS,
            };
            let measure = |service| load.run(service, &self.nvidia).latency.p50;
            let mut rounds: Vec<_> = (0..ROUNDS)
                .map(|_| {
                    let (without_ms, with_ms) = (measure(&without_valkey), measure(&with_valkey));
                    (with_ms - without_ms, without_ms, with_ms)
                })
                .collect();
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (added_ms, without_ms, with_ms) = rounds[rounds.len() / 2];
            row(&[sent.into()], &[without_ms, with_ms, added_ms]);
            let name = format!("Valkey: added latency, 34 KB, {sent}, ms");
            self.report.goal_at_most(&name, added_ms, max_added_ms);
        }
        self.nvidia.set_delay(Duration::ZERO);
    }
}
