//! AWS's own variables, from which a bucket takes its credentials.

use secrecy::SecretString;

use crate::bucket::AWS_VARIABLES;

/// The variables of an access key. Only a temporary key has a session token.
const ACCESS_KEY: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// The variables that are set, with their values. Some of the values are secret.
#[derive(Debug, Clone, Default)]
pub(super) struct AwsVariables(Vec<(&'static str, SecretString)>);

impl AwsVariables {
    /// Returns whether the name is one of [`AWS_VARIABLES`]. If so, sets the variable, unless the value is
    /// empty.
    pub(super) fn add(&mut self, name: &str, value: &str) -> bool {
        let Some(name) = AWS_VARIABLES.into_iter().find(|known| *known == name) else {
            return false;
        };
        if !value.is_empty() {
            self.0.retain(|(known, _)| *known != name);
            self.0.push((name, value.into()));
        }
        true
    }

    /// Whether the variable is part of an access key.
    pub(super) fn is_access_key_part(name: &str) -> bool {
        ACCESS_KEY.contains(&name)
    }

    /// Unsets all variables of the access key.
    pub(super) fn forget_access_key(&mut self) {
        self.0.retain(|(name, _)| !Self::is_access_key_part(name));
    }

    /// Whether the variable is set.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == name)
    }

    /// The variables and their values.
    pub(super) fn to_vec(&self) -> Vec<(&'static str, SecretString)> {
        self.0.clone()
    }
}
