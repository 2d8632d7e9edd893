//! The types of settings: a typed row holds a setting's name, default, parser and help.
//!
//! There are two types, so that the compiler knows which settings always have a value: [`Setting`]
//! has a default, [`Optional`] has none. A row stands beside the function that reads it
//! (`nvidia.rs`, `web.rs`, …), and `settings.rs` lists all rows by name.

use super::parse;

/// The part of a setting that does not depend on the type of its value.
#[derive(Debug)]
pub(super) struct Row {
    /// The environment variable.
    pub name: &'static str,
    /// The default as text, if there is one.
    pub default: Option<&'static str>,
    /// How the value can be given.
    pub kind: Kind,
    /// Whether an empty value is a fault, because the setting protects the service.
    pub rejects_empty: bool,
    /// The help, in one line. Text between backticks is code; only Markdown keeps the backticks.
    pub help: &'static str,
}

/// How a setting's value can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As a flag with a value, or as a variable.
    Value,
    /// As a flag alone (`--sandbox`), or as a variable that says `true` or `false`.
    Switch,
    /// Only as a variable, since every process of the machine can read flags.
    Secret,
}

impl Row {
    /// The flag's name without dashes: `port` for `IMAGESVC_PORT`, `nvidia-timeout` for
    /// `NVIDIA_TIMEOUT`.
    pub(super) fn flag(&self) -> String {
        let bare = self.name.strip_prefix("IMAGESVC_").unwrap_or(self.name);
        bare.to_ascii_lowercase().replace('_', "-")
    }

    /// The help without backticks.
    pub(super) fn plain_help(&self) -> String {
        self.help.replace('`', "")
    }
}

/// Parses a value. The error continues a sentence that begins with the setting's name.
pub(super) type Parser<T> = fn(&str) -> Result<T, String>;

/// A setting with a default, which therefore always has a value.
pub(super) struct Setting<T> {
    /// The name, default and help.
    pub row: Row,
    /// The default again, here without `Option`.
    pub default: &'static str,
    /// Parses the value. It must accept the default.
    pub parse: Parser<T>,
}

impl<T> Setting<T> {
    /// A setting that is a flag or a variable.
    pub(super) const fn new(
        name: &'static str,
        default: &'static str,
        parse: Parser<T>,
        help: &'static str,
    ) -> Self {
        let row =
            Row { name, default: Some(default), kind: Kind::Value, rejects_empty: false, help };
        Self { row, default, parse }
    }
}

impl Setting<bool> {
    /// A switch that is off by default.
    pub(super) const fn switch(name: &'static str, help: &'static str) -> Self {
        let default = "false";
        let row =
            Row { name, default: Some(default), kind: Kind::Switch, rejects_empty: false, help };
        Self { row, default, parse: parse::switch }
    }
}

/// A setting without a default, which therefore may have no value.
pub(super) struct Optional<T> {
    /// The name and help.
    pub row: Row,
    /// Parses the value.
    pub parse: Parser<T>,
}

impl<T> Optional<T> {
    /// A setting that is a flag or a variable.
    pub(super) const fn new(name: &'static str, parse: Parser<T>, help: &'static str) -> Self {
        Self {
            row: Row { name, default: None, kind: Kind::Value, rejects_empty: false, help },
            parse,
        }
    }

    /// A setting whose value is secret. Its parser must not quote the value.
    pub(super) const fn secret(name: &'static str, parse: Parser<T>, help: &'static str) -> Self {
        Self {
            row: Row { name, default: None, kind: Kind::Secret, rejects_empty: false, help },
            parse,
        }
    }

    /// Makes an empty value a fault, for a setting that protects the service.
    pub(super) const fn reject_empty(self) -> Self {
        Self { row: Row { rejects_empty: true, ..self.row }, parse: self.parse }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_named_like_its_variable_without_the_prefix() {
        let flag = |name| Optional::new(name, parse::path, "").row.flag();
        assert_eq!(flag("IMAGESVC_MAX_IN_FLIGHT"), "max-in-flight");
        assert_eq!(flag("NVIDIA_TIMEOUT"), "nvidia-timeout");
    }
}
