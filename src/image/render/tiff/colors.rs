//! Converts the colours of a TIFF to RGB, and blends transparent pixels onto white.

use std::io;

use crate::image::{
    Reader,
    header::tiff::{
        Tiff,
        kinds::{Alpha, Color},
    },
};

/// Converts pixels of 8-bit samples to RGB. A pixel consists of the samples of its colour, then alpha if
/// there is any. The result reuses the buffer.
pub(super) fn into_rgb(
    tiff: &Tiff,
    reader: &mut Reader,
    mut pixels: Vec<u8>,
) -> io::Result<Vec<u8>> {
    if (tiff.color, tiff.alpha) == (Color::Rgb, None) {
        return Ok(pixels);
    }
    let palette = read_palette(tiff, reader)?;
    let color_len = tiff.color.samples() as usize;
    let pixel_len = color_len + usize::from(tiff.alpha.is_some());
    let pixel_count = pixels.len() / pixel_len;
    let rgb_of_pixel = |pixels: &[u8], index: usize| {
        let pixel = &pixels[index * pixel_len..][..pixel_len];
        let color = color_to_rgb(tiff.color, &palette, &pixel[..color_len]);
        match tiff.alpha {
            Some(alpha) => onto_white(color, pixel[color_len], alpha),
            None => color,
        }
    };
    if pixel_len < 3 {
        // Each pixel grows to three bytes. The last one is converted first, so that no pixel is
        // overwritten before it is read.
        pixels.resize(pixel_count * 3, 0);
        for index in (0..pixel_count).rev() {
            let rgb = rgb_of_pixel(&pixels, index);
            pixels[index * 3..][..3].copy_from_slice(&rgb);
        }
    } else {
        for index in 0..pixel_count {
            let rgb = rgb_of_pixel(&pixels, index);
            pixels[index * 3..][..3].copy_from_slice(&rgb);
        }
        pixels.truncate(pixel_count * 3);
        pixels.shrink_to_fit();
    }
    Ok(pixels)
}

/// Returns the colour for each value of an 8-bit sample, or no colours if the picture has no palette. A
/// sample is an index that was scaled to 8 bits. The index refers to the stored palette.
fn read_palette(tiff: &Tiff, reader: &mut Reader) -> io::Result<Vec<[u8; 3]>> {
    let Some(map) = tiff.color_map else { return Ok(Vec::new()) };
    let map = map.read(reader, tiff.order, map.count)?;
    // The values have 16 bits, but some programs wrote 8-bit values. libtiff recognizes such values in
    // the same way.
    let shift = if map.iter().all(|value| *value < 256) { 0 } else { 8 };
    // The map contains all reds, then all greens, then all blues.
    let color_count = map.len() / 3;
    let color =
        |index| [0, 1, 2].map(|channel| (map[channel * color_count + index] >> shift) as u8);
    // Scaling to 8 bits has multiplied each index by this factor. A palette has 2, 4, 16 or 256 colours:
    // `header::tiff` refuses all others.
    let factor = 255 / (color_count - 1);
    Ok((0..=255).map(|sample| color(sample / factor)).collect())
}

/// Converts a colour, without alpha. The number of `samples` must match the kind of colour.
fn color_to_rgb(color: Color, palette: &[[u8; 3]], samples: &[u8]) -> [u8; 3] {
    match (color, samples) {
        (Color::Grey { white_is_zero }, [grey]) => [if white_is_zero { !grey } else { *grey }; 3],
        (Color::Palette, [index]) => palette.get(usize::from(*index)).copied().unwrap_or_default(),
        (Color::Rgb, [red, green, blue]) => [*red, *green, *blue],
        (Color::YCbCr, [y, cb, cr]) => from_ycbcr(*y, *cb, *cr),
        (Color::Cmyk, [inks @ .., black]) => {
            let inks = [inks[0], inks[1], inks[2]];
            inks.map(|ink| scale(!ink, !black))
        }
        _ => [0; 3],
    }
}

/// Converts the YCbCr of JPEG (JFIF 1.02, and ITU-R BT.601 with full range) in the same way as libjpeg:
/// with factors that are multiplied by 2^16.
fn from_ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let round = |scaled: i32| (scaled + (1 << 15)) >> 16;
    let red = y + round(91_881 * cr);
    let green = y + round(-22_554 * cb - 46_802 * cr);
    let blue = y + round(116_130 * cb);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}

/// Blends a colour onto white. `opacity` is the pixel's alpha sample, and `alpha` says whether the
/// colour is already multiplied by it.
fn onto_white(color: [u8; 3], opacity: u8, alpha: Alpha) -> [u8; 3] {
    color.map(|value| {
        let value = if alpha.is_associated { value } else { scale(value, opacity) };
        value.saturating_add(!opacity)
    })
}

/// Returns `value * factor / 255`, rounded.
fn scale(value: u8, factor: u8) -> u8 {
    ((u16::from(value) * u16::from(factor) + 127) / 255) as u8
}
