//! The types that define a setting: its name, default, parser and help.
//!
//! There are two such types, so that the compiler knows which settings always have a value. A
//! [`Setting`] has a default, and an [`OptionalSetting`] has none. Each setting is a constant
//! beside the function that reads it (`nvidia.rs`, `web.rs`, …). `settings.rs` groups all of them.

use super::parse;

/// The part of a setting that does not depend on the type of its value.
#[derive(Debug)]
pub(super) struct SettingInfo {
    /// The name of the environment variable, which is also the name of the setting.
    pub name: &'static str,
    /// The default as text, if there is one.
    pub default: Option<&'static str>,
    /// How the setting can be set.
    pub kind: Kind,
    /// Whether an empty value is an error. This is for settings that protect the service.
    pub rejects_empty: bool,
    /// The help, in one line. It may contain code between backticks. Only the Markdown tables keep the
    /// backticks.
    pub help: &'static str,
}

/// How a setting can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By a flag with a value, or by a variable.
    Value,
    /// By a flag, with or without a value (`--sandbox`, `--sandbox=false`), or by a variable whose
    /// value is `true` or `false`.
    Switch,
    /// Only by a variable, because every process on the machine can read a process's flags.
    Secret,
}

impl SettingInfo {
    /// The flag's name without dashes: `port` for `IMAGESVC_PORT`, `nvidia-timeout` for
    /// `NVIDIA_TIMEOUT`.
    pub(super) fn flag(&self) -> String {
        let without_prefix = self.name.strip_prefix("IMAGESVC_").unwrap_or(self.name);
        without_prefix.to_ascii_lowercase().replace('_', "-")
    }

    /// The help without backticks.
    pub(super) fn plain_help(&self) -> String {
        self.help.replace('`', "")
    }
}

/// Parses a value. The error is the end of a sentence that begins with the setting's name.
pub(super) type Parser<T> = fn(&str) -> Result<T, String>;

/// A setting with a default. It always has a value.
pub(super) struct Setting<T> {
    /// The part that does not depend on `T`.
    pub info: SettingInfo,
    /// The same default as in `info`, without `Option`.
    pub default: &'static str,
    /// Parses the value. Must accept the default.
    pub parse: Parser<T>,
}

impl<T> Setting<T> {
    /// A setting of [`Kind::Value`].
    pub(super) const fn new(
        name: &'static str,
        default: &'static str,
        parse: Parser<T>,
        help: &'static str,
    ) -> Self {
        let info = SettingInfo {
            name,
            default: Some(default),
            kind: Kind::Value,
            rejects_empty: false,
            help,
        };
        Self { info, default, parse }
    }
}

impl Setting<bool> {
    /// A switch that is off by default.
    pub(super) const fn switch(name: &'static str, help: &'static str) -> Self {
        let default = "false";
        let info = SettingInfo {
            name,
            default: Some(default),
            kind: Kind::Switch,
            rejects_empty: false,
            help,
        };
        Self { info, default, parse: parse::switch }
    }
}

/// A setting without a default. It has no value until it is set.
pub(super) struct OptionalSetting<T> {
    /// The part that does not depend on `T`.
    pub info: SettingInfo,
    /// Parses the value.
    pub parse: Parser<T>,
}

impl<T> OptionalSetting<T> {
    /// A setting of [`Kind::Value`].
    pub(super) const fn new(name: &'static str, parse: Parser<T>, help: &'static str) -> Self {
        Self {
            info: SettingInfo {
                name,
                default: None,
                kind: Kind::Value,
                rejects_empty: false,
                help,
            },
            parse,
        }
    }

    /// A setting whose value is secret. The errors of `parse` must not contain the value.
    pub(super) const fn secret(name: &'static str, parse: Parser<T>, help: &'static str) -> Self {
        Self {
            info: SettingInfo {
                name,
                default: None,
                kind: Kind::Secret,
                rejects_empty: false,
                help,
            },
            parse,
        }
    }

    /// Makes an empty value an error, for a setting that protects the service.
    pub(super) const fn reject_empty(self) -> Self {
        Self { info: SettingInfo { rejects_empty: true, ..self.info }, parse: self.parse }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_has_the_name_of_its_variable_without_the_prefix_imagesvc() {
        let flag = |name| OptionalSetting::new(name, parse::path, "").info.flag();
        assert_eq!(flag("IMAGESVC_MAX_IN_FLIGHT"), "max-in-flight");
        assert_eq!(flag("NVIDIA_TIMEOUT"), "nvidia-timeout");
    }
}
