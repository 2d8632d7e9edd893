//! Decodes TIFF. Libraries decompress the strips and tiles. This module and its submodules do
//! everything else.
//!
//! The `tiff` crate, which the `image` crate uses, is not used: it supports no palettes, ignores
//! FillOrder, applies predictors incorrectly if a pixel has extra samples, and panics if separate
//! planes consist of tiles that extend beyond the picture.

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
    /// The index of the plane. It is zero unless each sample has a plane of its own.
    plane: u64,
    /// The position of the chunk's upper left pixel in the picture.
    x: u32,
    y: u32,
    /// The size of the part that lies within the picture, in pixels.
    columns: u32,
    rows: u32,
    /// The position and length of the chunk's data in the file, in bytes. `offset + len` is not beyond
    /// the end of the file, unless `offset` is.
    offset: u64,
    len: u64,
}

/// Decodes the first picture of the file without applying the orientation, and blends it onto white.
pub(super) fn decode(picture: &Picture) -> Result<RgbImage, Error> {
    let tiff = header::read_bounded(picture.format, &picture.content, tiff::read)?;
    let mut reader = picture.content.reader();
    // `image::probe` has read `picture`'s size from the same header. So the sizes differ only if the file
    // was changed since then.
    if (tiff.width, tiff.height) != (picture.width, picture.height) {
        return Err(broken("its size differs from its header"));
    }
    let rgb = read_pixels(&tiff, &mut reader, picture.content.len())
        .and_then(|pixels| colors::into_rgb(&tiff, &mut reader, pixels));
    match rgb {
        Ok(rgb) => RgbImage::from_raw(tiff.width, tiff.height, rgb)
            .ok_or_else(|| broken("it has too few pixels")),
        // The error comes from the operating system, so the disk failed.
        Err(error) if error.raw_os_error().is_some() => Err(Error::Unreadable(error)),
        Err(error) => Err(broken(&error.to_string())),
    }
}

fn broken(reason: &str) -> Error {
    Error::Broken { format: Format::Tiff, reason: reason.into() }
}

/// The indices of the samples that are needed: those of the colour, and alpha. A pixel may have other
/// samples, which are skipped.
fn needed_sample_indices(tiff: &Tiff) -> Vec<u64> {
    (0..tiff.color.samples()).chain(tiff.alpha.map(|alpha| alpha.at)).collect()
}

/// Reads the needed samples of every pixel, and scales them to 8 bits.
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
    // Each value is one byte of the tables.
    let jpeg_tables: Vec<u8> = jpeg_tables.into_iter().map(|byte| byte as u8).collect();
    let needed_samples = needed_sample_indices(tiff);
    let mut pixels = vec![0; tiff.width as usize * tiff.height as usize * needed_samples.len()];
    let chunks_per_plane = u64::from(chunks.across) * u64::from(chunks.down);
    for (index, (offset, len)) in (0..).zip(offsets.into_iter().zip(lengths)) {
        let index_in_plane = index % chunks_per_plane;
        // The products do not overflow: `x` is less than the picture's width, and `y` less than its
        // height.
        let x = (index_in_plane % u64::from(chunks.across)) as u32 * chunks.width;
        let y = (index_in_plane / u64::from(chunks.across)) as u32 * chunks.height;
        let chunk = Chunk {
            plane: index / chunks_per_plane,
            x,
            y,
            columns: chunks.width.min(tiff.width - x),
            rows: chunks.height.min(tiff.height - y),
            offset,
            // Zero means that the length is unknown. The chunk is then read to the end of the file.
            len: if len == 0 { u64::MAX } else { len }.min(file_len.saturating_sub(offset)),
        };
        read_chunk(tiff, &jpeg_tables, &chunk, reader, &needed_samples, &mut pixels)?;
    }
    Ok(pixels)
}

/// Reads the needed samples of a strip or a tile into `pixels`, which contains the whole picture.
fn read_chunk(
    tiff: &Tiff,
    jpeg_tables: &[u8],
    chunk: &Chunk,
    reader: &mut Reader,
    needed_samples: &[u64],
    pixels: &mut [u8],
) -> io::Result<()> {
    // For each sample to copy: its index in a pixel of the chunk, and its index in a pixel of the
    // output.
    let needed_samples_and_targets = needed_samples.iter().copied().zip(0..);
    let copied_samples: Vec<(usize, usize)> = if tiff.chunks.planes > 1 {
        let in_this_plane = needed_samples_and_targets.filter(|(from, _)| *from == chunk.plane);
        // In a plane, a pixel has only one sample.
        in_this_plane.map(|(_, to)| (0, to)).collect()
    } else {
        needed_samples_and_targets.map(|(from, to)| (from as usize, to)).collect()
    };
    if copied_samples.is_empty() {
        return Ok(());
    }
    let stored_samples_per_pixel = tiff.samples_of_a_pixel_in_one_chunk();
    let can_copy_whole_pixels = stored_samples_per_pixel == needed_samples.len() as u64;

    let bits_per_pixel = stored_samples_per_pixel * tiff.depth.bits();
    let row_len = (u64::from(tiff.chunks.width) * bits_per_pixel).div_ceil(8);
    let visible_len = (u64::from(chunk.columns) * bits_per_pixel).div_ceil(8);
    // This predictor distributes the bytes of a sample over the whole row.
    let needs_whole_row = tiff.predictor == Predictor::FloatDifference;
    let read_len = if needs_whole_row { row_len } else { visible_len };
    let mut row = vec![0; usize::try_from(read_len).map_err(io::Error::other)?];
    let mut samples = Vec::new();
    let mut stored_rows = codec::rows(tiff, jpeg_tables, chunk, reader)?;
    for y in 0..chunk.rows {
        if y > 0 {
            // Skip the part of the previous row that lies outside the picture.
            io::copy(&mut stored_rows.by_ref().take(row_len - read_len), &mut io::sink())?;
        }
        stored_rows.read_exact(&mut row)?;
        samples::undo_predictor(tiff, &mut row);
        samples::to_bytes(tiff, &row, &mut samples);

        let first_pixel = (chunk.y + y) as usize * tiff.width as usize + chunk.x as usize;
        let end_pixel = first_pixel + chunk.columns as usize;
        let pixel_len = needed_samples.len();
        let output = &mut pixels[first_pixel * pixel_len..end_pixel * pixel_len];
        if can_copy_whole_pixels {
            output.copy_from_slice(&samples[..output.len()]);
            continue;
        }
        let stored_pixels = samples.chunks_exact(stored_samples_per_pixel as usize);
        for (pixel, stored_pixel) in output.chunks_exact_mut(pixel_len).zip(stored_pixels) {
            for (from, to) in &copied_samples {
                pixel[*to] = stored_pixel[*from];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
