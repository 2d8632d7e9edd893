//! The sample pictures of sandbox mode: a photograph, a copy of it that is cropped and darker, and
//! a drawn landscape.
//!
//! With these, people who have no pictures at hand can see that similar pictures have similar
//! vectors. The copy and the landscape are made when they are first requested, so that the program
//! contains only one picture.

use std::{io::Cursor, sync::OnceLock};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use image_rs::{ImageError, Rgb, RgbImage, codecs::jpeg::JpegEncoder, imageops};
use tokio::task::spawn_blocking;

/// The path of the photograph.
pub(super) const PHOTO_PATH: &str = "/sandbox/photo.jpg";
/// The path of the copy.
const COPY_PATH: &str = "/sandbox/photo-cropped-and-darker.jpg";
/// The path of the landscape.
const LANDSCAPE_PATH: &str = "/sandbox/landscape.jpg";

/// The photograph.
pub(crate) const PHOTO: &[u8] = include_bytes!("../../tests/fixtures/rocket.jpg");

/// The width and the height of the landscape, in pixels. The photograph has the same size.
const SIZE: (u32, u32) = (640, 427);
/// The copy lacks `width / CROP_DIVISOR` pixels of the photograph on the left and on the right, and
/// `height / CROP_DIVISOR` pixels at the top and at the bottom.
const CROP_DIVISOR: u32 = 50;
/// The factors of red, green and blue that make the copy darker and warmer.
const LIGHT: [f32; 3] = [0.85, 0.78, 0.70];
/// The JPEG quality of the copy and the landscape, from 1 to 100.
const QUALITY: u8 = 85;

/// The routes of the three pictures. Without a network, the service can fetch these pictures from itself.
pub fn router() -> Router {
    static COPY: OnceLock<Bytes> = OnceLock::new();
    static LANDSCAPE: OnceLock<Bytes> = OnceLock::new();
    Router::new()
        .route(PHOTO_PATH, get(async || jpeg(Bytes::from_static(PHOTO))))
        .route(COPY_PATH, get(|| cached_picture(&COPY, copy)))
        .route(LANDSCAPE_PATH, get(|| cached_picture(&LANDSCAPE, || encode(&landscape()))))
}

fn jpeg(bytes: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "image/jpeg")], bytes).into_response()
}

/// Responds with the picture in `made`. If `made` is empty, makes the picture first, on another thread.
/// Requests at the same time may each make it. The first result is kept.
async fn cached_picture(
    made: &'static OnceLock<Bytes>,
    make: fn() -> Result<Bytes, ImageError>,
) -> Response {
    if let Some(bytes) = made.get() {
        return jpeg(bytes.clone());
    }
    match spawn_blocking(make).await {
        Ok(Ok(bytes)) => jpeg(made.get_or_init(|| bytes).clone()),
        Ok(Err(error)) => internal_error(&error),
        Err(error) => internal_error(&error),
    }
}

fn internal_error(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "a sample picture cannot be made");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

fn encode(picture: &RgbImage) -> Result<Bytes, ImageError> {
    let mut output = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut output, QUALITY).encode_image(picture)?;
    Ok(output.into_inner().into())
}

/// Crops the photograph a little on each side, and makes it darker and warmer.
fn copy() -> Result<Bytes, ImageError> {
    let photo = image_rs::load_from_memory(PHOTO)?.into_rgb8();
    let (width, height) = photo.dimensions();
    // The strips on the right and at the bottom are as wide as these.
    let (left, top) = (width / CROP_DIVISOR, height / CROP_DIVISOR);
    let mut copy =
        imageops::crop_imm(&photo, left, top, width - 2 * left, height - 2 * top).to_image();
    for Rgb(channels) in copy.pixels_mut() {
        for (channel, factor) in channels.iter_mut().zip(LIGHT) {
            *channel = (f32::from(*channel) * factor) as u8;
        }
    }
    encode(&copy)
}

/// Draws green hills under a blue sky with a sun.
fn landscape() -> RgbImage {
    let (width, height) = SIZE;
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        let sky = mix([72.0, 145.0, 222.0], [214.0, 234.0, 248.0], y / 0.7);
        // The picture is about 1.5 times as wide as it is high. The factor makes the sun a circle.
        let from_sun = ((x - 0.74) * 1.5).hypot(y - 0.24);
        let sky_with_sun = mix([255.0, 244.0, 190.0], sky, (from_sun - 0.085) / 0.06);
        // Where a hill's edge is at `x`, from 0 at the top of the picture to 1 at the bottom.
        let edge = |level: f32, wave: f32, shift: f32| level + 0.07 * (wave * x + shift).sin();
        let (far, middle, near) =
            (edge(0.56, 7.0, 0.4), edge(0.68, 5.0, 2.2), edge(0.84, 4.0, 5.0));
        // Each hill gets darker downwards from its edge. The factor 300 blends the edge over about
        // 1.5 pixels, so that it is not jagged.
        let with_hill = |behind: [f32; 3], hill_edge: f32, color: [f32; 3]| {
            let dark = color.map(|channel| channel * 0.72);
            mix(behind, mix(color, dark, y - hill_edge), (y - hill_edge) * 300.0)
        };
        let color = with_hill(sky_with_sun, far, [126.0, 178.0, 164.0]);
        let color = with_hill(color, middle, [92.0, 160.0, 96.0]);
        let color = with_hill(color, near, [58.0, 122.0, 62.0]);
        Rgb(color.map(|channel| channel as u8))
    })
}

/// A mixture of two colors: `from` if `part` is 0 or less, and `to` if `part` is 1 or more.
fn mix(from: [f32; 3], to: [f32; 3], part: f32) -> [f32; 3] {
    let part = part.clamp(0.0, 1.0);
    std::array::from_fn(|index| from[index] + (to[index] - from[index]) * part)
}
