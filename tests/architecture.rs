//! Checks the layout's rule: imports point downwards, and never in a circle.
//!
//! It reads every `crate::` and `super::` path of the sources, except in code that is compiled only
//! for tests. A file may always name its own children, since a room's front re-exports what is
//! inside.

#![allow(clippy::unwrap_used, reason = "if the sources cannot be read, the test should fail")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The floors, from the top down. Rooms on the same floor must not import each other. All other
/// rooms are on the ground floor.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["bulk"],
    &["app"],
    &["config"],
    &["web", "sandbox"],
    &["server"],
    &["pipeline"],
    &["embed", "store", "fetch"],
    &["nvidia"],
];

/// The rooms that may use axum. `app` needs it because it hands a router on.
const KNOW_AXUM: &[&str] = &["web", "sandbox", "server", "app"];

/// The rooms that may import `config`.
const KNOW_CONFIG: &[&str] = &["cli", "bulk", "app", "config"];

/// The most lines of a file.
const LONGEST: usize = 400;

/// A module's path below the crate: `["embed", "cache"]`.
type Module = Vec<String>;

/// A source file: its module, and the paths and names in it.
struct Source {
    module: Module,
    lines: usize,
    /// Paths that begin with `crate` or `super`, as paths below the crate.
    paths: BTreeSet<Vec<String>>,
    /// All other names, among them those of crates.
    names: BTreeSet<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let tokens = TokenStream::from_str(&text).unwrap();
        let module = module_of(path.strip_prefix(&root).unwrap());
        let mut source = Source {
            lines: text.lines().count(),
            paths: BTreeSet::new(),
            names: BTreeSet::new(),
            module,
        };
        let module = source.module.clone();
        read_paths(tokens, &module, &mut source);
        source
    };
    // `tests.rs` is compiled only for tests.
    files.iter().filter(|path| !path.ends_with("tests.rs")).map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn module_of(path: &Path) -> Module {
    let names = path.with_extension("");
    let names = names.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "lib").collect()
}

/// Collects the paths in a module's tokens, including those inside macros.
fn read_paths(tokens: TokenStream, module: &[String], source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_for_tests(&tokens[at..]) {
            at = end_of_item(&tokens, at + 2);
            continue;
        }
        if is_visibility(&tokens[at..]) {
            at += 2;
            continue;
        }
        match &tokens[at] {
            // Paths in an inline module would be relative to it, so inline modules are not allowed.
            TokenTree::Ident(name) if name == "mod" => {
                let is_inline = matches!(&tokens[at + 2], TokenTree::Group(_));
                assert!(!is_inline, "an inline module in {module:?}");
                at += 1;
            }
            TokenTree::Ident(name) if begins_path(&tokens, at) => {
                let prefix = match name.to_string().as_str() {
                    "crate" => Some(Vec::new()),
                    "self" => Some(module.to_vec()),
                    "super" => Some(module[..module.len() - 1].to_vec()),
                    _ => None,
                };
                source.names.insert(name.to_string());
                at += 1;
                if let Some(prefix) = prefix {
                    at = read_tree(&tokens, at, prefix, source);
                }
            }
            TokenTree::Ident(name) => {
                source.names.insert(name.to_string());
                at += 1;
            }
            TokenTree::Group(group) => {
                read_paths(group.stream(), module, source);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Whether a path begins here: a name followed, but not preceded, by `::`.
fn begins_path(tokens: &[TokenTree], at: usize) -> bool {
    is_colons(tokens, at + 1) && !(at >= 2 && is_colons(tokens, at - 2))
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let is_colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    is_colon(at) && is_colon(at + 1)
}

/// Reads the names and groups that follow a path's prefix. Returns the position of the path's end.
fn read_tree(
    tokens: &[TokenTree],
    mut at: usize,
    mut path: Vec<String>,
    source: &mut Source,
) -> usize {
    while is_colons(tokens, at) {
        match tokens.get(at + 2) {
            Some(TokenTree::Ident(name)) if name == "super" => drop(path.pop()),
            Some(TokenTree::Ident(name)) if name == "self" => {}
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                for part in inside.split(
                    |token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','),
                ) {
                    read_part(part, &path, source);
                }
                return at + 3;
            }
            // A turbofish, or `*`.
            _ => break,
        }
        at += 3;
    }
    source.paths.insert(path);
    at
}

/// Reads one item of a group in `use`.
fn read_part(part: &[TokenTree], prefix: &[String], source: &mut Source) {
    let mut path = prefix.to_vec();
    match part.first() {
        Some(TokenTree::Ident(name)) if name == "self" => {}
        Some(TokenTree::Ident(name)) if name == "super" => drop(path.pop()),
        Some(TokenTree::Ident(name)) => path.push(name.to_string()),
        _ => return,
    }
    read_tree(part, 1, path, source);
}

/// Whether the tokens begin with `#[cfg(test)]`.
fn is_for_tests(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]
        if hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// Whether the tokens begin with a visibility such as `pub(in path)`, whose path imports nothing.
fn is_visibility(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(word), TokenTree::Group(group), ..]
        if word == "pub" && group.delimiter() == Delimiter::Parenthesis)
}

