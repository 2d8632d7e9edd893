//! Why the Valkey cannot be used, and what an operator can do.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::task::JoinError;

/// Why a command or the connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There was no reply in time.
    #[error("there was no reply in time")]
    Timeout,
    /// The server replied with an error, or the connection failed.
    #[error(transparent)]
    Redis(RedisError),
    /// The task that connects panicked.
    #[error("the task that connects has failed")]
    Task(#[from] JoinError),
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        if error.is_timeout() { Self::Timeout } else { Self::Redis(error) }
    }
}

/// Why the Valkey prevents the start of the service.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The client cannot be created from the URL.
    #[error("IMAGESVC_VALKEY_URL cannot be used")]
    Client(#[from] RedisError),
    /// The server refuses this client, or the client refuses the URL.
    #[error("IMAGESVC_VALKEY_URL cannot be used: {advice}")]
    Refused {
        /// What the operator can do.
        advice: &'static str,
        /// The server's error.
        source: RedisError,
    },
}

impl Failure {
    /// The name in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Redis(error) if error.is_io_error() => "no_connection",
            Self::Redis(_) | Self::Task(_) => "error",
        }
    }

    /// What the operator can do, if that is known.
    pub fn advice(&self) -> Option<&'static str> {
        let Self::Redis(error) = self else { return None };
        if self.is_about_permissions() {
            return Some(
                "the server's user needs the key pattern ~{imagesvc}* and the commands that docs/scaling.md lists",
            );
        }
        match error.code() {
            Some("OOM") => {
                return Some(
                    "raise the server's maxmemory, or set maxmemory-policy to volatile-lru",
                );
            }
            Some("MISCONF") => return Some("the server cannot write its snapshot: see its log"),
            Some("NOAUTH" | "WRONGPASS") => return Some(CHECK_CREDENTIALS),
            _ => {}
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => Some(CHECK_CREDENTIALS),
            ErrorKind::Server(
                ServerErrorKind::Moved | ServerErrorKind::CrossSlot | ServerErrorKind::ClusterDown,
            ) => Some("the server runs in cluster mode: use one without it"),
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                Some("the server is a replica that cannot be written to: use the primary's address")
            }
            _ => None,
        }
    }

    /// Whether the server's user lacks a permission.
    fn is_about_permissions(&self) -> bool {
        let Self::Redis(error) = self else { return false };
        // If the forbidden command is in a script, Redis 7.0 sends this text, but not the code `NOPERM`.
        let is_in_script = |detail: &str| detail.contains("The user executing the script can't");
        error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
            || error.detail().is_some_and(is_in_script)
    }

    /// Returns a [`StartError`] as `Ok`, if the server refuses this client or the client refuses the URL.
    /// Returns every other failure unchanged, as `Err`: it does not prevent the start.
    pub(super) fn into_start_error(self) -> Result<StartError, Self> {
        let is_refusal = match &self {
            Self::Timeout | Self::Task(_) => false,
            Self::Redis(error) => {
                self.is_about_permissions()
                    || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
                    || matches!(
                        error.kind(),
                        ErrorKind::AuthenticationFailed
                            | ErrorKind::InvalidClientConfig
                            | ErrorKind::Server(
                                ServerErrorKind::Moved | ServerErrorKind::CrossSlot
                            )
                    )
            }
        };
        let advice = self.advice().unwrap_or("see the cause");
        match self {
            Self::Redis(source) if is_refusal => Ok(StartError::Refused { advice, source }),
            failure => Err(failure),
        }
    }
}

const CHECK_CREDENTIALS: &str = "check the user and the password in IMAGESVC_VALKEY_URL";
