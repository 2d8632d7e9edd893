//! What a decoder's child really takes at its peak, beside what was estimated from the header.

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
    craft::{png, png_chunk, riff_chunk, segment, vp8x, webp, zlib},
    kinds::{self, Kind},
    noise_png,
};

/// The memory that all children share by default.
const MAX_MEMORY: u64 = 512 << 20;

/// What tables, the allocator and the system may take beside what grows with the picture, in
/// bytes. The estimate has more for them, but that is for metadata, which these pictures lack.
const SLACK: u64 = 1 << 20;

/// How many times the peak an estimate may be.
const OVERRATED: u64 = 4;

const CONVERTED: Target = Target::Converted { max_len: 20 << 20 };
const SHRUNK: Target = Target::Shrunk { max_len: 149_999 };
const SQUARE: Target = Target::Square { side: 300 };

/// Of one pixel: what it takes is the program's own, and what is estimated for it is metadata's.
const PIXEL: &[u8] =
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

#[test]
fn children_take_what_was_estimated_and_render_every_kind_within_their_limits() {
    let mut pictures = kinds::all(1600, 1200);
    pictures.retain(|(name, _)| !kinds::UNREAD.iter().any(|prefix| name.starts_with(prefix)));
    pictures.push(narrower(&pictures));
    pictures.extend(turned(&pictures));
    pictures.extend(noisy((1600, 1200)));
    pictures.extend(large());
    #[cfg(feature = "heic")]
    pictures.extend(heic());
    let jobs = pictures.iter().enumerate().flat_map(|(n, picture)| {
        // What follows decoding is the same for all kinds: some are enough.
        let targets = [(true, CONVERTED), (n % 6 == 0, SHRUNK), (n % 8 == 2, SQUARE)].into_iter();
        targets.filter(|(is_run, _)| *is_run).map(move |(_, target)| (picture, target))
    });
    let jobs: Vec<_> = jobs.collect();
    let pixel = measure(PIXEL, CONVERTED).unwrap();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let run = || {
            while let Some(((name, bytes), target)) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let row = (name, target, measure(bytes, *target));
                rows.lock().unwrap().push(row);
            }
        };
        scope.spawn(run);
        scope.spawn(run);
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(_, _, peak)| peak.as_ref().map_or(0, |peak| peak.percent(&pixel)));
    let mut wrong = Vec::new();
    for (name, target, peak) in rows {
        let line = match &peak {
            Ok(peak) => format!("{:3} % {name} {target:?}: {peak:?}", peak.percent(&pixel)),
            Err(said) => format!("{name} {target:?} is not rendered: {said}"),
        };
        println!("{line}");
        let is_right = peak.is_ok_and(|peak| {
            let (taken, estimate) = (peak.growth(&pixel), peak.estimate - pixel.estimate);
            taken <= estimate + SLACK && estimate <= taken * OVERRATED
        });
        if !is_right {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "beside {pixel:?}: {wrong:#?}");
}

/// What a child took, and what was estimated but for the file's metadata, in bytes.
#[derive(Debug)]
struct Peak {
    resident: u64,
    address_space: u64,
    estimate: u64,
}

impl Peak {
    /// What was taken beside what a picture of one pixel takes: what is limited is address space,
    /// what is short is memory.
    fn growth(&self, pixel: &Self) -> u64 {
        let resident = self.resident.saturating_sub(pixel.resident);
        resident.max(self.address_space.saturating_sub(pixel.address_space))
    }

    /// How much of the estimate was taken, but for metadata's part.
    fn percent(&self, pixel: &Self) -> u64 {
        self.growth(pixel) * 100 / (self.estimate - pixel.estimate).max(1)
    }
}

