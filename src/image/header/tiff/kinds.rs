//! The kinds of compression, colours and samples in a TIFF. Unsupported kinds are refused with a
//! description that the client sees.

use super::{HeaderError, unsupported};

/// The compression of strips or tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Compression {
    None,
    /// One-dimensional CCITT Group 3: each row is compressed separately.
    Group3,
    /// CCITT Group 4.
    Group4,
    Lzw,
    Deflate,
    PackBits,
    Jpeg,
}

impl Compression {
    /// Converts the values of the tags Compression and T4Options.
    pub(super) fn from_tags(compression: u64, t4_options: u64) -> Result<Self, HeaderError> {
        const TWO_DIMENSIONAL: u64 = 1; // a bit of T4Options
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

    /// Whether the tag Predictor applies to this compression. Otherwise, the tag is ignored.
    pub(super) fn uses_predictors(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate)
    }

    pub(super) fn is_fax(self) -> bool {
        matches!(self, Self::Group3 | Self::Group4)
    }
}

/// The meaning of a pixel's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Color {
    Grey {
        /// Whether zero is white. Otherwise, zero is black.
        white_is_zero: bool,
    },
    Rgb,
    /// An index into the table ColorMap.
    Palette,
    Cmyk,
    /// YCbCr. It is supported only with JPEG compression. JPEG has only one kind of YCbCr, so the tags
    /// YCbCrCoefficients and ReferenceBlackWhite are ignored. libtiff ignores them, too, and lets libjpeg
    /// convert the colours.
    YCbCr,
}

impl Color {
    /// Converts the values of the tags PhotometricInterpretation and InkSet.
    pub(super) fn from_tags(photometric: u64, ink_set: u64) -> Result<Self, HeaderError> {
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

    /// The number of samples per pixel that contain the colour. Alpha and other extra samples follow them.
    pub(in crate::image) fn samples(self) -> u64 {
        match self {
            Self::Grey { .. } | Self::Palette => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Cmyk => 4,
        }
    }
}

/// The type of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Depth {
    /// An unsigned integer of 1, 2, 4, 8 or 16 bits.
    Bits(u32),
    /// A floating-point number of 32 bits, from 0 to 1.
    Float,
}

impl Depth {
    /// Converts the values of the tags BitsPerSample and SampleFormat. Each tag has one value for each
    /// sample, or one value for all samples. An absent tag has the value 1.
    ///
    /// SampleFormat 1 is unsigned integers, 2 is signed integers, 3 is floating-point numbers, and 5 and 6
    /// are complex numbers. 4 is "undefined", which libtiff reads as unsigned integers.
    pub(super) fn from_tags(
        bits: &[u64],
        formats: &[u64],
        color: Color,
    ) -> Result<Self, HeaderError> {
        let (bits, format) = match (common_value(bits, 1), common_value(formats, 1)) {
            (Some(bits), Some(format)) => (bits, format),
            _ => return Err(unsupported("a TIFF whose samples differ in kind or depth")),
        };
        // YCbCr is left out, because `check_combinations` accepts it only with 8 bits.
        let needs_whole_bytes = matches!(color, Color::Rgb | Color::Cmyk);
        Err(match (format, bits) {
            // Grey floating-point numbers are not supported: they are often temperatures or heights,
            // which are not from 0 to 1.
            (3, 32) if color == Color::Rgb => return Ok(Self::Float),
            (3, _) => unsupported("a TIFF of floating-point numbers that are not RGB of 32 bits"),
            (2, _) => unsupported("a TIFF of numbers with a sign"),
            (5 | 6, _) => unsupported("a TIFF of complex numbers"),
            (1 | 4, 8) => return Ok(Self::Bits(8)),
            (1 | 4, 1 | 2 | 4) if !needs_whole_bytes => return Ok(Self::Bits(bits as u32)),
            (1 | 4, 16) if color != Color::Palette => return Ok(Self::Bits(16)),
            (1 | 4, 1..=64) => unsupported("a TIFF with a rare number of bits a sample"),
            // The format is unknown, or the number of bits is impossible.
            _ => HeaderError::Damaged,
        })
    }

    /// The number of bits per sample.
    pub(in crate::image) fn bits(self) -> u64 {
        match self {
            Self::Bits(bits) => bits.into(),
            Self::Float => 32,
        }
    }
}

/// Returns the value that all `values` have in common, or `default` if there are no values. Returns
/// `None` if the values differ.
fn common_value(values: &[u64], default: u64) -> Option<u64> {
    let first = values.first().copied().unwrap_or(default);
    values.iter().all(|value| *value == first).then_some(first)
}

/// The transformation of samples before compression (TIFF 6.0, section 14, and Adobe's Technical Note 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Predictor {
    None,
    /// Each sample is stored as the difference from the corresponding sample of the pixel to the left.
    /// Floating-point numbers are subtracted as if their bits were integers.
    Difference,
    /// The bytes of a row's floating-point numbers are reordered: first the most significant byte of
    /// each number, then the next byte of each number, and so on. In this order, each byte is then stored
    /// as the difference from the byte `n` bytes before it. `n` is 1 if each sample has its own plane,
    /// otherwise the number of samples per pixel.
    FloatDifference,
}

impl Predictor {
    /// Converts the value of the tag Predictor.
    pub(super) fn from_tag(predictor: u64, depth: Depth) -> Result<Self, HeaderError> {
        match (predictor, depth) {
            (1, _) => Ok(Self::None),
            (2, Depth::Bits(8 | 16) | Depth::Float) => Ok(Self::Difference),
            (2, _) => Err(unsupported("a TIFF with a predictor for samples of less than a byte")),
            (3, Depth::Float) => Ok(Self::FloatDifference),
            _ => Err(HeaderError::Damaged),
        }
    }
}

/// The sample that contains the opacity of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Alpha {
    /// The index of this sample in the pixel.
    pub(in crate::image) at: u64,
    /// Whether the colours are already multiplied by alpha.
    pub(in crate::image) is_associated: bool,
}

impl Alpha {
    /// Converts the values of the tag ExtraSamples. `samples` is the number of samples per pixel, with the
    /// extra ones. Extra samples of an unknown kind are ignored. `None` means that the picture is opaque.
    pub(super) fn from_tags(
        extra_samples: &[u64],
        color: Color,
        samples: u64,
    ) -> Result<Option<Self>, HeaderError> {
        const ASSOCIATED: u64 = 1;
        const UNASSOCIATED: u64 = 2;
        const COREL_DRAW: u64 = 999; // CorelDRAW's value for UNASSOCIATED, according to Pillow
        let first_extra = color.samples();
        // Many programs write RGB with alpha, but without the tag ExtraSamples.
        if color == Color::Rgb && samples == 4 && extra_samples.is_empty() {
            return Ok(Some(Self { at: first_extra, is_associated: false }));
        }
        let alpha = (first_extra..samples).zip(extra_samples).find_map(|(at, kind)| match *kind {
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