/// The end of the item that begins here: after its `;` or its body.
fn end_of_item(tokens: &[TokenTree], from: usize) -> usize {
    // Further attributes may precede the item's first word. A field or a match arm would end
    // differently, so it is not allowed here.
    let first = tokens[from..].iter().find_map(|token| match token {
        TokenTree::Ident(word) => Some(word.to_string()),
        _ => None,
    });
    let words =
        ["pub", "fn", "async", "const", "static", "mod", "use", "impl", "struct", "enum", "type"];
    assert!(
        first.as_ref().is_some_and(|word| words.contains(&word.as_str())),
        "for tests: {first:?}"
    );
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    tokens[from..].iter().position(ends).map_or(tokens.len(), |end| from + end + 1)
}

/// The imports between files: from each module to the modules that it names.
fn arrows(sources: &[Source]) -> BTreeMap<&Module, BTreeSet<&Module>> {
    let modules: BTreeSet<&Module> = sources.iter().map(|source| &source.module).collect();
    // The file that defines a path is the longest prefix of the path that is a module.
    let target = |path: &Vec<String>| {
        let beginnings = (1..=path.len()).rev().map(|length| path[..length].to_vec());
        beginnings.into_iter().find_map(|beginning| modules.get(&beginning).copied())
    };
    let named = |source: &Source| source.paths.iter().filter_map(target).collect::<BTreeSet<_>>();
    sources
        .iter()
        .map(|source| {
            let mut named = named(source);
            // A room's front may name what is inside the room.
            named.retain(|module| !module.starts_with(&source.module));
            (&source.module, named)
        })
        .collect()
}

/// The floor of a module's room; 0 is the ground floor.
fn floor(module: &Module) -> usize {
    let room = module.first().map_or("", String::as_str);
    let from_top = FLOORS.iter().position(|rooms| rooms.contains(&room));
    from_top.map_or(0, |from_top| FLOORS.len() - from_top)
}

fn room(module: &Module) -> &str {
    module.first().map_or("", String::as_str)
}

#[test]
fn imports_point_downwards() {
    let sources = sources();
    assert!(sources.len() > 50, "the sources were not found");
    for (from, named) in arrows(&sources) {
        // `main` and `lib` are above all floors.
        if matches!(room(from), "main" | "") {
            continue;
        }
        for to in named {
            let is_inside = room(from) == room(to);
            let is_down = floor(from) > floor(to) || floor(from) == 0 && floor(to) == 0;
            assert!(is_inside || is_down, "{} imports {}", from.join("::"), to.join("::"));
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let mut arrows = arrows(&sources);
    // A module that imports none of the remaining ones is in no circle.
    while let Some(done) = arrows.iter().find(|(_, named)| named.is_empty()).map(|(from, _)| *from)
    {
        arrows.remove(done);
        for named in arrows.values_mut() {
            named.remove(done);
        }
    }
    let left: Vec<_> = arrows.keys().map(|module| module.join("::")).collect();
    assert!(left.is_empty(), "in circles, or above them: {left:?}");
}

#[test]
fn only_the_rooms_of_http_know_axum_and_only_the_top_knows_the_settings_of_the_process() {
    let (mut know_axum, mut know_config) = (0, 0);
    for Source { module, names, paths, .. } in sources() {
        if names.contains("axum") {
            know_axum += 1;
            assert!(KNOW_AXUM.contains(&room(&module)), "{} knows axum", module.join("::"));
        }
        if paths.iter().any(|path| path.first().is_some_and(|first| first == "config")) {
            know_config += 1;
            assert!(KNOW_CONFIG.contains(&room(&module)), "{} reads config", module.join("::"));
        }
    }
    assert!(know_axum > 5 && know_config > 1, "nothing was found");
}

#[test]
fn no_file_is_too_long_to_be_read() {
    for Source { module, lines, .. } in sources() {
        assert!(lines <= LONGEST, "{} has {lines} lines", module.join("::"));
    }
}
