//! The project's pages, as people read them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a fence says of commands that no test runs; the reason follows.
const NOT_RUN: &str = "not run here: ";

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A page in Markdown.
pub struct Document {
    /// Its path below the root.
    pub path: PathBuf,
    pub text: String,
}

/// A fenced block of a page.
pub struct Block {
    /// The line of its fence, with the page's path: for failures.
    pub place: String,
    pub language: String,
    /// Why no test runs it, where none does.
    pub not_run: Option<String>,
    pub text: String,
}

impl Document {
    /// A page by its path.
    pub fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(root().join(&path)).unwrap();
        Self { path, text }
    }

    /// Every page for people: at the top, and in `docs/`.
    pub fn all() -> Vec<Self> {
        let mut paths = Vec::new();
        for folder in ["", "docs"].map(Path::new) {
            let names = fs::read_dir(root().join(folder)).unwrap();
            let names = names.map(|entry| folder.join(entry.unwrap().file_name()));
            paths.extend(names.filter(|path| path.extension().is_some_and(|end| end == "md")));
        }
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    /// The fenced blocks, in their order.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else { continue };
            let place = format!("{}:{}", self.path.display(), number + 1);
            let inside = lines.by_ref().map(|(_, line)| line);
            let text: String = inside
                .take_while(|line| line.trim() != "```")
                .map(|line| line.to_owned() + "\n")
                .collect();
            let (language, note) = info.split_once(' ').unwrap_or((info, ""));
            let not_run = (!note.is_empty()).then(|| {
                let reason = note.strip_prefix(NOT_RUN).filter(|reason| !reason.is_empty());
                reason
                    .unwrap_or_else(|| panic!("{place}: not of the form `{NOT_RUN}why`"))
                    .to_owned()
            });
            blocks.push(Block { place, language: language.to_owned(), not_run, text });
        }
        blocks
    }

    /// The text outside of the fenced blocks.
    pub fn prose(&self) -> String {
        let mut is_inside = false;
        let lines = self.text.lines().filter(|line| {
            let is_fence = line.trim_start().starts_with("```");
            is_inside ^= is_fence;
            !is_fence && !is_inside
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
