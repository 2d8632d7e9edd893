//! Collects the settings as text from the flags, the environment and `.env`, before they are
//! parsed. A flag wins over the environment, which wins over `.env`.

use std::{collections::BTreeSet, ffi::OsString, fs, io::ErrorKind, path::Path};

use clap::{ArgMatches, parser::ValueSource};

use super::{
    aws::AwsVariables,
    dotenv,
    reader::Values,
    setting::SettingInfo,
    settings::{self, find},
};
use crate::bucket::AWS_VARIABLES;

/// The settings as text. An empty value counts as unset. But if a setting that protects the service has
/// only empty values, this is an error.
#[derive(Default)]
pub struct RawSettings {
    /// The values by the names of their variables.
    pub(super) values: Values,
    /// The variables from which a bucket takes its credentials.
    pub(super) aws_variables: AwsVariables,
    /// The names of settings that have an empty value in at least one source.
    empty: BTreeSet<&'static str>,
    /// Variables that begin with `IMAGESVC_` but are not settings. Most are misspelt.
    unknown: Vec<String>,
    /// The errors of values that are not UTF-8, and of a `.env` that is invalid or cannot be read.
    pub(super) read_errors: Vec<String>,
}

impl RawSettings {
    /// Merges the three sources: flags, environment and `.env`.
    pub fn merge(
        flags: &ArgMatches,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        dotenv: &Path,
    ) -> Self {
        let mut raw = Self::default();
        raw.add_dotenv(dotenv);
        let environment: Vec<_> = environment.into_iter().collect();
        // An AWS access key must not have some parts from the environment and others from `.env`.
        let is_access_key_part = |(name, value): &(OsString, OsString)| {
            let is_empty = value.to_str().is_some_and(|value| value.trim().is_empty());
            !is_empty && name.to_str().is_some_and(AwsVariables::is_access_key_part)
        };
        if environment.iter().any(is_access_key_part) {
            raw.aws_variables.forget_access_key();
        }
        for (name, value) in environment {
            let Some(name) = name.to_str() else { continue };
            match value.into_string() {
                Ok(value) => raw.add(name, &value),
                Err(_) if find(name).is_some() || AWS_VARIABLES.contains(&name) => {
                    raw.read_errors.push(format!("{name} is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        for setting in settings::all() {
            // A secret has no flag, and clap panics if it is asked for an unknown flag.
            if flags.try_contains_id(setting.name).is_ok()
                && flags.value_source(setting.name) == Some(ValueSource::CommandLine)
                && let Some(value) = flags.get_one::<String>(setting.name)
            {
                raw.add(setting.name, value);
            }
        }
        raw
    }

    /// Takes the settings from pairs of name and value, for tests. A later pair wins, unless its
    /// value is empty.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut raw = Self::default();
        for (name, value) in pairs {
            raw.add(name, value);
        }
        raw
    }

    /// Returns an error for each setting that protects the service and is set, but only to an empty
    /// value.
    pub(super) fn errors_of_empty_values(&self) -> Vec<String> {
        let is_invalid = |setting: &&SettingInfo| {
            setting.rejects_empty
                && self.empty.contains(setting.name)
                && !self.values.contains_key(setting.name)
        };
        let error = |setting: &SettingInfo| {
            format!(
                "{} is set but empty, and would protect nothing: give it a value, or remove it",
                setting.name
            )
        };
        settings::all().filter(is_invalid).map(error).collect()
    }

    /// Returns a warning for each unknown variable.
    pub(super) fn warnings_of_unknown_variables(&self) -> Vec<String> {
        let warning = |name| format!("{name} is not a setting of this service; is it misspelt?");
        self.unknown.iter().map(warning).collect()
    }

    fn add_dotenv(&mut self, path: &Path) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                self.read_errors.push(format!(".env cannot be read: {}", error.kind()));
                return;
            }
        };
        // Other programs may share the file. Errors in their variables are ignored.
        let is_ours = |name: &str| {
            find(name).is_some() || name.starts_with("IMAGESVC_") || AWS_VARIABLES.contains(&name)
        };
        for line in dotenv::parse(&text) {
            match line {
                Ok((name, value)) => self.add(name, value),
                Err(error) if error.name.is_some_and(|name| !is_ours(name)) => {}
                Err(error) => self.read_errors.push(error.to_string()),
            }
        }
    }

