//! Tests of reading HEIF headers, most of them with the pictures in `tests/fixtures/heic`.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::image::{Content, Error, Picture, probe};

fn fixture(file_name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
    fs::read(folder.join(file_name)).unwrap()
}

/// The names of the valid fixtures, without `.heic`, and their sizes according to libheif.
fn expected_sizes() -> impl Iterator<Item = (&'static str, Size)> {
    let lines = include_str!("../../../../tests/fixtures/heic/expected.txt").lines();
    lines.map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[0], (fields[1].parse().unwrap(), fields[2].parse().unwrap()))
    })
}

fn read_bytes(bytes: Vec<u8>) -> Result<Heif, HeaderError> {
    read(&mut Content::Memory(bytes.into()).header_reader())
}

fn read_fixture(name: &str) -> Result<Heif, HeaderError> {
    read_bytes(fixture(&format!("{name}.heic")))
}

/// Returns the bytes of a fixture, with every occurrence of `from` replaced by `to`.
fn replaced(file_name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = fixture(file_name);
    for at in 0..=bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
        }
    }
    bytes
}

/// A box with this name and these contents.
fn boxed(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [&(8 + body.len() as u32).to_be_bytes()[..], name, body].concat()
}

#[test]
fn the_size_of_every_valid_fixture_is_the_size_that_libheif_reports() {
    for (name, size) in expected_sizes() {
        assert_eq!(read_fixture(name).map(|heif| heif.size), Ok(size), "{name}");
    }
}

#[test]
fn the_fields_for_the_memory_estimate_are_read() {
    let heif_of = |name| read_fixture(name).unwrap();
    let phone = heif_of("iphone-grid");
    assert_eq!((phone.coded_size, phone.stream_size, phone.chroma), ((120, 80), (64, 64), 1));
    assert!(phone.is_grid && phone.is_transformed && phone.alpha == Alpha::None);
    for (name, chroma) in
        [("pixels-grey", 0), ("pixels-10bit-420", 1), ("pixels-422", 2), ("pixels-444", 3)]
    {
        let heif = heif_of(name);
        assert_eq!((heif.is_grid, heif.alpha), (false, Alpha::None), "{name}");
        assert_eq!(heif.chroma, chroma, "{name}");
    }
    for name in ["alpha", "alpha-turned", "grid-alpha", "grid-alpha-of-tiles"] {
        assert_eq!(heif_of(name).alpha, Alpha::Straight, "{name}");
    }
    assert_eq!(heif_of("alpha-premultiplied").alpha, Alpha::Premultiplied);
    for name in ["depth", "gain-map", "thumbnail"] {
        assert_eq!(heif_of(name).alpha, Alpha::None, "{name}");
    }
    // `odd-17x33` is cropped to its odd size.
    for name in ["halves-imir0", "halves-irot2", "clap-off-centre", "odd-17x33"] {
        assert!(heif_of(name).is_transformed, "{name}");
    }
    assert!(!heif_of("generic-brand").is_transformed);
}

#[test]
fn boxes_end_is_the_offset_where_the_last_complete_box_ends() {
    let bytes = fixture("junk-behind.heic");
    let junk_len = b"SEFH\x01\x02\x03\x04junkSEFT".len() as u64;
    assert_eq!(read_fixture("junk-behind").unwrap().boxes_end, bytes.len() as u64 - junk_len);
    // The film behind the picture consists of complete boxes, so they end where the file ends.
    let bytes = fixture("film-behind.heic");
    assert_eq!(read_fixture("film-behind").unwrap().boxes_end, bytes.len() as u64);
}

