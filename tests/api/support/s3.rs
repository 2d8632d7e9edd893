//! S3 servers on this machine, and what can go wrong between them and the service.
//!
//! `tests/s3/README.md` describes what the tests with these servers need. [`MotoServer`] checks
//! signatures and permissions. [`RcloneServer`] also checks signatures, with code of its own.
//! [`FaultProxy`] stands between the service and one of these two servers. [`FakeMetadata`] hands out the
//! credentials of an instance's role. [`DiscardingBucket`] can accept gigabytes, because it keeps no large
//! objects.

mod discarding;
mod fault_proxy;
mod metadata;
mod moto;
mod rclone;

use std::{env, net::SocketAddr, path::PathBuf, time::Duration};

pub use discarding::DiscardingBucket;
pub use fault_proxy::{Fault, FaultProxy};
pub use metadata::FakeMetadata;
pub use moto::{Credentials, MotoServer};
pub use rclone::RcloneServer;

/// The longest wait for the start of a server, for a command of moto, and for an event in [`FaultProxy`].
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The Python that runs moto.
fn python() -> String {
    env::var("S3_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// The program `name` in the folder of [`python`]. Without `S3_PYTHON`, this is only `name`, which the
/// system finds through `PATH`, like `python3`.
fn program_beside_python(name: &str) -> String {
    let beside = PathBuf::from(python()).with_file_name(name);
    beside.to_str().unwrap().to_owned()
}

/// The settings for a bucket at `endpoint`, without credentials.
fn bucket_settings(
    endpoint: SocketAddr,
    region: &str,
    bucket: &str,
    prefix: &str,
) -> Vec<(&'static str, String)> {
    vec![
        ("IMAGESVC_BUCKET", format!("s3://{bucket}/{prefix}")),
        ("IMAGESVC_BUCKET_ENDPOINT", format!("http://{endpoint}")),
        ("IMAGESVC_BUCKET_REGION", region.to_owned()),
    ]
}
