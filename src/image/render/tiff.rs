//! Decodes TIFF.
//!
//! Libraries undo the compressions. The TIFF library that `image` comes with is none of them: it knows
//! no palettes, passes over FillOrder, undoes predictors wrongly beside samples that are left out, and
//! panics where separate planes are cut into tiles that do not fill them.

use std::io::{self, Read};

use image_rs::RgbImage;

use crate::image::{
    Error, Format, Picture, Reader,
    header::{
        self,
        tiff::{self, Tiff, kinds::Predictor},
    },
};

mod codec;
mod colors;
mod samples;

/// A strip or a tile.
struct Chunk {
    /// Which plane it is of, where each sample has one.
    plane: u64,
    /// Its first pixel in the picture.
    x: u32,
    y: u32,
    /// How much of it lies in the picture.
    columns: u32,
    rows: u32,
    /// Where it stands in the file.
    offset: u64,
    len: u64,
}

/// Decodes the first picture of the file as it is stored, transparency onto white.
pub(super) fn decode(picture: &Picture) -> Result<RgbImage, Error> {
    let tiff = header::read_bounded(picture.format, &picture.content, tiff::read)?;
    let mut reader = picture.content.reader();
    if (tiff.width, tiff.height) != (picture.width, picture.height) {
        return Err(broken("its header tells another size"));
    }
    let rgb = read_pixels(&tiff, &mut reader, picture.content.len())
        .and_then(|pixels| colors::into_rgb(&tiff, &mut reader, pixels));
    match rgb {
        Ok(rgb) => RgbImage::from_raw(tiff.width, tiff.height, rgb)
            .ok_or_else(|| broken("it has too few pixels")),
        // The system's own word: it is the disk that fails.
        Err(error) if error.raw_os_error().is_some() => Err(Error::Unreadable(error)),
        Err(error) => Err(broken(&error.to_string())),
    }
}

fn broken(reason: &str) -> Error {
    Error::Broken { format: Format::Tiff, reason: reason.into() }
}

/// The samples that a pixel's colour is made of, and alpha: their places among all of a pixel's.
fn wanted(tiff: &Tiff) -> Vec<u64> {
    (0..tiff.color.samples()).chain(tiff.alpha.map(|alpha| alpha.at)).collect()
}

/// Reads those samples, pixel by pixel, each made 8 bits.
fn read_pixels(tiff: &Tiff, reader: &mut Reader, file_len: u64) -> io::Result<Vec<u8>> {
    let chunks = &tiff.chunks;
    let offsets = chunks.offsets.read(reader, tiff.order, chunks.count())?;
    let lengths = match chunks.lengths {
        Some(lengths) => lengths.read(reader, tiff.order, chunks.count())?,
        None => vec![u64::MAX; offsets.len()], // up to the end of the file
    };
    let jpeg_tables = match tiff.jpeg_tables {
        Some(tables) => tables.read(reader, tiff.order, tables.count)?,
        None => Vec::new(),
    };
    let jpeg_tables: Vec<u8> = jpeg_tables.into_iter().map(|byte| byte as u8).collect();
    let wanted = wanted(tiff);
    let mut pixels = vec![0; tiff.width as usize * tiff.height as usize * wanted.len()];
    let across_down = u64::from(chunks.across) * u64::from(chunks.down);
    for (n, (offset, len)) in (0..).zip(offsets.into_iter().zip(lengths)) {
        // Both are less than the picture's sides.
        let x = (n % across_down % u64::from(chunks.across)) as u32 * chunks.width;
        let y = (n % across_down / u64::from(chunks.across)) as u32 * chunks.height;
        let chunk = Chunk {
            plane: n / across_down,
            x,
            y,
            columns: chunks.width.min(tiff.width - x),
            rows: chunks.height.min(tiff.height - y),
            offset,
            // Where no length is told, up to the end of the file.
            len: if len == 0 { u64::MAX } else { len }.min(file_len.saturating_sub(offset)),
        };
        read_chunk(tiff, &jpeg_tables, &chunk, reader, &wanted, &mut pixels)?;
    }
    Ok(pixels)
}

/// Reads what is wanted of a strip or a tile.
fn read_chunk(
    tiff: &Tiff,
    jpeg_tables: &[u8],
    chunk: &Chunk,
    reader: &mut Reader,
    wanted: &[u64],
    pixels: &mut [u8],
) -> io::Result<()> {
    let together = tiff.samples_per_chunk_pixel();
    // From which place here to which place in a pixel.
    let places = wanted.iter().enumerate().map(|(to, from)| (*from, to));
    let places: Vec<(usize, usize)> = if tiff.chunks.planes > 1 {
        places.filter(|(from, _)| *from == chunk.plane).map(|(_, to)| (0, to)).collect()
    } else {
        places.map(|(from, to)| (from as usize, to)).collect()
    };
    if places.is_empty() {
        return Ok(());
    }
    let is_all = together == wanted.len() as u64;

    let bits = together * tiff.depth.bits();
    let whole = (u64::from(tiff.chunks.width) * bits).div_ceil(8);
    let shown = (u64::from(chunk.columns) * bits).div_ceil(8);
    let needed = if tiff.predictor == Predictor::FloatDifference { whole } else { shown };
    let mut row = vec![0; usize::try_from(needed).map_err(io::Error::other)?];
    let mut samples = Vec::new();
    let mut rows = codec::rows(tiff, jpeg_tables, chunk, reader)?;
    for y in 0..chunk.rows {
        if y > 0 {
            io::copy(&mut rows.by_ref().take(whole - needed), &mut io::sink())?;
        }
        rows.read_exact(&mut row)?;
        samples::undo_predictor(tiff, &mut row);
        samples::to_bytes(tiff, &row, &mut samples);

        let first = (chunk.y + y) as usize * tiff.width as usize + chunk.x as usize;
        let line = first * wanted.len()..(first + chunk.columns as usize) * wanted.len();
        let line = &mut pixels[line];
        if is_all {
            line.copy_from_slice(&samples[..line.len()]);
            continue;
        }
        let pairs =
            line.chunks_exact_mut(wanted.len()).zip(samples.chunks_exact(together as usize));
        for (pixel, samples) in pairs {
            for (from, to) in &places {
                pixel[*to] = samples[*from];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
