//! Builds requests that contain pictures or their URLs.

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{
    nvidia_api::{INFER_PATH, inline_body},
    pictures::{NUMBER_LEN, SMALL},
    samples::jpeg,
};

/// A request as bytes. Most requests contain a picture with a number, which makes the picture
/// different from those of other requests.
#[derive(Clone)]
pub struct Request {
    pub bytes: Vec<u8>,
    /// The position of the number in `bytes`.
    number_at: usize,
}

impl Request {
    /// An upload of a picture of `len` bytes.
    pub fn upload(len: usize) -> Self {
        Self::upload_of(&jpeg(len))
    }

    /// An upload of this picture. [`Self::set_number`] overwrites the picture's last bytes, so these must
    /// be padding that decoders ignore.
    pub fn upload_of(picture: &[u8]) -> Self {
        let mut body = b"--boundary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"photo.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n".to_vec();
        body.extend(picture);
        let body_end = b"\r\n--boundary--\r\n";
        body.extend(body_end);
        let media_type = "multipart/form-data; boundary=boundary";
        Self::new("/vectorize-image-upload", media_type, &body, body_end.len())
    }

    /// A request to the Base64 route, with a picture of about `len` bytes. [`Self::set_number`]
    /// overwrites the last characters of the Base64 text.
    pub fn base64(len: usize) -> Self {
        // The length is a multiple of three, so that the text does not end in `=`.
        let text = BASE64_STANDARD.encode(jpeg(len / 3 * 3));
        let body_end = r#"","filename":"photo.jpg"}"#;
        let body = format!(r#"{{"image_base64":"{text}{body_end}"#);
        Self::new("/vectorize-image-base64", "application/json", body.as_bytes(), body_end.len())
    }

    /// A batch of `count` different pictures of about `len` bytes each, as Base64. The same arguments give
    /// the same pictures, so the cache can answer a repeated batch. [`Self::set_number`] must not be called,
    /// because it would overwrite the end of the JSON.
    pub fn batch(len: usize, count: u64) -> Self {
        let pictures = (0..count).map(|number| {
            // A multiple of three, as in `base64`.
            let mut picture = jpeg(len / 3 * 3);
            let end = picture.len() - NUMBER_LEN;
            picture[end..].copy_from_slice(format!("{number:0NUMBER_LEN$}").as_bytes());
            format!("\"{}\"", BASE64_STANDARD.encode(picture))
        });
        let pictures: Vec<_> = pictures.collect();
        let body = format!(r#"{{"input":[{}]}}"#, pictures.join(","));
        Self::new("/v1/embeddings", "application/json", body.as_bytes(), 0)
    }

    /// A health check, for which the service does nothing except to respond. It contains no
    /// picture, so [`Self::set_number`] must not be called.
    pub fn health() -> Self {
        Self { bytes: b"GET /health HTTP/1.1\r\nHost: imagesvc\r\n\r\n".to_vec(), number_at: 0 }
    }

    /// A request with the URL of a picture. The URL must end in a number of [`NUMBER_LEN`] digits, which
    /// [`Self::set_number`] overwrites.
    pub fn url(url: &str) -> Self {
        let body_end = r#""}"#;
        let body = format!(r#"{{"image_url":"{url}{body_end}"#);
        Self::new("/vectorize-image", "application/json", body.as_bytes(), body_end.len())
    }

    /// The request that the service sends to NVIDIA for a small picture.
    pub fn inference() -> Self {
        let text = BASE64_STANDARD.encode(jpeg(SMALL));
        let body = inline_body("image/jpeg", &text);
        // `inline_body` ends in this after the Base64 text.
        let body_end = r#""}}}]}"#;
        Self::new(INFER_PATH, "application/json", body.as_bytes(), body_end.len())
    }

    /// `after_number` is how many bytes of the body follow the picture's number.
    fn new(path: &str, media_type: &str, body: &[u8], after_number: usize) -> Self {
        let len = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: imagesvc\r\nContent-Type: {media_type}\r\nContent-Length: {len}\r\n\r\n"
        );
        let bytes = [head.as_bytes(), body].concat();
        Self { number_at: bytes.len() - after_number - NUMBER_LEN, bytes }
    }

    /// Sets the picture's number. Digits are also valid Base64.
    pub fn set_number(&mut self, number: u64) {
        let digits = format!("{number:0NUMBER_LEN$}");
        self.bytes[self.number_at..self.number_at + NUMBER_LEN].copy_from_slice(digits.as_bytes());
    }
}
