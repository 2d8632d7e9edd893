//! What the two processes agree on: the job as arguments, and the first bytes of the answer.

use crate::image::{Format, Orientation, Target};

/// The hidden command.
pub(super) const COMMAND: &str = "decode";

/// What a child is to do, and what it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) target: Target,
    pub(super) format: Format,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    /// What decoding should take, in bytes.
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

    /// The job of these arguments, the command itself left out.
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

/// What a child says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What it rendered follows.
    Done,
    /// The picture cannot be decoded; the reason follows.
    Broken,
    /// A decoder panicked; its words follow.
    Panicked,
    /// The picture's bytes cannot be read; the system's words follow.
    Unreadable,
    /// It could not limit itself, and did nothing; the system's words follow.
    Unlimited,
}

/// How long words may be, in bytes.
pub(super) const MAX_WORDS: usize = 4096;

/// How long the head of an answer is, in bytes: a letter, and the length of what follows.
pub(super) const HEAD: usize = 9;

impl Kind {
    const LETTERS: [(Self, u8); 5] = [
        (Self::Done, b'd'),
        (Self::Broken, b'b'),
        (Self::Panicked, b'p'),
        (Self::Unreadable, b'r'),
        (Self::Unlimited, b'l'),
    ];

    /// The head of an answer.
    pub(super) fn head(self, len: u64) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let letter = Self::LETTERS.iter().find(|(kind, _)| *kind == self);
        head[0] = letter.map_or(0, |(_, letter)| *letter);
        head[1..].copy_from_slice(&len.to_le_bytes());
        head
    }

    /// Reads a head: what it says, and the length of what follows.
    pub(super) fn parse(head: [u8; HEAD]) -> Option<(Self, u64)> {
        let [letter, len @ ..] = head;
        let (kind, _) = Self::LETTERS.into_iter().find(|(_, known)| *known == letter)?;
        Some((kind, u64::from_le_bytes(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_and_an_answer_come_out_as_they_went_in() {
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
        for (kind, _) in Kind::LETTERS {
            assert_eq!(Kind::parse(kind.head(7)), Some((kind, 7)));
        }
        assert_eq!(Kind::parse([0; HEAD]), None);
    }
}
