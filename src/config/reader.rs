//! Parses settings one by one and collects their errors, so that all errors are reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use super::setting::{OptionalSetting, Setting, SettingInfo};

/// The values of all settings that are set, by the names of their variables.
pub(super) type Values = BTreeMap<&'static str, String>;

/// Parses values, and collects errors and warnings.
pub(super) struct Reader<'a> {
    values: &'a Values,
    /// The names of the settings that were read. `Config::resolve` checks that the list of settings
    /// contains all of them.
    pub names_read: BTreeSet<&'static str>,
    /// With an error, the service does not start.
    pub errors: Vec<String>,
    /// With warnings only, the service starts.
    pub warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(values: &'a Values) -> Self {
        Self { values, names_read: BTreeSet::new(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// Returns the value of a setting. Returns the default if the setting is not set, or if its
    /// value is invalid. An invalid value also adds an error.
    pub(super) fn value<T>(&mut self, setting: &Setting<T>) -> T {
        self.parsed(&setting.info, setting.parse).unwrap_or_else(|| {
            #[allow(clippy::expect_used)]
            (setting.parse)(setting.default).expect("every default of a setting must be valid")
        })
    }

    /// Returns the value of a setting. Returns `None` if the setting is not set, or if its value is
    /// invalid. An invalid value also adds an error.
    pub(super) fn optional<T>(&mut self, setting: &OptionalSetting<T>) -> Option<T> {
        self.parsed(&setting.info, setting.parse)
    }

    /// Returns a secret from a variable, or from the file whose path is in another variable. Returns
    /// `None` if neither is set. Also returns `None`, and adds an error, if both are set, or if the
    /// secret is invalid or cannot be read.
    pub(super) fn secret<T>(
        &mut self,
        setting: &OptionalSetting<T>,
        file: &OptionalSetting<PathBuf>,
    ) -> Option<T> {
        let (variable, file_variable) = (setting.info.name, file.info.name);
        if self.is_set(&setting.info) && self.is_set(&file.info) {
            self.errors.push(format!("{variable} and {file_variable} are both set: keep one"));
            return None;
        }
        let Some(path) = self.optional(file) else { return self.optional(setting) };
        match fs::read_to_string(path) {
            Ok(text) => self.ok_or_add_error(file_variable, (setting.parse)(&text)),
            Err(error) => {
                self.errors.push(format!("{file_variable} cannot be read: {}", error.kind()));
                None
            }
        }
    }

    /// Whether a setting has a value, valid or not. Adds the setting to `names_read`.
    pub(super) fn is_set(&mut self, setting: &SettingInfo) -> bool {
        self.text(setting).is_some()
    }

    fn parsed<T>(
        &mut self,
        setting: &SettingInfo,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = parse(self.text(setting)?);
        self.ok_or_add_error(setting.name, parsed)
    }

    fn text(&mut self, setting: &SettingInfo) -> Option<&'a str> {
        self.names_read.insert(setting.name);
        self.values.get(setting.name).map(String::as_str)
    }

    fn ok_or_add_error<T>(&mut self, name: &str, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|error| self.errors.push(format!("{name} {error}"))).ok()
    }
}