#[test]
fn the_error_describes_the_unsupported_kind() {
    for (name, words) in [
        ("hev1", "kind hev1"),
        ("overlay", "overlays others"),
        ("derived", "made from another one"),
        ("jpeg", "with a JPEG in it"),
        ("essential-unknown", "essential property"),
        ("alpha-half", "transparency of another size"),
        ("grid-alpha-turned", "transparency is cropped, turned or mirrored"),
        ("grid-alpha-turned-of-tile", "transparency is cropped, turned or mirrored"),
    ] {
        let result = read_fixture(name);
        let Err(HeaderError::Unsupported(kind)) = result else {
            panic!("{name} must be unsupported: {result:?}")
        };
        assert!(kind.to_string().contains(words), "{name}: {kind}");
    }
    let avif = Err(HeaderError::Unsupported(Unsupported::Avif));
    assert_eq!(read_fixture("avif-generic-brand"), avif);
    let sequence = [boxed(b"ftyp", b"msf1\0\0\0\0hevc"), boxed(b"moov", b"")].concat();
    let Err(HeaderError::Unsupported(kind)) = read_bytes(sequence) else {
        panic!("an image sequence must be unsupported")
    };
    assert!(kind.to_string().contains("sequence"), "{kind}");
}

#[test]
fn incomplete_or_contradictory_headers_are_damaged() {
    for name in [
        "bad-grid-uncovered",
        "bad-grid-tile-missing",
        "bad-grid-tile-smaller",
        "bad-grid-other-size",
        "bad-grid-tile-to-spare",
        "bad-alpha-grid-uncovered",
        "bad-clap-empty",
        "bad-no-size",
        "bad-no-configuration",
        "bad-primary",
        "bad-two-metas",
        "bomb-same-tile", // each of its 400 tiles is as large as the whole grid
    ] {
        assert_eq!(read_fixture(name), Err(Damaged), "{name}");
    }
    // The handler of this `meta` box is "soun" (sound) instead of "pict".
    assert_eq!(read_bytes(replaced("generic-brand.heic", b"pict", b"soun")), Err(Damaged));
    // A `meta` box must contain a `pitm` box, so each `meta` box here begins with one.
    let primary = boxed(b"pitm", &[0; 6]);
    // A `meta` box may contain each of these boxes only once.
    for (name, body) in [
        (b"pitm", &[0; 6][..]),
        (b"iinf", &[0; 6]),
        (b"iref", &[0; 4]),
        (b"iprp", b""),
        (b"iloc", &[0; 8]),
        (b"idat", b""),
    ] {
        let twice = boxed(name, body).repeat(2);
        let once = &twice[..twice.len() / 2];
        let is_valid_after_primary =
            |boxes: &[u8]| Meta::parse(&[&[0; 4][..], &primary, boxes].concat()).is_some();
        let label = name.escape_ascii();
        // `primary` is a `pitm` box, so one more of them is already the second.
        assert_eq!(is_valid_after_primary(once), name != b"pitm", "{label} once");
        assert!(!is_valid_after_primary(&twice), "{label} twice");
    }
}

#[test]
fn a_truncated_picture_is_damaged() {
    for name in ["iphone-grid", "alpha", "thumbnail"] {
        let bytes = fixture(&format!("{name}.heic"));
        for len in [bytes.len() - 1, bytes.len() - 300, 500, 100, 20] {
            assert_eq!(read_bytes(bytes[..len].to_vec()), Err(Damaged), "{name} of {len} bytes");
        }
    }
}

