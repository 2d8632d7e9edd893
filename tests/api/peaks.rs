//! Compares the peak memory of the decoder's child processes with the memory estimates.

use std::{
    fs,
    io::{self, Cursor, ErrorKind, Read, Seek, Write},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use image_rs::{ImageFormat, RgbImage};
use imagesvc::{
    decoder::child_args,
    image::{Content, Format, Target, probe},
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::support::{
    converted,
    craft::{Interlace, png, png_chunk, riff_chunk, segment, vp8x, webp, zlib},
    kinds::{self, Kind},
    noise_png,
};

/// The default limit on the memory of all children together, in bytes. A child's own limit is
/// computed from it.
const MAX_MEMORY: u64 = 512 << 20;

/// [`Peak::growth`] may exceed [`Peak::variable_estimate`] by this many bytes: for tables, the allocator
/// and the system.
const TOLERANCE: u64 = 1 << 20;

/// [`Peak::variable_estimate`] may be at most this many times [`Peak::growth`].
const MAX_OVERESTIMATE: u64 = 4;

/// The width and height of most pictures.
const SIZE: (u32, u32) = (1600, 1200);

/// A JPEG that is not scaled. Its length is at most the default limit on a picture's length.
const CONVERTED_TARGET: Target = Target::Converted { max_len: 20 << 20 };
/// A JPEG that is shrunk to about the length that NVIDIA accepts in a request.
const SHRUNK_TARGET: Target = Target::Shrunk { max_len: 149_999 };
/// A small square, but larger than the square from which the sandbox computes a vector.
const SQUARE_TARGET: Target = Target::Square { side: 300 };

/// A picture of one pixel. Its peak memory is the memory of the program itself, and its memory
/// estimate is the constant part that every estimate contains.
const PIXEL: &[u8] =
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

#[test]
fn children_render_every_kind_within_their_limits_and_use_about_the_estimated_memory() {
    let mut pictures = kinds::all(SIZE.0, SIZE.1);
    pictures.retain(|(name, _)| kinds::unsupported(name).is_none());
    pictures.push(gif_with_narrower_frame(&pictures));
    pictures.extend(turned(&pictures));
    pictures.extend(noisy(SIZE));
    pictures.extend(twelve_megapixels());
    #[cfg(feature = "heic")]
    pictures.extend(heic());
    let mut jobs = Vec::new();
    for (n, picture) in pictures.iter().enumerate() {
        jobs.push((picture, CONVERTED_TARGET));
        // Shrinking and scaling to a square do not depend on the kind, so a few pictures are
        // enough.
        if n % 6 == 0 {
            jobs.push((picture, SHRUNK_TARGET));
        }
        if n % 8 == 2 {
            jobs.push((picture, SQUARE_TARGET));
        }
    }
    let pixel_peak = measure(PIXEL, CONVERTED_TARGET).unwrap();
    let (next_job, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let run = || {
            while let Some(((name, bytes), target)) =
                jobs.get(next_job.fetch_add(1, Ordering::Relaxed))
            {
                let result = (name, target, measure(bytes, *target));
                results.lock().unwrap().push(result);
            }
        };
        // Two threads, so that two children render at the same time.
        scope.spawn(run);
        scope.spawn(run);
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(_, _, peak)| peak.as_ref().map_or(0, |peak| peak.percent(&pixel_peak)));
    let mut failures = Vec::new();
    for (name, target, peak) in results {
        let line = match &peak {
            Ok(peak) => format!("{:3} % {name} {target:?}: {peak:?}", peak.percent(&pixel_peak)),
            Err(error) => format!("{name} {target:?} is not rendered: {error}"),
        };
        println!("{line}");
        let is_estimate_good = peak.is_ok_and(|peak| {
            let (growth, estimate) =
                (peak.growth(&pixel_peak), peak.variable_estimate(&pixel_peak));
            growth <= estimate + TOLERANCE && estimate <= growth * MAX_OVERESTIMATE
        });
        if !is_estimate_good {
            failures.push(line);
        }
    }
    assert!(
        failures.is_empty(),
        "these peaks do not match their estimates (one pixel: {pixel_peak:?}): {failures:#?}"
    );
}

/// The peak memory of a child, and the memory estimate, in bytes.
#[derive(Debug)]
struct Peak {
    resident: u64,
    address_space: u64,
    estimate: u64,
}

impl Peak {
    /// Returns by how many bytes the peak exceeds the peak for a picture of one pixel. This is the
    /// growth of the resident memory or of the address space, whichever is larger. The child's
    /// limit is on its address space, but the machine is limited by resident memory.
    fn growth(&self, pixel_peak: &Self) -> u64 {
        let resident = self.resident.saturating_sub(pixel_peak.resident);
        resident.max(self.address_space.saturating_sub(pixel_peak.address_space))
    }

    /// Returns the estimate without the constant part that every estimate contains.
    fn variable_estimate(&self, pixel_peak: &Self) -> u64 {
        self.estimate - pixel_peak.estimate
    }

    /// Returns [`Self::growth`] as a percentage of [`Self::variable_estimate`].
    fn percent(&self, pixel_peak: &Self) -> u64 {
        self.growth(pixel_peak) * 100 / self.variable_estimate(pixel_peak).max(1)
    }
}

/// Renders a picture in a child with the same arguments and limits as the service uses.
fn measure(bytes: &[u8], target: Target) -> Result<Peak, String> {
    // The second argument is the default limit on pixels.
    let picture = probe(Content::Memory(bytes.to_vec().into()), 64_000_000).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    let (mut output, pipe, filler_len) = full_pipe().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_imagesvc"))
        .args(child_args(&picture, target, MAX_MEMORY).unwrap())
        .env_clear()
        .stdin(file)
        .stdout(pipe)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let proc_status = status_after_rendering(child.id());
    let mut written = Vec::new();
    output.read_to_end(&mut written).unwrap();
    let exit = child.wait().unwrap();
    let result = &written[filler_len..];
    // A result begins with nine bytes: a letter, which is `d` for a success, and a length.
    if result.first() != Some(&b'd') || !exit.success() {
        let message = String::from_utf8_lossy(result.get(9..).unwrap_or_default());
        return Err(format!("{exit}: {message:.200}"));
    }
    let kibibytes = |name| {
        let line = proc_status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    };
    // Each estimate contains the length of the file. Only the decoders of JPEG and HEIC copy the
    // whole file to memory. For other formats, the length stands for profiles and texts, which may be
    // long. Here it is subtracted, because the length of an uncompressed picture would hide a wrong
    // estimate for its pixels.
    let copies_file = matches!(picture.format, Format::Jpeg | Format::Heic);
    let subtracted = if copies_file { 0 } else { bytes.len() as u64 };
    Ok(Peak {
        resident: kibibytes("VmHWM:") << 10,
        address_space: kibibytes("VmPeak:") << 10,
        estimate: target.memory_estimate(&picture).unwrap() - subtracted,
    })
}

/// Creates a pipe and fills it, so that a child that writes to it sleeps until the pipe is read.
/// Returns the pipe and the number of bytes in it.
fn full_pipe() -> io::Result<(io::PipeReader, io::PipeWriter, usize)> {
    let (reader, mut writer) = io::pipe()?;
    let flags = fcntl_getfl(&writer)?;
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK)?;
    let mut written = 0;
    loop {
        match writer.write(&[0; 4096]) {
            Ok(len) => written += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    fcntl_setfl(&writer, flags)?;
    Ok((reader, writer, written))
}

/// Waits until the child has rendered its picture, and returns the child's `/proc` status. By then
/// the child has exited, or it sleeps because it cannot write its result. Earlier, it sleeps at most
/// for a moment, because it reads a file and has only one thread.
fn status_after_rendering(id: u32) -> String {
    let mut last_status = String::new();
    loop {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        // `S` is a process that sleeps, and `Z` is one that has exited. The status contains the
        // number of context switches, so an equal status means that the child has slept since
        // `last_status`.
        if status.contains("State:\tS") && status == last_status || status.contains("State:\tZ") {
            return status;
        }
        last_status = status;
        thread::sleep(Duration::from_millis(2));
    }
}

/// A GIF whose frame is one pixel narrower than the canvas. The decoder needs a buffer for the
/// frame and one for the canvas.
fn gif_with_narrower_frame(pictures: &[Kind]) -> Kind {
    let mut gif = named(pictures, "gif-plain");
    gif[6] += 1; // the lower byte of the canvas width
    ("gif-first-frame-narrower".into(), gif)
}

/// The bytes of the picture with this name.
fn named(pictures: &[Kind], name: &str) -> Vec<u8> {
    pictures.iter().find(|(known, _)| known == name).unwrap().1.clone()
}

/// Some of the pictures, turned by EXIF data. Turning must not need another copy of the pixels.
fn turned(pictures: &[Kind]) -> Vec<Kind> {
    // A TIFF header, and a directory with one entry: the orientation 6.
    const EXIF: &[u8; 26] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    const HAS_EXIF: u8 = 0b1000;
    let turn = |name: &str| {
        let mut picture = named(pictures, name);
        match name.split('-').next() {
            Some("jpeg") => {
                let exif = [&b"Exif\0\0"[..], EXIF].concat();
                picture.splice(2..2, segment(0xe1, &exif)); // after the start marker
            }
            Some("png") => {
                picture.splice(33..33, png_chunk(b"eXIf", EXIF)); // after `IHDR`
            }
            _ => {
                let chunks = [
                    vp8x(HAS_EXIF, SIZE.0, SIZE.1),
                    picture.split_off(12), // all that follows the RIFF header
                    riff_chunk(b"EXIF", EXIF),
                ];
                picture = webp(&chunks);
            }
        }
        (format!("{name}-turned"), picture)
    };
    ["jpeg-baseline-444", "jpeg-progressive-420", "png-rgb-8", "png-rgba-16", "webp-lossless"]
        .map(turn)
        .to_vec()
}

/// Pictures of noise. Noise makes the longest JPEGs.
fn noisy((width, height): (u32, u32)) -> Vec<Kind> {
    let noise = noise_png(width, height);
    let mut random = fastrand::Rng::with_seed(7);
    // A line of a PNG with one bit per pixel. The first byte means that no filter is used.
    let line = || [vec![0], (0..width.div_ceil(8)).map(|_| random.u8(..)).collect()].concat();
    let lines: Vec<u8> = std::iter::repeat_with(line).take(height as usize).flatten().collect();
    let one_bit_png =
        png((width, height), 1, 0, Interlace::None, &[png_chunk(b"IDAT", &zlib(&lines))]);
    vec![
        ("bmp-noise".into(), converted(&noise, ImageFormat::Bmp)),
        ("webp-lossless-noise".into(), converted(&noise, ImageFormat::WebP)),
        ("png-rgb-8-noise".into(), noise),
        ("png-grey-1-noise".into(), one_bit_png),
    ]
}

/// Pictures of 12 megapixels.
fn twelve_megapixels() -> Vec<Kind> {
    let pixels = RgbImage::from_fn(4000, 3000, |x, y| {
        [(x / 16) as u8, (y / 12) as u8, (x ^ y) as u8].into()
    });
    let encoded = |(name, format)| {
        let mut bytes = Cursor::new(Vec::new());
        pixels.write_to(&mut bytes, format).unwrap();
        (format!("{name}-large"), bytes.into_inner())
    };
    [("jpeg", ImageFormat::Jpeg), ("webp", ImageFormat::WebP), ("bmp", ImageFormat::Bmp)]
        .map(encoded)
        .to_vec()
}

/// The fixtures `large-*`, whose size is [`SIZE`]: with and without tiles, turned, with alpha, and in
/// every chroma format.
#[cfg(feature = "heic")]
fn heic() -> Vec<Kind> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/heic");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let large = files.filter(|path| name(path).starts_with("large-"));
    large.map(|path| (format!("heic-{}", name(&path)), fs::read(&path).unwrap())).collect()
}
