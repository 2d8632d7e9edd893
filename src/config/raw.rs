//! The settings as text, before they are parsed: flags win over the environment, which wins over
//! `.env`.

use std::{collections::BTreeSet, ffi::OsString, fs, io::ErrorKind, path::Path};

use clap::{ArgMatches, parser::ValueSource};

use super::{
    dotenv,
    reader::Values,
    row::Row,
    settings::{SETTINGS, find},
};

/// The settings as text, by the name of their variable. An empty value counts as unset, except for
/// settings that protect the service: there it is a fault.
#[derive(Default)]
pub struct RawSettings {
    pub(super) values: Values,
    /// Settings that were given with an empty value.
    empty: BTreeSet<&'static str>,
    /// Variables that begin with `IMAGESVC_` but are no settings, mostly misspelt ones.
    unknown: Vec<String>,
    /// Faults of variables whose value is not UTF-8, and of a `.env` that cannot be read.
    pub(super) unreadable: Vec<String>,
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
        for (name, value) in environment {
            let Some(name) = name.to_str() else { continue };
            match value.into_string() {
                Ok(value) => raw.add(name, &value),
                Err(_) if find(name).is_some() => {
                    raw.unreadable.push(format!("{name} is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        for setting in SETTINGS {
            if flags.try_contains_id(setting.name).is_ok()
                && flags.value_source(setting.name) == Some(ValueSource::CommandLine)
                && let Some(value) = flags.get_one::<String>(setting.name)
            {
                raw.add(setting.name, value);
            }
        }
        raw
    }

    /// Takes settings from pairs alone and ignores the process. Tests use it.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut raw = Self::default();
        for (name, value) in pairs {
            raw.add(name, value);
        }
        raw
    }

    /// Returns a fault for each protective setting that was given with an empty value, since an
    /// empty value would protect nothing.
    pub(super) fn faults_of_empty_values(&self) -> Vec<String> {
        let is_faulty = |row: &&Row| {
            row.rejects_empty
                && self.empty.contains(row.name)
                && !self.values.contains_key(row.name)
        };
        let fault = |row: &Row| {
            format!(
                "{} is set but empty, and would protect nothing: give it a value, or remove it",
                row.name
            )
        };
        SETTINGS.iter().filter(is_faulty).map(fault).collect()
    }

    /// Returns a notice for each unknown variable.
    pub(super) fn notices_of_unknown_variables(&self) -> Vec<String> {
        let notice = |name| format!("{name} is not a setting of this service; is it misspelt?");
        self.unknown.iter().map(notice).collect()
    }

    fn add_dotenv(&mut self, path: &Path) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                self.unreadable.push(format!(".env cannot be read: {}", error.kind()));
                return;
            }
        };
        // Other programs may share the file, and faults in their variables do not matter here.
        let is_ours = |name: &str| find(name).is_some() || name.starts_with("IMAGESVC_");
        for line in dotenv::parse(&text) {
            match line {
                Ok((name, value)) => self.add(name, value),
                Err(fault) if fault.name.is_some_and(|name| !is_ours(name)) => {}
                Err(fault) => self.unreadable.push(fault.to_string()),
            }
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        let value = value.trim();
        match find(name) {
            Some(setting) if value.is_empty() => {
                self.empty.insert(setting.name);
            }
            Some(setting) => {
                self.values.insert(setting.name, value.to_owned());
            }
            None if value.is_empty() => {}
            None if name.starts_with("IMAGESVC_") => self.unknown.push(name.to_owned()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command;

    impl RawSettings {
        fn get(&self, name: &str) -> Option<&str> {
            self.values.get(name).map(String::as_str)
        }
    }

    fn merge(flags: &[&str], environment: &[(&str, &str)], dotenv: &str) -> RawSettings {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        fs::write(&path, dotenv).unwrap();
        let flags = command().try_get_matches_from([&["imagesvc"], flags].concat()).unwrap();
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
    fn an_empty_value_is_an_unset_one() {
        let raw = merge(&[], &[("IMAGESVC_PORT", " ")], "IMAGESVC_PORT=3\n");
        assert_eq!(raw.get("IMAGESVC_PORT"), Some("3"));
    }

    #[test]
    fn a_switch_needs_no_value() {
        assert_eq!(merge(&["--sandbox"], &[], "").get("IMAGESVC_SANDBOX"), Some("true"));
        assert_eq!(merge(&["--sandbox=false"], &[], "").get("IMAGESVC_SANDBOX"), Some("false"));
        assert_eq!(merge(&[], &[], "").get("IMAGESVC_SANDBOX"), None);
    }

    #[test]
    fn a_secret_is_no_flag() {
        assert!(command().try_get_matches_from(["imagesvc", "--nvidia-api-key", "x"]).is_err());
    }

    #[test]
    fn a_misspelt_variable_is_noticed() {
        assert_eq!(merge(&[], &[("IMAGESVC_PROT", "1")], "").unknown, ["IMAGESVC_PROT"]);
    }

    #[test]
    fn a_broken_dotenv_is_a_fault_that_quotes_nothing() {
        let raw = merge(&[], &[], "no setting nvapi-secret\nIMAGESVC_PORT=3\n");
        assert_eq!(raw.unreadable, [".env, line 1: it is not NAME=value"]);
        let of_others = merge(&[], &[], "DATABASE_URL=postgres://$USER\nIMAGESVC_PORT=3\n");
        assert!(of_others.unreadable.is_empty());
        assert_eq!(merge(&[], &[], "IMAGESVC_API_KEYS=$x\n").unreadable.len(), 1);
        assert_eq!(raw.get("IMAGESVC_PORT"), Some("3"), "the lines after the fault are read");
    }
}