#[test]
fn a_meta_box_with_too_many_entries_or_with_an_item_twice_is_damaged() {
    let item = |id: usize| {
        boxed(b"infe", &[&[2, 0, 0, 0, (id >> 8) as u8, id as u8, 0, 0][..], b"hvc1\0"].concat())
    };
    let property = |_| boxed(b"free", b"");
    // Two bytes for the item's id, two for the data reference, none for the base, and two for the number of
    // extents, which is zero.
    let location = |id: usize| [(id >> 8) as u8, id as u8, 0, 0, 0, 0];
    // The last two bytes before the locations are their count.
    let iloc_body = |item_ids: &[usize]| {
        let count = (item_ids.len() as u16).to_be_bytes();
        [&[0; 6][..], &count, &item_ids.iter().copied().flat_map(location).collect::<Vec<_>>()]
            .concat()
    };
    // From item 1, to no other item.
    let reference = |_| boxed(b"thmb", &[0, 1, 0, 0]);
    // The six bytes are the version, the flags, and the number of items. The parser ignores this number.
    let items = |n| [vec![0; 6], (0..n).flat_map(item).collect()].concat();
    // Whether a `meta` box that contains only a `pitm` box and this box is damaged.
    let is_damaged = |name: &[u8; 4], body: &[u8]| {
        let meta = [vec![0; 4], boxed(b"pitm", &[0; 6]), boxed(name, body)].concat();
        Meta::parse(&meta).is_none()
    };
    for (n, expected) in [(MAX_ENTRIES, false), (MAX_ENTRIES + 1, true)] {
        assert_eq!(is_damaged(b"iinf", &items(n)), expected, "{n} items");
        let properties = boxed(b"ipco", &(0..n).flat_map(property).collect::<Vec<_>>());
        assert_eq!(is_damaged(b"iprp", &properties), expected, "{n} properties");
        let references = [vec![0; 4], (0..n).flat_map(reference).collect()].concat();
        assert_eq!(is_damaged(b"iref", &references), expected, "{n} references");
        let locations = iloc_body(&(0..n).collect::<Vec<_>>());
        assert_eq!(is_damaged(b"iloc", &locations), expected, "{n} locations");
    }
    let same_item_twice = [vec![0; 6], item(1), item(1)].concat();
    assert!(is_damaged(b"iinf", &same_item_twice));
    assert!(!is_damaged(b"iloc", &iloc_body(&[1, 2])));
    assert!(is_damaged(b"iloc", &iloc_body(&[1, 1])));
}

#[test]
fn a_file_whose_meta_box_is_too_long_is_damaged() {
    let read_with_longer_meta_box = |added_len: usize| {
        let mut bytes = fixture("generic-brand.heic");
        let meta_at = 20; // after `ftyp`
        let len = u32::from_be_bytes(bytes[meta_at..meta_at + 4].try_into().unwrap());
        let meta_end = meta_at + len as usize;
        let free = boxed(b"free", &vec![0; added_len]);
        bytes[meta_at..meta_at + 4].copy_from_slice(&(len + free.len() as u32).to_be_bytes());
        bytes.splice(meta_end..meta_end, free);
        read_bytes(bytes)
    };
    assert!(read_with_longer_meta_box(1000).is_ok());
    // The box also has its original content, so it becomes longer than allowed.
    let max_content_len = 1 << 20; // `MAX_META` in `boxes.rs`
    assert_eq!(read_with_longer_meta_box(max_content_len), Err(Damaged));
}

#[test]
fn the_pixel_limit_applies_to_decoded_pixels_that_are_not_shown() {
    if !cfg!(feature = "heic") {
        return; // without this feature, no file is probed as a HEIC
    }
    let probe_with_limit =
        |name: &str| probe(Content::Memory(fixture(&format!("{name}.heic")).into()), 1_000_000);
    let result = probe_with_limit("bomb-tile-larger");
    let Err(Error::TooManyPixels { pixels, .. }) = result else {
        panic!("the picture must be refused for its pixels: {result:?}")
    };
    assert_eq!(pixels, 4096 * 4096); // the tile's; the picture shows only a part of the tile
    // Within the limit, the size is that of the picture as it is shown.
    let Picture { width, height, .. } = probe_with_limit("clap-irot").unwrap();
    assert_eq!((width, height), (40, 60));
}

proptest! {
    #[test]
    fn damaged_headers_cause_no_panic(
        file in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (name, _) = expected_sizes().nth(file.index(expected_sizes().count())).unwrap();
        let mut bytes = fixture(&format!("{name}.heic"));
        // The first 700 bytes contain most of the boxes before the coded pixels.
        let changed_len = bytes.len().min(700);
        for (at, value) in changes {
            bytes[at.index(changed_len)] = value;
        }
        let _ = read_bytes(bytes);
    }
}
