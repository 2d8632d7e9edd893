use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::image::{Content, Error, Format, Picture, probe, sniff};

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
    fs::read(folder.join(name)).unwrap()
}

/// What libheif reads: name, width, height.
fn expected() -> impl Iterator<Item = (&'static str, Size)> {
    let lines = include_str!("../../../../tests/fixtures/heic/expected.txt").lines();
    lines.map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[0], (fields[1].parse().unwrap(), fields[2].parse().unwrap()))
    })
}

fn read_bytes(bytes: Vec<u8>) -> Result<Heif, Fault> {
    read(&mut Content::Memory(bytes.into()).header_reader())
}

fn read_fixture(name: &str) -> Result<Heif, Fault> {
    read_bytes(fixture(&format!("{name}.heic")))
}

/// The file with every such text in it replaced by another one.
fn replaced(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = fixture(name);
    for at in 0..=bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
        }
    }
    bytes
}

/// A box of this name.
fn boxed(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [&(8 + body.len() as u32).to_be_bytes()[..], name, body].concat()
}

#[test]
fn the_size_is_the_one_that_libheif_shows() {
    for (name, size) in expected() {
        assert_eq!(read_fixture(name).map(|header| header.size), Ok(size), "{name}");
    }
}

#[test]
fn what_decoding_costs_by_is_told() {
    let header = |name| read_fixture(name).unwrap();
    let phone = header("iphone-grid");
    assert_eq!((phone.coded, phone.stream, phone.chroma), ((120, 80), (64, 64), 1));
    assert!(phone.is_grid && phone.is_turned && phone.alpha == Alpha::None);
    for (name, chroma) in
        [("pixels-grey", 0), ("pixels-10bit-420", 1), ("pixels-422", 2), ("pixels-444", 3)]
    {
        let Heif { is_grid, alpha, chroma: found, .. } = header(name);
        assert_eq!((is_grid, alpha, found), (false, Alpha::None, chroma), "{name}");
    }
    for name in ["alpha", "alpha-turned", "grid-alpha", "grid-alpha-of-tiles"] {
        assert_eq!(header(name).alpha, Alpha::Straight, "{name}");
    }
    assert_eq!(header("alpha-premultiplied").alpha, Alpha::Premultiplied);
    for name in ["depth", "gain-map", "thumbnail"] {
        assert_eq!(header(name).alpha, Alpha::None, "{name}");
    }
    for name in ["halves-imir0", "halves-irot2", "clap-off", "odd-17x33"] {
        assert!(header(name).is_turned, "{name}");
    }
    assert!(!header("generic-brand").is_turned);
}

#[test]
fn a_file_ends_with_its_last_whole_box() {
    let bytes = fixture("junk-behind.heic");
    assert_eq!(read_fixture("junk-behind").unwrap().end, bytes.len() as u64 - 16);
    let bytes = fixture("film-behind.heic");
    assert_eq!(read_fixture("film-behind").unwrap().end, bytes.len() as u64);
}

#[test]
fn a_kind_that_is_not_read_is_named() {
    for (name, word) in [
        ("hev1", "kind hev1"),
        ("overlay", "overlays others"),
        ("derived", "made from another one"),
        ("jpeg", "with a JPEG in it"),
        ("essential-unknown", "essential property"),
        ("alpha-half", "transparency of another size"),
    ] {
        let Err(Fault::Unsupported(what)) = read_fixture(name) else { panic!("{name}") };
        assert!(what.to_string().contains(word), "{name}: {what}");
    }
    let avif = Err(Fault::Unsupported(Unsupported::Avif));
    assert_eq!(read_fixture("avif-generic-brand"), avif);
    let sequence = [boxed(b"ftyp", b"msf1\0\0\0\0hevc"), boxed(b"moov", b"")].concat();
    let Err(Fault::Unsupported(what)) = read_bytes(sequence) else { panic!("a sequence") };
    assert!(what.to_string().contains("sequence"));
}

