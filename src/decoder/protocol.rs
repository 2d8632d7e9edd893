//! The protocol between the service and a child: the job as arguments, and the header of the
//! answer.

use crate::image::{Format, Orientation, Target};

/// The internal subcommand that starts imagesvc as a decoder; `--help` does not list it.
pub(super) const COMMAND: &str = "decode";

/// What a child decodes, and its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) format: Format,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    /// The estimated memory for decoding, in bytes.
    pub(super) cost: u64,
    /// In bytes.
    pub(super) address_space: u64,
    pub(super) cpu_seconds: u64,
}

impl Job {
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
            self.cost.to_string(),
            self.address_space.to_string(),
            self.cpu_seconds.to_string(),
        ]
    }

    /// Parses the arguments without the command.
    pub(super) fn parse(args: &[String]) -> Option<Self> {
        let [
            target,
            parameter,
            format,
            width,
            height,
            orientation,
            cost,
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
            cost: cost.parse().ok()?,
            address_space: address_space.parse().ok()?,
            cpu_seconds: cpu_seconds.parse().ok()?,
        })
    }
}

/// The kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerKind {
    /// The rendered picture follows.
    Done,
    /// The picture cannot be decoded; the reason follows.
    Broken,
    /// A decoder panicked; its message follows.
    Panicked,
    /// The picture's bytes cannot be read; the system's message follows.
    Unreadable,
    /// The child could not limit itself and decoded nothing; the system's message follows.
    LimitsFailed,
}

/// The longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 4096;

/// The length of an answer's header in bytes: a letter, and the length of what follows.
pub(super) const HEADER_LEN: usize = 9;

impl AnswerKind {
    const LETTERS: [(Self, u8); 5] = [
        (Self::Done, b'd'),
        (Self::Broken, b'b'),
        (Self::Panicked, b'p'),
        (Self::Unreadable, b'r'),
        (Self::LimitsFailed, b'l'),
    ];

    /// The header of an answer of `len` bytes.
    pub(super) fn header(self, len: u64) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let letter = Self::LETTERS.iter().find(|(kind, _)| *kind == self);
        header[0] = letter.map_or(0, |(_, letter)| *letter);
        header[1..].copy_from_slice(&len.to_le_bytes());
        header
    }

    /// Parses a header into the answer's kind and the length of what follows.
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
    fn jobs_and_answers_survive_the_round_trip() {
        for target in [
            Target::Converted { max_len: 20 << 20 },
            Target::Shrunk { max_len: 149_999 },
            Target::Square { side: 128 },
        ] {
            let job = Job {
                target,
                format: Format::WebP,
                width: 1,
                height: 2,
                orientation: Orientation::Rotate90,
                cost: 3,
                address_space: 4,
                cpu_seconds: 5,
            };
            assert_eq!(Job::parse(&job.to_args()[1..]), Some(job));
            assert_eq!(Job::parse(&job.to_args()), None);
        }
        for (kind, _) in AnswerKind::LETTERS {
            assert_eq!(AnswerKind::parse(kind.header(7)), Some((kind, 7)));
        }
        assert_eq!(AnswerKind::parse([0; HEADER_LEN]), None);
    }
}
