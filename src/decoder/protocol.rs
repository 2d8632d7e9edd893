//! The protocol between the service and a child: the arguments that describe the job, and the
//! header of the result.

use crate::image::{Format, Orientation, Target};

/// The internal subcommand that starts imagesvc as a decoder; `--help` does not list it.
pub(super) const COMMAND: &str = "decode";

/// The work for a child, and its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) format: Format,
    /// The width and the height in pixels, before `orientation` is applied.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    /// The memory that decoding is expected to need, in bytes.
    pub(super) memory_estimate: u64,
    /// The limit of the child's address space, in bytes.
    pub(super) address_space: u64,
    /// The limit of the child's processor time.
    pub(super) cpu_seconds: u64,
}

impl Job {
    /// Returns the arguments of the program, beginning with the command.
    pub(super) fn to_args(self) -> [String; 10] {
        let (target, parameter) = match self.target {
            Target::Converted { max_len } => ("converted", max_len),
            Target::Shrunk { max_len } => ("shrunk", max_len),
            Target::Square { side } => ("square", side as usize),
        };
        [
            COMMAND.to_owned(),
            target.to_owned(),
            parameter.to_string(),
            self.format.extension().to_owned(),
            self.width.to_string(),
            self.height.to_string(),
            self.orientation.to_exif().to_string(),
            self.memory_estimate.to_string(),
            self.address_space.to_string(),
            self.cpu_seconds.to_string(),
        ]
    }

    /// Parses the arguments that follow the command.
    pub(super) fn parse(args: &[String]) -> Option<Self> {
        let [
            target,
            parameter,
            format,
            width,
            height,
            orientation,
            memory_estimate,
            address_space,
            cpu_seconds,
        ] = args
        else {
            return None;
        };
        Some(Self {
            target: match target.as_str() {
                "converted" => Target::Converted { max_len: parameter.parse().ok()? },
                "shrunk" => Target::Shrunk { max_len: parameter.parse().ok()? },
                "square" => Target::Square { side: parameter.parse().ok()? },
                _ => return None,
            },
            format: Format::ALL.into_iter().find(|known| known.extension() == format)?,
            width: width.parse().ok()?,
            height: height.parse().ok()?,
            orientation: Orientation::from_exif(orientation.parse().ok()?)?,
            memory_estimate: memory_estimate.parse().ok()?,
            address_space: address_space.parse().ok()?,
            cpu_seconds: cpu_seconds.parse().ok()?,
        })
    }
}

/// The kinds of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResultKind {
    /// The rendered picture follows.
    Done,
    /// The picture cannot be decoded; the reason follows.
    Broken,
    /// A decoder panicked; its message follows.
    Panicked,
    /// The picture's bytes cannot be read; the system's error message follows.
    Unreadable,
    /// The child could not lower its limits and decoded nothing; the system's error message
    /// follows.
    LimitsFailed,
}

/// The longest message, in bytes. Longer messages are truncated.
pub(super) const MAX_MESSAGE_LEN: usize = 4096;

/// The length of a result's header, in bytes. The first byte is a letter for the kind. The other
/// eight bytes contain the length of the rest of the result.
pub(super) const HEADER_LEN: usize = 9;

impl ResultKind {
    const LETTERS: [(Self, u8); 5] = [
        (Self::Done, b'd'),
        (Self::Broken, b'b'),
        (Self::Panicked, b'p'),
        (Self::Unreadable, b'r'),
        (Self::LimitsFailed, b'l'),
    ];

    /// Returns the header of a result that has `len` more bytes.
    pub(super) fn header(self, len: u64) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        // Every kind has a letter, so the zero is never used.
        let letter = Self::LETTERS.iter().find(|(kind, _)| *kind == self);
        header[0] = letter.map_or(0, |(_, letter)| *letter);
        header[1..].copy_from_slice(&len.to_le_bytes());
        header
    }

    /// Parses a header. Returns the result's kind and the number of bytes that follow.
    pub(super) fn parse(header: [u8; HEADER_LEN]) -> Option<(Self, u64)> {
        let [letter, len @ ..] = header;
        let (kind, _) = Self::LETTERS.into_iter().find(|(_, known)| *known == letter)?;
        Some((kind, u64::from_le_bytes(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_jobs_and_headers_equal_the_written_ones() {
        for target in [
            Target::Converted { max_len: 6 },
            Target::Shrunk { max_len: 7 },
            Target::Square { side: 8 },
        ] {
            let job = Job {
                target,
                format: Format::WebP,
                width: 1,
                height: 2,
                orientation: Orientation::Rotate90,
                memory_estimate: 3,
                address_space: 4,
                cpu_seconds: 5,
            };
            assert_eq!(Job::parse(&job.to_args()[1..]), Some(job));
            assert_eq!(Job::parse(&job.to_args()), None); // the command is one argument too many
        }
        for (kind, _) in ResultKind::LETTERS {
            assert_eq!(ResultKind::parse(kind.header(7)), Some((kind, 7)));
        }
        assert_eq!(ResultKind::parse([0; HEADER_LEN]), None);
    }
}