/// Renders a picture as the service does, in a child with the very limits that it gets.
fn measure(bytes: &[u8], target: Target) -> Result<Peak, String> {
    let picture = probe(Content::Memory(bytes.to_vec().into()), 64_000_000).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    let (mut output, full, stuffing) = full_pipe().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_imagesvc"))
        .args(child_args(&picture, target, MAX_MEMORY).unwrap())
        .env_clear()
        .stdin(file)
        .stdout(full)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = last_status(child.id());
    let mut answer = Vec::new();
    output.read_to_end(&mut answer).unwrap();
    let exit = child.wait().unwrap();
    let answer = &answer[stuffing..];
    if answer.first() != Some(&b'd') || !exit.success() {
        let words = String::from_utf8_lossy(answer.get(9..).unwrap_or_default());
        return Err(format!("{exit}: {words:.200}"));
    }
    let kibibytes = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    };
    // All but JPEG's and HEIC's decoders read as they go. That part is for metadata as well, and
    // pictures that are not compressed would hide behind it.
    let is_held = matches!(picture.format, Format::Jpeg | Format::Heic);
    let unheld = if is_held { 0 } else { bytes.len() as u64 };
    Ok(Peak {
        resident: kibibytes("VmHWM:") << 10,
        address_space: kibibytes("VmPeak:") << 10,
        estimate: target.memory_estimate(&picture).unwrap() - unheld,
    })
}

/// A pipe that holds no byte more, and how many it holds: whoever writes to it sleeps until it is
/// read.
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

/// What the system says of a child that has done its work and sleeps, as it cannot write what came
/// of it; or that has ended. It sleeps for nothing else: it reads a file and has one thread.
fn last_status(id: u32) -> String {
    let mut before = String::new();
    loop {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        // Unchanged to the number of times that it was woken.
        if status.contains("State:\tS") && status == before || status.contains("State:\tZ") {
            return status;
        }
        before = status;
        thread::sleep(Duration::from_millis(2));
    }
}

/// A GIF whose frame is a pixel narrower than the picture: it is decoded beside it.
fn narrower(pictures: &[Kind]) -> Kind {
    let mut gif = named(pictures, "gif-plain");
    gif[6] += 1; // the width's lower byte
    ("gif-first-frame-narrower".into(), gif)
}

fn named(pictures: &[Kind], name: &str) -> Vec<u8> {
    pictures.iter().find(|(known, _)| known == name).unwrap().1.clone()
}

/// Some kinds, stored lying on their side: turning them upright takes no copy.
fn turned(pictures: &[Kind]) -> Vec<Kind> {
    const EXIF: &[u8; 26] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    const HAS_EXIF: u8 = 0b1000;
    let turn = |name: &str| {
        let mut picture = named(pictures, name);
        match name.split('-').next() {
            Some("jpeg") => {
                let exif = [&b"Exif\0\0"[..], EXIF].concat();
                picture.splice(2..2, segment(0xe1, &exif));
            }
            Some("png") => {
                picture.splice(33..33, png_chunk(b"eXIf", EXIF));
            }
            _ => {
                let chunks =
                    [vp8x(HAS_EXIF, 1600, 1200), picture.split_off(12), riff_chunk(b"EXIF", EXIF)];
                picture = webp(&chunks);
            }
        }
        (format!("{name}-turned"), picture)
    };
    ["jpeg-baseline-444", "jpeg-progressive-420", "png-rgb-8", "png-rgba-16", "webp-lossless"]
        .map(turn)
        .to_vec()
}

/// Noise, which makes the largest JPEG.
fn noisy((width, height): (u32, u32)) -> Vec<Kind> {
    let noise = noise_png(width, height);
    let mut random = fastrand::Rng::with_seed(7);
    let line = || [vec![0], (0..width.div_ceil(8)).map(|_| random.u8(..)).collect()].concat();
    let lines: Vec<u8> = std::iter::repeat_with(line).take(height as usize).flatten().collect();
    let bits = png((width, height), 1, 0, false, &[png_chunk(b"IDAT", &zlib(&lines))]);
    vec![
        ("bmp-noise".into(), converted(&noise, ImageFormat::Bmp)),
        ("webp-lossless-noise".into(), converted(&noise, ImageFormat::WebP)),
        ("png-rgb-8-noise".into(), noise),
        ("png-grey-1-noise".into(), bits),
    ]
}

/// As from a camera.
fn large() -> Vec<Kind> {
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

/// Of 1600 × 1200 pixels, with and without tiles, turned, with alpha, and in every sampling of colours.
#[cfg(feature = "heic")]
fn heic() -> Vec<Kind> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/heic");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let large = files.filter(|path| name(path).starts_with("large-"));
    large.map(|path| (format!("heic-{}", name(&path)), fs::read(&path).unwrap())).collect()
}
