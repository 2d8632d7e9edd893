//! What a setting is: a typed row that holds its name, its default, its parser and its help.
//!
//! There are two types of them, so that the compiler knows which setting always has a value:
//! [`Setting`] has a default, [`Optional`] has none. A row stands beside the function that reads it
//! (`nvidia.rs`, `web.rs`, …) and once more, by name, in `settings.rs`, which lists them all.

use super::parse;

/// What is said of a setting, whatever the type of its value.
#[derive(Debug)]
pub(super) struct Row {
    /// The environment variable.
    pub name: &'static str,
    /// The value when none is given, as it would be written; `None` where there is none.
    pub default: Option<&'static str>,
    /// How the value may be given.
    pub kind: Kind,
    /// Whether it guards something: there but empty, it is a fault.
    pub guards: bool,
    /// One line for people. What stands between backticks is code; only Markdown shows them.
    pub help: &'static str,
}

/// How a setting's value may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As a flag with a value, or as a variable.
    Value,
    /// As a flag alone (`--sandbox`), or as a variable that says `true` or `false`.
    Switch,
    /// As a variable only: flags are readable by every process of the machine.
    Secret,
}

impl Row {
    /// The flag without its dashes: `IMAGESVC_PORT` is `port`, `NVIDIA_TIMEOUT` is `nvidia-timeout`.
    pub(super) fn flag(&self) -> String {
        let bare = self.name.strip_prefix("IMAGESVC_").unwrap_or(self.name);
        bare.to_ascii_lowercase().replace('_', "-")
    }

    /// The help without Markdown's marks.
    pub(super) fn plain_help(&self) -> String {
        self.help.replace('`', "")
    }
}

/// Reads a value, or says what is wrong with it, in words that follow the setting's name.
pub(super) type Parser<T> = fn(&str) -> Result<T, String>;

/// A setting that has a default, and so always a value.
pub(super) struct Setting<T> {
    /// Its name, default and help.
    pub row: Row,
    /// The default once more, for here it is no `Option`.
    pub default: &'static str,
    /// Reads its value; reads its default without a fault.
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
        let row = Row { name, default: Some(default), kind: Kind::Value, guards: false, help };
        Self { row, default, parse }
    }
}

impl Setting<bool> {
    /// A switch, which is off unless it is turned on.
    pub(super) const fn switch(name: &'static str, help: &'static str) -> Self {
        let default = "false";
        let row = Row { name, default: Some(default), kind: Kind::Switch, guards: false, help };
        Self { row, default, parse: parse::switch }
    }
}

/// A setting that has no default, and so perhaps no value.
pub(super) struct Optional<T> {
    /// Its name and help.
    pub row: Row,
    /// Reads its value.
    pub parse: Parser<T>,
}

impl<T> Optional<T> {
    /// A setting that is a flag or a variable.
    pub(super) const fn new(name: &'static str, parse: Parser<T>, help: &'static str) -> Self {
        Self { row: Row { name, default: None, kind: Kind::Value, guards: false, help }, parse }
    }

    /// A setting whose value nobody else may see. Its parser must not quote the value.
    pub(super) const fn secret(name: &'static str, parse: Parser<T>, help: &'static str) -> Self {
        Self { row: Row { name, default: None, kind: Kind::Secret, guards: false, help }, parse }
    }

    /// The same setting as one that guards something: there but empty, it is a fault.
    pub(super) const fn guard(self) -> Self {
        Self { row: Row { guards: true, ..self.row }, parse: self.parse }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_the_variable_without_the_services_name() {
        let flag = |name| Optional::new(name, parse::path, "").row.flag();
        assert_eq!(flag("IMAGESVC_MAX_IN_FLIGHT"), "max-in-flight");
        assert_eq!(flag("NVIDIA_TIMEOUT"), "nvidia-timeout");
    }
}
