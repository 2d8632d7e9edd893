//! Colours as RGB, transparency onto white.

use std::io;

use crate::image::{
    Reader,
    header::tiff::{
        Tiff,
        kinds::{Alpha, Color},
    },
};

/// Makes RGB of pixels that are a colour's samples and alpha, in the memory that they have where it is
/// enough.
pub(super) fn into_rgb(
    tiff: &Tiff,
    reader: &mut Reader,
    mut pixels: Vec<u8>,
) -> io::Result<Vec<u8>> {
    if (tiff.color, tiff.alpha) == (Color::Rgb, None) {
        return Ok(pixels);
    }
    let palette = palette(tiff, reader)?;
    let colors = tiff.color.samples() as usize;
    let stored = colors + usize::from(tiff.alpha.is_some());
    let count = pixels.len() / stored;
    let rgb = |pixels: &[u8], n: usize| {
        let pixel = &pixels[n * stored..][..stored];
        let color = opaque(tiff.color, &palette, &pixel[..colors]);
        match tiff.alpha {
            Some(alpha) => onto_white(color, pixel[colors], alpha),
            None => color,
        }
    };
    if stored < 3 {
        // From the end on, so that nothing is overwritten before it is read.
        pixels.resize(count * 3, 0);
        for n in (0..count).rev() {
            let rgb = rgb(&pixels, n);
            pixels[n * 3..][..3].copy_from_slice(&rgb);
        }
    } else {
        for n in 0..count {
            let rgb = rgb(&pixels, n);
            pixels[n * 3..][..3].copy_from_slice(&rgb);
        }
        pixels.truncate(count * 3);
        pixels.shrink_to_fit();
    }
    Ok(pixels)
}

/// The colours that a palette's numbers stand for, which were scaled to 8 bits as all samples are; none,
/// where there is no palette.
fn palette(tiff: &Tiff, reader: &mut Reader) -> io::Result<Vec<[u8; 3]>> {
    let Some(map) = tiff.color_map else { return Ok(Vec::new()) };
    let map = map.read(reader, tiff.order, map.count)?;
    // 16 bits each; some writers used 8, as libtiff knows.
    let shift = if map.iter().all(|value| *value < 256) { 0 } else { 8 };
    // All the reds, then the greens, then the blues.
    let count = map.len() / 3;
    let step = 255 / (count - 1);
    let color = |n| [0, 1, 2].map(|channel| (map[channel * count + n] >> shift) as u8);
    Ok((0..=255).map(|scaled| color(scaled / step)).collect())
}

fn opaque(color: Color, palette: &[[u8; 3]], samples: &[u8]) -> [u8; 3] {
    match (color, samples) {
        (Color::Grey { white_is_zero }, [grey]) => [if white_is_zero { !grey } else { *grey }; 3],
        (Color::Palette, [number]) => {
            palette.get(usize::from(*number)).copied().unwrap_or_default()
        }
        (Color::Rgb, [red, green, blue]) => [*red, *green, *blue],
        (Color::YCbCr, [y, cb, cr]) => from_ycbcr(*y, *cb, *cr),
        (Color::Cmyk, [inks @ .., black]) => {
            let inks = [inks[0], inks[1], inks[2]];
            inks.map(|ink| part(!ink, !black))
        }
        _ => [0; 3],
    }
}

/// As JPEG has it (JFIF 1.02; ITU-R BT.601, full range), in libjpeg's arithmetic.
fn from_ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let round = |scaled: i32| (scaled + (1 << 15)) >> 16;
    let red = y + round(91_881 * cr);
    let green = y + round(-22_554 * cb - 46_802 * cr);
    let blue = y + round(116_130 * cb);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}

fn onto_white(color: [u8; 3], opaque: u8, alpha: Alpha) -> [u8; 3] {
    color.map(|value| {
        let value = if alpha.is_associated { value } else { part(value, opaque) };
        value.saturating_add(!opaque)
    })
}

/// So many 255ths of a value.
fn part(value: u8, of_255: u8) -> u8 {
    ((u16::from(value) * u16::from(of_255) + 127) / 255) as u8
}