    /// Adds a value, which replaces an earlier one. An empty value replaces nothing. Ignores variables
    /// of other programs.
    fn add(&mut self, name: &str, value: &str) {
        let value = value.trim();
        if self.aws_variables.add(name, value) {
            return;
        }
        match find(name) {
            Some(setting) if value.is_empty() => {
                self.empty.insert(setting.name);
            }
            Some(setting) => {
                self.values.insert(setting.name, value.to_owned());
            }
            None if name.starts_with("IMAGESVC_") && !value.is_empty() => {
                self.unknown.push(name.to_owned());
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::config::command_line;

    impl RawSettings {
        fn get(&self, name: &str) -> Option<&str> {
            self.values.get(name).map(String::as_str)
        }
    }

    /// Merges the settings of a command line, an environment and a file `.env`.
    fn merge(flags: &[&str], environment: &[(&str, &str)], dotenv: &str) -> RawSettings {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        fs::write(&path, dotenv).unwrap();
        let flags = command_line().try_get_matches_from([&["imagesvc"], flags].concat()).unwrap();
        RawSettings::merge(
            &flags,
            environment.iter().map(|(name, value)| (name.into(), value.into())),
            &path,
        )
    }

    #[test]
    fn flags_win_over_the_environment_which_wins_over_dotenv() {
        let raw = merge(
            &["--port", "1"],
            &[("IMAGESVC_PORT", "2"), ("IMAGESVC_HOST", "127.0.0.2")],
            "IMAGESVC_PORT=3\nIMAGESVC_HOST=127.0.0.3\nIMAGESVC_LOG=\"debug\"\n",
        );
        assert_eq!(raw.get("IMAGESVC_PORT"), Some("1"));
        assert_eq!(raw.get("IMAGESVC_HOST"), Some("127.0.0.2"));
        assert_eq!(raw.get("IMAGESVC_LOG"), Some("debug"));
    }

    #[test]
    fn an_empty_value_counts_as_unset() {
        let raw = merge(&[], &[("IMAGESVC_PORT", " ")], "IMAGESVC_PORT=3\n");
        assert_eq!(raw.get("IMAGESVC_PORT"), Some("3"));
    }

    #[test]
    fn a_switch_can_be_given_without_a_value() {
        assert_eq!(merge(&["--sandbox"], &[], "").get("IMAGESVC_SANDBOX"), Some("true"));
        assert_eq!(merge(&["--sandbox=false"], &[], "").get("IMAGESVC_SANDBOX"), Some("false"));
        assert_eq!(merge(&[], &[], "").get("IMAGESVC_SANDBOX"), None);
    }

    #[test]
    fn the_access_key_of_dotenv_is_forgotten_if_the_environment_has_a_part_that_is_not_empty() {
        let dotenv = "AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=secret\n";
        for (token, is_forgotten) in [("", false), (" ", false), ("token", true)] {
            let raw = merge(&[], &[("AWS_SESSION_TOKEN", token)], dotenv);
            assert_eq!(raw.aws_variables.is_set("AWS_ACCESS_KEY_ID"), !is_forgotten, "{token:?}");
        }
    }

    #[test]
    fn only_settings_and_aws_variables_must_be_utf_8() {
        let not_utf_8 = || OsString::from_vec(vec![0xff]);
        let environment = ["IMAGESVC_PORT", "AWS_SESSION_TOKEN", "OTHER"]
            .map(|name| (OsString::from(name), not_utf_8()));
        let flags = command_line().try_get_matches_from(["imagesvc"]).unwrap();
        let raw = RawSettings::merge(&flags, environment, Path::new("/nothing/here"));
        let errors = ["IMAGESVC_PORT is not UTF-8", "AWS_SESSION_TOKEN is not UTF-8"];
        assert_eq!(raw.read_errors, errors);
    }

    #[test]
    fn a_secret_has_no_flag() {
        let flags = ["imagesvc", "--nvidia-api-key", "x"];
        assert!(command_line().try_get_matches_from(flags).is_err());
    }

    #[test]
    fn a_misspelt_variable_is_unknown() {
        assert_eq!(merge(&[], &[("IMAGESVC_PROT", "1")], "").unknown, ["IMAGESVC_PROT"]);
    }

    #[test]
    fn the_error_of_an_invalid_line_in_dotenv_does_not_quote_the_line() {
        let raw = merge(&[], &[], "no setting nvapi-secret\nIMAGESVC_PORT=3\n");
        assert_eq!(raw.read_errors, [".env, line 1: it is not NAME=value"]);
        assert_eq!(
            raw.get("IMAGESVC_PORT"),
            Some("3"),
            "the line after the invalid line must still be read"
        );
    }

    #[test]
    fn an_invalid_value_in_dotenv_is_an_error_unless_another_program_uses_the_variable() {
        // Outside single quotes, a `$` is invalid, because other readers of `.env` substitute variables.
        assert_eq!(merge(&[], &[], "IMAGESVC_API_KEYS=$x\n").read_errors.len(), 1);
        let raw = merge(&[], &[], "DATABASE_URL=postgres://$USER\n");
        assert!(raw.read_errors.is_empty());
    }
}
