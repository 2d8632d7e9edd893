//! How pixels are stored in a TIFF. What is not read is named, in words for whoever sent it.

use super::{Fault, unsupported};

/// How a strip or a tile is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Compression {
    None,
    /// CCITT Group 3, each row for itself.
    Group3,
    Group4,
    Lzw,
    Deflate,
    PackBits,
    Jpeg,
}

impl Compression {
    /// By the tags Compression and T4Options.
    pub(super) fn from_tags(compression: u64, t4_options: u64) -> Result<Self, Fault> {
        const TWO_DIMENSIONAL: u64 = 1;
        Err(unsupported(match compression {
            1 => return Ok(Self::None),
            3 if t4_options & TWO_DIMENSIONAL == 0 => return Ok(Self::Group3),
            4 => return Ok(Self::Group4),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32_946 => return Ok(Self::Deflate),
            32_773 => return Ok(Self::PackBits),
            2 | 32_771 => "a TIFF with fax compression of the oldest kind (modified Huffman)",
            3 => "a TIFF with fax compression of two dimensions (Group 3, modified READ)",
            6 => "a TIFF with JPEG compression of the old kind",
            9 | 10 | 34_661 | 34_715 => "a TIFF with JBIG compression",
            33_003..=33_005 | 34_712 => "a TIFF with JPEG 2000 compression",
            34_887 => "a TIFF with LERC compression",
            34_925 => "a TIFF with LZMA compression",
            34_926 | 50_000 => "a TIFF with Zstandard compression",
            34_927 | 50_001 => "a TIFF with WebP compression",
            50_002 | 52_546 => "a TIFF with JPEG XL compression",
            _ => "a TIFF with a rare compression",
        }))
    }

    /// Whether the tag Predictor counts.
    pub(super) fn knows_predictors(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate)
    }

    pub(super) fn is_fax(self) -> bool {
        matches!(self, Self::Group3 | Self::Group4)
    }
}

/// What the samples of a pixel mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Color {
    Grey {
        white_is_zero: bool,
    },
    Rgb,
    /// A number in the table ColorMap.
    Palette,
    Cmyk,
    /// In a JPEG, which knows one kind of it alone: YCbCrCoefficients and ReferenceBlackWhite do not
    /// count (as with libtiff, which leaves it to libjpeg).
    YCbCr,
}

impl Color {
    /// By the tags PhotometricInterpretation and InkSet.
    pub(super) fn from_tags(photometric: u64, ink_set: u64) -> Result<Self, Fault> {
        const CMYK: u64 = 1;
        Err(unsupported(match photometric {
            0 | 1 => return Ok(Self::Grey { white_is_zero: photometric == 0 }),
            2 => return Ok(Self::Rgb),
            3 => return Ok(Self::Palette),
            5 if ink_set == CMYK => return Ok(Self::Cmyk),
            6 => return Ok(Self::YCbCr),
            4 => "a TIFF that is a transparency mask",
            5 => "a TIFF of inks that are not CMYK",
            8..=10 => "a TIFF in L*a*b* colours",
            32_803 | 34_892 => "a TIFF of a camera's raw pixels",
            32_844 | 32_845 => "a TIFF in LogLuv colours",
            _ => "a TIFF in rare colours",
        }))
    }

    /// How many samples it has, without alpha.
    pub(in crate::image) fn samples(self) -> u64 {
        match self {
            Self::Grey { .. } | Self::Palette => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Cmyk => 4,
        }
    }
}

/// What a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Depth {
    /// A whole number of 1, 2, 4, 8 or 16 bits.
    Bits(u32),
    /// A floating-point number of 32 bits, from 0 to 1.
    Float,
}

impl Depth {
    /// By the tags BitsPerSample and SampleFormat, each with a value for each sample or one for all.
    pub(super) fn from_tags(bits: &[u64], formats: &[u64], color: Color) -> Result<Self, Fault> {
        let (bits, format) = match (one(bits, 1), one(formats, 1)) {
            (Some(bits), Some(format)) => (bits, format),
            _ => return Err(unsupported("a TIFF whose samples differ in kind or depth")),
        };
        let is_deep = matches!(color, Color::Rgb | Color::Cmyk);
        Err(match (format, bits) {
            // What a photograph is from 0 to 1 is temperatures or heights in a grey file.
            (3, 32) if color == Color::Rgb => return Ok(Self::Float),
            (3, _) => unsupported("a TIFF of floating-point numbers that are not RGB of 32 bits"),
            (2, _) => unsupported("a TIFF of numbers with a sign"),
            (5 | 6, _) => unsupported("a TIFF of complex numbers"),
            // 4 is "undefined": whole numbers, as with libtiff.
            (1 | 4, 8) => return Ok(Self::Bits(8)),
            (1 | 4, 1 | 2 | 4) if !is_deep => return Ok(Self::Bits(bits as u32)),
            (1 | 4, 16) if color != Color::Palette => return Ok(Self::Bits(16)),
            (1 | 4, 1..=64) => unsupported("a TIFF with a rare number of bits a sample"),
            _ => Fault::Damaged,
        })
    }

    /// In bits.
    pub(in crate::image) fn bits(self) -> u64 {
        match self {
            Self::Bits(bits) => bits.into(),
            Self::Float => 32,
        }
    }
}

/// The value that all have.
fn one(values: &[u64], otherwise: u64) -> Option<u64> {
    let first = values.first().copied().unwrap_or(otherwise);
    values.iter().all(|value| *value == first).then_some(first)
}

/// What is stored instead of each sample (section 14, and Adobe's Technical Note 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Predictor {
    None,
    /// The difference from the pixel to the left.
    Difference,
    /// The same of floating-point numbers' bytes, the highest of a whole row first.
    FloatDifference,
}

impl Predictor {
    pub(super) fn from_tag(predictor: u64, depth: Depth) -> Result<Self, Fault> {
        match (predictor, depth) {
            (1, _) => Ok(Self::None),
            (2, Depth::Bits(8 | 16) | Depth::Float) => Ok(Self::Difference),
            (2, _) => Err(unsupported("a TIFF with a predictor for samples of less than a byte")),
            (3, Depth::Float) => Ok(Self::FloatDifference),
            _ => Err(Fault::Damaged),
        }
    }
}

/// Which sample of a pixel is how opaque it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Alpha {
    /// Its place.
    pub(in crate::image) at: u64,
    /// Whether the colours are multiplied by it already.
    pub(in crate::image) is_associated: bool,
}

impl Alpha {
    /// By the tag ExtraSamples, of a pixel with so many samples. What is of no known kind is left out.
    pub(super) fn from_tags(
        extra: &[u64],
        color: Color,
        samples: u64,
    ) -> Result<Option<Self>, Fault> {
        const ASSOCIATED: u64 = 1;
        const UNASSOCIATED: u64 = 2;
        const COREL_DRAW: u64 = 999; // the same, as Pillow knows
        let first = color.samples();
        // Many writers forget to say what the fourth sample of RGB is.
        if color == Color::Rgb && samples == 4 && extra.is_empty() {
            return Ok(Some(Self { at: first, is_associated: false }));
        }
        let alpha = (first..samples).zip(extra).find_map(|(at, kind)| match *kind {
            ASSOCIATED => Some(Self { at, is_associated: true }),
            UNASSOCIATED | COREL_DRAW => Some(Self { at, is_associated: false }),
            _ => None,
        });
        if alpha.is_some() && color == Color::Cmyk {
            return Err(unsupported("a TIFF in CMYK with transparency"));
        }
        Ok(alpha)
    }
}
