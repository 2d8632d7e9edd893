//! Reads settings one by one and collects their faults, so that all are reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use super::row::{Optional, Row, Setting};

/// The values that were given, by the names of their variables.
pub(super) type Values = BTreeMap<&'static str, String>;

/// Parses the given values, and collects faults and notices.
pub(super) struct Reader<'a> {
    given: &'a Values,
    /// The names of the settings that were read.
    pub names_read: BTreeSet<&'static str>,
    /// Faults, which keep the service from starting.
    pub faults: Vec<String>,
    /// Warnings, which do not.
    pub notices: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Starts with nothing read.
    pub(super) fn new(given: &'a Values) -> Self {
        Self { given, names_read: BTreeSet::new(), faults: Vec::new(), notices: Vec::new() }
    }

    /// Returns the value of a setting, or its default if none was given or the value has a fault.
    pub(super) fn value<T>(&mut self, setting: &Setting<T>) -> T {
        self.parsed(&setting.row, setting.parse).unwrap_or_else(|| {
            #[allow(clippy::expect_used)]
            (setting.parse)(setting.default).expect("a test parses every default")
        })
    }

    /// Returns the value of a setting, or `None` if none was given or the value has a fault.
    pub(super) fn optional<T>(&mut self, setting: &Optional<T>) -> Option<T> {
        self.parsed(&setting.row, setting.parse)
    }

    /// Returns a secret that is given directly or in a file.
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

    /// Whether a setting was given, whatever its value.
    pub(super) fn is_given(&mut self, row: &Row) -> bool {
        self.given(row).is_some()
    }

    fn parsed<T>(&mut self, row: &Row, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let outcome = parse(self.given(row)?);
        self.or_fault(row.name, outcome)
    }

    fn given(&mut self, row: &Row) -> Option<&'a str> {
        self.names_read.insert(row.name);
        self.given.get(row.name).map(String::as_str)
    }

    fn or_fault<T>(&mut self, name: &str, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|fault| self.faults.push(format!("{name} {fault}"))).ok()
    }
}