#[test]
fn what_contradicts_itself_is_damaged() {
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
        "bomb-same-tile",
    ] {
        assert_eq!(read_fixture(name), Err(Damaged), "{name}");
    }
    // No picture's `meta`.
    assert_eq!(read_bytes(replaced("generic-brand.heic", b"pict", b"soun")), Err(Damaged));
    let primary = boxed(b"pitm", &[0; 6]);
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
        let parsed = |boxes: &[u8]| Meta::parse(&[&[0; 4][..], &primary, boxes].concat()).is_some();
        assert_eq!(parsed(once), name != b"pitm", "{name:?}");
        assert!(!parsed(&twice), "{name:?}");
    }
}

#[test]
fn a_picture_that_is_cut_short_is_damaged_and_no_junk_behind_the_file() {
    for name in ["iphone-grid", "alpha", "thumbnail"] {
        let bytes = fixture(&format!("{name}.heic"));
        for len in [bytes.len() - 1, bytes.len() - 300, 500, 100, 20] {
            assert_eq!(read_bytes(bytes[..len].to_vec()), Err(Damaged), "{name} to {len}");
        }
    }
}

#[test]
fn what_would_be_searched_too_long_is_damaged() {
    let meta = |children: &[Vec<u8>]| {
        let body = [&[0; 4][..], &children.concat()].concat();
        [boxed(b"ftyp", b"heic\0\0\0\0"), boxed(b"meta", &body)].concat()
    };
    let item = |n: usize| {
        boxed(b"infe", &[&[2, 0, 0, 0, (n >> 8) as u8, n as u8, 0, 0][..], b"hvc1\0"].concat())
    };
    let property = |_| boxed(b"free", b"");
    let reference = |_| boxed(b"thmb", &[0, 1, 0, 0]);
    let items = |n| [vec![0; 6], (0..n).flat_map(item).collect()].concat();
    let refused = |children: &[Vec<u8>]| Meta::parse(&meta(children)[24..]).is_none();
    let primary = || boxed(b"pitm", &[0; 6]);
    for (n, is_refused) in [(MAX_ITEMS, false), (MAX_ITEMS + 1, true)] {
        assert_eq!(refused(&[primary(), boxed(b"iinf", &items(n))]), is_refused, "{n} items");
        let properties = boxed(b"ipco", &(0..n).flat_map(property).collect::<Vec<_>>());
        assert_eq!(
            refused(&[primary(), boxed(b"iprp", &properties)]),
            is_refused,
            "{n} properties"
        );
        let references = [vec![0; 4], (0..n).flat_map(reference).collect()].concat();
        assert_eq!(
            refused(&[primary(), boxed(b"iref", &references)]),
            is_refused,
            "{n} references"
        );
        // Two bytes for the item, two for the data reference, none for the base, no extents.
        let places = [&[0; 6][..], &(n as u16).to_be_bytes(), &vec![0; 6 * n]].concat();
        assert_eq!(refused(&[primary(), boxed(b"iloc", &places)]), is_refused, "{n} places");
    }
    assert!(refused(&[primary(), boxed(b"iinf", &[vec![0; 6], item(1), item(1)].concat())]));
    // Longer than any phone's.
    let grown = |by: usize| {
        let mut bytes = fixture("generic-brand.heic");
        let at = 20; // behind `ftyp`
        let len = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let free = boxed(b"free", &vec![0; by]);
        bytes[at..at + 4].copy_from_slice(&(len + free.len() as u32).to_be_bytes());
        bytes.splice(at + len as usize..at + len as usize, free);
        read_bytes(bytes)
    };
    assert!(grown(1000).is_ok());
    assert_eq!(grown(1 << 20), Err(Damaged));
}

#[test]
fn what_is_decoded_counts_and_not_what_is_shown() {
    let limited =
        |name: &str| probe(Content::Memory(fixture(&format!("{name}.heic")).into()), 1_000_000);
    if sniff(&fixture("halves.heic")) == Ok(Format::Heic) {
        let Err(Error::TooManyPixels { pixels, .. }) = limited("bomb-tile-larger") else {
            panic!("must be refused")
        };
        assert_eq!(pixels, 4096 * 4096);
        let Picture { width, height, .. } = limited("clap-irot").unwrap();
        assert_eq!((width, height), (40, 60));
    }
}

proptest! {
    #[test]
    fn no_header_makes_it_panic(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (name, _) = expected().nth(which.index(expected().count())).unwrap();
        let mut bytes = fixture(&format!("{name}.heic"));
        let header = bytes.len().min(700);
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        let _ = read_bytes(bytes);
    }
}
