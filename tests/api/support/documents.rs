//! The project's Markdown pages, and the fenced blocks in them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// In the opening fence of a block, this mark says that no test runs the block. The reason follows
/// the mark.
const NOT_RUN: &str = "not run here: ";

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown page.
pub struct Document {
    /// The page's path below the repository's root.
    pub path: PathBuf,
    pub text: String,
}

/// A fenced block of a page.
pub struct Block {
    /// The page's path and the line of the opening fence, for assertion messages.
    pub place: String,
    pub language: String,
    /// The reason after [`NOT_RUN`], or `None` if the opening fence does not have this mark.
    pub not_run: Option<String>,
    pub text: String,
}

impl Document {
    /// Reads the page at a path below the repository's root.
    pub fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(root().join(&path)).unwrap();
        Self { path, text }
    }

    /// Reads every page at the repository's root and in `docs/`.
    pub fn all() -> Vec<Self> {
        let mut paths = Vec::new();
        for folder in ["", "docs"].map(Path::new) {
            let entries = fs::read_dir(root().join(folder)).unwrap();
            let files = entries.map(|entry| folder.join(entry.unwrap().file_name()));
            paths.extend(files.filter(|path| path.extension().is_some_and(|ext| ext == "md")));
        }
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    /// The fenced blocks, in the order of the page.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else { continue };
            let place = format!("{}:{}", self.path.display(), number + 1);
            let text: String = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| line.trim() != "```")
                .map(|line| line.to_owned() + "\n")
                .collect();
            let (language, note) = info.split_once(' ').unwrap_or((info, ""));
            let not_run = note.strip_prefix(NOT_RUN).map(str::to_owned);
            let is_valid = note.is_empty() || not_run.as_ref().is_some_and(|why| !why.is_empty());
            assert!(is_valid, "{place}: the text after the language must be `{NOT_RUN}<reason>`");
            blocks.push(Block { place, language: language.to_owned(), not_run, text });
        }
        blocks
    }

    /// The text outside of the fenced blocks.
    pub fn prose(&self) -> String {
        let mut is_in_block = false;
        let lines = self.text.lines().filter(|line| {
            let is_fence = line.trim_start().starts_with("```");
            if is_fence {
                is_in_block = !is_in_block;
            }
            !is_fence && !is_in_block
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
