//! Checks the rules of `src/lib.rs` about imports. Each top-level module imports only top-level
//! modules of lower layers. Modules of the bottom layer may also import each other. No files and no
//! top-level modules import each other in a circle. Only some modules use axum or import `config`.
//! Also checks the length of all Rust files in `benches`, `deploy`, `src` and `tests`.
//!
//! The tests read every `crate::`, `self::` and `super::` path of the sources, except in code that
//! is compiled only for tests. A file may always import its own submodules, because it may
//! re-export their items.

#![allow(clippy::unwrap_used, reason = "if the sources cannot be read, the test should fail")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The layers of top-level modules, from the top down. Modules of the same listed layer must not
/// import each other. All modules that are not listed are in the bottom layer. They may import each
/// other, but not in a circle.
const LAYERS: &[&[&str]] = &[
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

/// The top-level modules that may use axum. `app` is one of them because it passes a router from `web` to
/// `server`.
const MAY_USE_AXUM: &[&str] = &["web", "sandbox", "server", "app"];

/// `config` itself, and the top-level modules that may import it.
const MAY_IMPORT_CONFIG: &[&str] = &["cli", "bulk", "app", "config"];

/// The largest allowed number of lines in a file.
const MAX_LINES: usize = 400;

/// A module's path without the crate: `["embed", "cache"]`.
type Module = Vec<String>;

/// A source file and the paths in it.
struct Source {
    module: Module,
    /// Paths that begin with `crate`, `self` or `super`, resolved and without the crate.
    paths: BTreeSet<Vec<String>>,
    /// All identifiers that may name an external crate, such as `axum`.
    identifiers: BTreeSet<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect_rust_files(&root, &mut files);
    let read_source = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let tokens = TokenStream::from_str(&text).unwrap();
        let module = module_of(path.strip_prefix(&root).unwrap());
        let mut source = Source { paths: BTreeSet::new(), identifiers: BTreeSet::new(), module };
        let module = source.module.clone();
        read_paths(tokens, &module, &mut source);
        source
    };
    // `tests.rs` is compiled only for tests.
    files.iter().filter(|path| !path.ends_with("tests.rs")).map(read_source).collect()
}

fn collect_rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_rust_files(&path, files);
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

/// Collects the paths and the identifiers in a module's tokens, including those inside macros.
fn read_paths(tokens: TokenStream, module: &[String], source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        // An attribute is two tokens. A visibility with parentheses is also two tokens.
        if begins_with_cfg_test(&tokens[at..]) {
            at = end_of_item(&tokens, at + 2);
            continue;
        }
        if begins_with_visibility(&tokens[at..]) {
            at += 2;
            continue;
        }
        match &tokens[at] {
            // In an inline module, `super` would mean something else, so inline modules are not
            // allowed.
            TokenTree::Ident(name) if name == "mod" => {
                let is_inline = matches!(&tokens[at + 2], TokenTree::Group(_));
                assert!(!is_inline, "{module:?} must not contain an inline module");
                at += 1;
            }
            TokenTree::Ident(name) if begins_path(&tokens, at) => {
                let prefix = match name.to_string().as_str() {
                    "crate" => Some(Vec::new()),
                    "self" => Some(module.to_vec()),
                    "super" => Some(module[..module.len() - 1].to_vec()),
                    _ => None,
                };
                source.identifiers.insert(name.to_string());
                at += 1;
                if let Some(prefix) = prefix {
                    at = read_tree(&tokens, at, prefix, source);
                }
            }
            TokenTree::Ident(name) => {
                source.identifiers.insert(name.to_string());
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

/// Whether a path begins at this token: `::` follows it, and does not precede it.
fn begins_path(tokens: &[TokenTree], at: usize) -> bool {
    is_double_colon(tokens, at + 1) && !(at >= 2 && is_double_colon(tokens, at - 2))
}

fn is_double_colon(tokens: &[TokenTree], at: usize) -> bool {
    let is_colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    is_colon(at) && is_colon(at + 1)
}

/// Reads the segments and `{…}` groups after a path's prefix. Returns the index after the path.
fn read_tree(
    tokens: &[TokenTree],
    mut at: usize,
    mut path: Vec<String>,
    source: &mut Source,
) -> usize {
    while is_double_colon(tokens, at) {
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
            // A turbofish or `*` ends the path.
            _ => break,
        }
        at += 3;
    }
    source.paths.insert(path);
    at
}

/// Reads one part of a `{…}` group, such as `b::c` in `{a, b::c}`.
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
fn begins_with_cfg_test(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]
        if hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// Whether the tokens begin with a visibility such as `pub(in path)`. The path in it is not an
/// import.
fn begins_with_visibility(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(word), TokenTree::Group(group), ..]
        if word == "pub" && group.delimiter() == Delimiter::Parenthesis)
}

