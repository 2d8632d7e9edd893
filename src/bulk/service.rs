//! Opens the service that a command uses: a running service, or one that it starts in this process.

use std::{env, path::PathBuf};

use tokio::{sync::oneshot, task::JoinHandle};
use url::Url;
use uuid::Uuid;

use super::{client::ServiceClient, error::BulkError, progress::write_line};
use crate::{
    app::{App, BuildError},
    config::Config,
    fetch::Lookup,
    store::OpenError,
    web::ClientKeys,
};

/// The environment variable that contains the key for a running service.
const KEY_VARIABLE: &str = "IMAGESVC_API_KEY";

/// The service that a command uses. If the service runs in this process, dropping this value stops it.
#[derive(Debug)]
pub(super) struct Service {
    pub client: ServiceClient,
    /// The sender stops the service in this process, and the handle waits for the end of the service.
    /// `None` if the command uses a service that was already running.
    in_process: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Service {
    /// Uses the service at `to`, or starts a service if there is no `to`. `save` says whether the
    /// service saves the pictures. The names of the fields that `embed` adds to a row begin with
    /// `prefix`.
    pub(super) async fn open(
        to: Option<&Url>,
        save: bool,
        prefix: &str,
        config: Config,
    ) -> Result<Self, BulkError> {
        match to {
            Some(url) => {
                let key = env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty());
                let client = ServiceClient::new(url.clone(), key.as_deref(), save, prefix)?;
                Ok(Self { client, in_process: None })
            }
            None => Self::start(save, prefix, config).await,
        }
    }

    async fn start(save: bool, prefix: &str, config: Config) -> Result<Self, BulkError> {
        let key = Uuid::new_v4().simple().to_string();
        let keys = ClientKeys::parse(&key).map_err(BulkError::Service)?;
        // `None` keeps the downloads folder of the settings.
        let folder = if save { None } else { Some(cache_folder()?) };
        let config = config.for_own_client(keys, folder);
        for warning in &config.warnings {
            write_line(&format!("warning: {warning}"));
        }
        let place = match &config.bucket {
            Some(bucket) => bucket.location.to_string(),
            None => config.store.folder.display().to_string(),
        };
        write_line(&match save {
            true => format!("pictures are saved in {place}"),
            false => format!("vectors are cached in {place}; pictures are not saved"),
        });
        // Unlike `App::build`, this does not log the warnings, which are printed above.
        let app = App::build_with_lookup(config, Lookup::system()).await.map_err(cannot_start)?;
        let url = format!("http://{}", app.address());
        let url = Url::parse(&url).map_err(|error| BulkError::Service(error.to_string()))?;
        let client = ServiceClient::new(url, Some(&key), save, prefix)?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(app.serve(async {
            // An error means that the `Service` was dropped, which stops the service too.
            let _ = stopped.await;
        }));
        Ok(Self { client, in_process: Some((stop, task)) })
    }

    /// Stops the service in this process, and waits until it has written its cache. Has no effect on a
    /// service that was already running.
    pub(super) async fn stop(self) {
        if let Some((stop, task)) = self.in_process {
            let _ = stop.send(()); // fails if the service has stopped already
            let _ = task.await; // fails if the service panicked, which the log reports
        }
    }
}

fn cannot_start(error: BuildError) -> BulkError {
    BulkError::Service(match error {
        BuildError::Store(OpenError::InUse(path)) => format!(
            "{} is in use by another imagesvc: if it is a service, use that service with \
             --to http://localhost:8000; if it is another run, wait for its end",
            path.display()
        ),
        other => format!("the service cannot start: {other}"),
    })
}

/// The folder for cached vectors. By the XDG Base Directory Specification, variables with a relative
/// path are ignored.
fn cache_folder() -> Result<PathBuf, BulkError> {
    let absolute =
        |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let base = base.ok_or_else(|| {
        BulkError::Service(
            "there is no folder for cached vectors: set HOME or XDG_CACHE_HOME".into(),
        )
    })?;
    Ok(base.join("imagesvc"))
}
