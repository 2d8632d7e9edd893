//! Hostile HEICs, and one of an unsupported kind. `tests/fixtures/heic/make.py` writes them.

use super::Bomb;

macro_rules! bombs {
    ($($name:literal),* $(,)?) => {
        vec![$((
            concat!("heic-", $name),
            include_bytes!(concat!("../../../fixtures/heic/", $name, ".heic")).to_vec(),
        )),*]
    };
}

pub fn all() -> Vec<Bomb> {
    bombs![
        "bomb-stream-larger",
        "bomb-tile-larger",
        "bomb-same-tile",
        "bad-grid-uncovered",
        "bad-alpha-grid-uncovered",
        "bad-two-metas",
        "overlay", // valid, but unsupported
    ]
}