/// The index after the item that begins at `from`: after its `;` or its body.
fn end_of_item(tokens: &[TokenTree], from: usize) -> usize {
    // Further attributes may precede the item's first word. `#[cfg(test)]` is not allowed on a
    // field or a match arm, since these end differently.
    let first_word = tokens[from..].iter().find_map(|token| match token {
        TokenTree::Ident(word) => Some(word.to_string()),
        _ => None,
    });
    let item_words =
        ["pub", "fn", "async", "const", "static", "mod", "use", "impl", "struct", "enum", "type"];
    assert!(
        first_word.as_ref().is_some_and(|word| item_words.contains(&word.as_str())),
        "#[cfg(test)] must be on an item, not on {first_word:?}"
    );
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    tokens[from..].iter().position(ends).map_or(tokens.len(), |end| from + end + 1)
}

/// The imports between files: each module with the modules that it imports.
fn imports(sources: &[Source]) -> BTreeMap<&Module, BTreeSet<&Module>> {
    let modules: BTreeSet<&Module> = sources.iter().map(|source| &source.module).collect();
    // A path is defined in the file of its longest prefix that is a module.
    let target = |path: &Vec<String>| {
        let mut prefixes = (1..=path.len()).rev().map(|length| path[..length].to_vec());
        prefixes.find_map(|prefix| modules.get(&prefix).copied())
    };
    let imports_of = |source: &Source| {
        let mut imported: BTreeSet<_> = source.paths.iter().filter_map(target).collect();
        // A file may import its own submodules.
        imported.retain(|module| !module.starts_with(&source.module));
        imported
    };
    sources.iter().map(|source| (&source.module, imports_of(source))).collect()
}

/// The height of a module's layer; 0 is the bottom layer.
fn height(module: &Module) -> usize {
    let from_top = LAYERS.iter().position(|layer| layer.contains(&top_level(module)));
    from_top.map_or(0, |from_top| LAYERS.len() - from_top)
}

/// The top-level module that contains this module, or an empty name for `lib.rs`.
fn top_level(module: &Module) -> &str {
    module.first().map_or("", String::as_str)
}

#[test]
fn no_import_leads_upwards_or_between_top_level_modules_of_the_same_listed_layer() {
    let sources = sources();
    // Fewer would mean that `sources` misses some files.
    assert!(sources.len() > 50, "more than 50 files should be found, not {}", sources.len());
    for (from, imported) in imports(&sources) {
        // `main` and `lib` are above all layers.
        if matches!(top_level(from), "main" | "") {
            continue;
        }
        for to in imported {
            let is_within_top_level = top_level(from) == top_level(to);
            let is_within_bottom_layer = height(from) == 0 && height(to) == 0;
            let is_downwards = height(from) > height(to);
            assert!(
                is_within_top_level || is_within_bottom_layer || is_downwards,
                "{} must not import {}",
                from.join("::"),
                to.join("::")
            );
        }
    }
}

/// Fails if any modules import each other in a circle.
fn assert_no_circle<M: Ord + Copy + fmt::Debug>(mut imports: BTreeMap<M, BTreeSet<M>>) {
    // A module that imports none of the remaining modules is in no circle, so it is removed.
    loop {
        let removable = imports.iter().find(|(_, imported)| imported.is_empty());
        let Some(module) = removable.map(|(module, _)| *module) else { break };
        imports.remove(&module);
        for imported in imports.values_mut() {
            imported.remove(&module);
        }
    }
    let remaining: Vec<_> = imports.keys().collect();
    assert!(
        remaining.is_empty(),
        "these modules import each other in a circle, or import a module that does: {remaining:?}"
    );
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    assert_no_circle(imports(&sources));
}

#[test]
fn no_top_level_modules_import_each_other_in_a_circle() {
    let sources = sources();
    let mut imports_of_top_level: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, imported) in imports(&sources) {
        let others = imported.into_iter().map(top_level).filter(|to| *to != top_level(from));
        imports_of_top_level.entry(top_level(from)).or_default().extend(others);
    }
    assert_no_circle(imports_of_top_level);
}

#[test]
fn only_the_listed_modules_use_axum_or_import_config() {
    let (mut axum_users, mut config_importers) = (0, 0);
    for Source { module, identifiers, paths, .. } in sources() {
        if identifiers.contains("axum") {
            axum_users += 1;
            let is_allowed = MAY_USE_AXUM.contains(&top_level(&module));
            assert!(is_allowed, "{} must not use axum", module.join("::"));
        }
        if paths.iter().any(|path| path.first().is_some_and(|first| first == "config")) {
            config_importers += 1;
            assert!(
                MAY_IMPORT_CONFIG.contains(&top_level(&module)),
                "{} must not import config",
                module.join("::")
            );
        }
    }
    // Fewer would mean that `sources` misses some paths.
    assert!(
        axum_users > 5 && config_importers > 1,
        "more files should be found: {axum_users} use axum, and {config_importers} import config"
    );
}

#[test]
fn no_rust_file_has_more_than_400_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["benches", "deploy", "src", "tests"] {
        collect_rust_files(&root.join(folder), &mut files);
    }
    for expected in ["src/shares/tests.rs", "tests/architecture.rs"].map(|name| root.join(name)) {
        assert!(files.contains(&expected), "{} should be found", expected.display());
    }
    for path in files {
        let line_count = fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            line_count <= MAX_LINES,
            "{} must have at most {MAX_LINES} lines, not {line_count}",
            path.display()
        );
    }
}
