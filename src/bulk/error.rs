//! How a command ends: with an outcome or an error, and its exit code.

use std::{io, process::ExitCode};

use super::{
    client::ServiceError, interrupt, output::OutputError, source::SourceError,
    vectors::VectorsError,
};

/// The exit code of a command that cannot start, or that cannot use what it needs, such as its sources.
const UNUSABLE: u8 = 2;

/// How a command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The command has done everything: for `embed`, every row is in the output, up to `--limit`.
    Success,
    /// Some rows have failed.
    SomeFailed,
    /// The run has stopped early, for example because every further picture would have failed.
    Stopped,
    /// A signal has ended the run.
    Interrupted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::SUCCESS,
            Outcome::SomeFailed | Outcome::Stopped => Self::FAILURE,
            Outcome::Interrupted => Self::from(interrupt::EXIT_CODE),
        }
    }
}

/// Why a command cannot start, or cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// A source cannot be read, or does not fit the arguments.
    #[error("{0}")]
    Source(String),
    /// The output cannot be used: no rows can be appended to it.
    #[error("{0}")]
    Output(String),
    /// The output, the file of failures or standard output cannot be written.
    #[error("the output cannot be written: {0}")]
    Write(io::Error),
    /// `embed` has written the rows, but cannot make the Parquet or NumPy file from them.
    #[error("{0}")]
    Export(String),
    /// The service cannot be used.
    #[error("{0}")]
    Service(String),
    /// The file of vectors cannot be used.
    #[error("{0}")]
    Vectors(String),
    /// The picture of `nearest` cannot be embedded.
    #[error("{picture}: {code}: {detail}")]
    Picture {
        /// The picture's path or URL.
        picture: String,
        /// The error code, from the service or from the command.
        code: String,
        /// A sentence for people.
        detail: String,
    },
    /// The system refuses a thread or a signal handler.
    #[error("the system refuses a thread or a signal handler: {0}")]
    System(io::Error),
}

impl BulkError {
    /// The exit code of the command.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Write(_) | Self::Export(_) | Self::Picture { .. } => ExitCode::FAILURE,
            Self::Source(_)
            | Self::Output(_)
            | Self::Vectors(_)
            | Self::Service(_)
            | Self::System(_) => UNUSABLE.into(),
        }
    }
}

impl From<SourceError> for BulkError {
    fn from(error: SourceError) -> Self {
        Self::Source(error.to_string())
    }
}

impl From<OutputError> for BulkError {
    fn from(error: OutputError) -> Self {
        Self::Output(error.to_string())
    }
}

impl From<VectorsError> for BulkError {
    fn from(error: VectorsError) -> Self {
        Self::Vectors(error.to_string())
    }
}

impl From<ServiceError> for BulkError {
    fn from(error: ServiceError) -> Self {
        Self::Service(error.to_string())
    }
}
