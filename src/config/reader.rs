//! Reads settings one by one and keeps their faults, so that all are reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use super::row::{Optional, Row, Setting};

/// What was given, as text, by the names of the variables.
pub(super) type Given = BTreeMap<&'static str, String>;

/// Reads what was given, and collects what is to be said about it.
pub(super) struct Reader<'a> {
    given: &'a Given,
    /// The names of the settings that were asked for.
    pub asked: BTreeSet<&'static str>,
    /// What keeps the service from starting.
    pub faults: Vec<String>,
    /// What the operator should hear, although it is no fault.
    pub notices: Vec<String>,
}

impl<'a> Reader<'a> {
    /// A reader that has read nothing yet.
    pub(super) fn new(given: &'a Given) -> Self {
        Self { given, asked: BTreeSet::new(), faults: Vec::new(), notices: Vec::new() }
    }

    /// The value of a setting; its default where none is given, or where it has a fault.
    pub(super) fn value<T>(&mut self, setting: &Setting<T>) -> T {
        self.parsed(&setting.row, setting.parse).unwrap_or_else(|| {
            #[allow(clippy::expect_used)]
            (setting.parse)(setting.default).expect("every default parses: a test reads them all")
        })
    }

    /// The value of a setting that may be absent; none where it has a fault.
    pub(super) fn optional<T>(&mut self, setting: &Optional<T>) -> Option<T> {
        self.parsed(&setting.row, setting.parse)
    }

    /// A secret that is given itself or in a file.
    pub(super) fn secret<T>(
        &mut self,
        setting: &Optional<T>,
        file: &Optional<PathBuf>,
    ) -> Option<T> {
        let (name, file_name) = (setting.row.name, file.row.name);
        if self.is_given(&setting.row) && self.is_given(&file.row) {
            self.faults.push(format!("{name} and {file_name} are both set: keep one"));
            return None;
        }
        let Some(path) = self.optional(file) else { return self.optional(setting) };
        match fs::read_to_string(path) {
            Ok(text) => self.or_fault(file_name, (setting.parse)(&text)),
            Err(error) => {
                self.faults.push(format!("{file_name} cannot be read: {}", error.kind()));
                None
            }
        }
    }

    /// Whether a setting was given, be its value right or wrong.
    pub(super) fn is_given(&mut self, row: &Row) -> bool {
        self.given(row).is_some()
    }

    fn parsed<T>(&mut self, row: &Row, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let outcome = parse(self.given(row)?);
        self.or_fault(row.name, outcome)
    }

    fn given(&mut self, row: &Row) -> Option<&'a str> {
        self.asked.insert(row.name);
        self.given.get(row.name).map(String::as_str)
    }

    fn or_fault<T>(&mut self, name: &str, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|fault| self.faults.push(format!("{name} {fault}"))).ok()
    }
}
