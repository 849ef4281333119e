//! The environment, and the variables that override keys.
//!
//! `LAPCE_IPC__IPC__SOCKET_PATH=/x` is `ipc.socket_path = "/x"`: the prefix, the section and the key in capitals, with
//! two underscores between them, so that the single ones in a key's name cannot be mistaken. A misspelt
//! variable is an error. `LAPCE_IPC_SOCKET` and `LAPCE_IPC_CONFIG` have a single underscore and are other things.
//!
//! The environment is an argument everywhere, never looked up on the way: tests need not change that of their process.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::error::{Fault, Origin, Problem};
use super::key::Key;
use super::loaded::Loaded;
use super::model::SECTIONS;
use super::name::nearest;

/// The prefix of all overrides.
const PREFIX: &str = "LAPCE_IPC__";

/// A copy of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env(BTreeMap<OsString, OsString>);

impl Env {
    /// The environment of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// A variable's value. An empty variable counts as unset.
    ///
    /// ```
    /// # use lapce_ipc::config::Env;
    /// let env: Env = [("A", "1"), ("B", "")].into_iter().collect();
    /// assert_eq!(env.get("A"), Some("1".as_ref()));
    /// assert_eq!(env.get("B"), None);
    /// ```
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The variable that overrides a key.
///
/// ```
/// # use lapce_ipc::config::variable;
/// assert_eq!(variable("ipc", "socket_path"), "LAPCE_IPC__IPC__SOCKET_PATH");
/// ```
pub fn variable(section: &str, key: &str) -> String {
    format!("{PREFIX}{}__{}", section.to_ascii_uppercase(), key.to_ascii_uppercase())
}

/// Every variable, with the key that it overrides.
fn variables(loaded: &Loaded) -> BTreeMap<String, (&'static str, &'static Key)> {
    let keys = |name| loaded.config.section(name).map(|section| section.keys()).unwrap_or_default();
    SECTIONS
        .iter()
        .flat_map(|about| keys(about.name).iter().map(|key| (variable(about.name, key.name), (about.name, key))))
        .collect()
}

/// Applies the overrides of the environment, and reports their errors. An empty override empties an array.
pub(super) fn apply(loaded: &mut Loaded, env: &Env, problems: &mut Vec<Problem>) {
    let known = variables(loaded);
    let ours = env.0.iter().filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    for (name, value) in ours {
        let name = name.to_string_lossy();
        let origin = Origin::Environment(name.clone().into_owned());
        let Some((section, key)) = known.get(name.as_ref()) else {
            let near = nearest(&name, known.keys().map(String::as_str)).map(str::to_owned);
            problems.push(Problem { origin, key: None, fault: Fault::UnknownVariable { near } });
            continue;
        };
        let value = value.to_str().ok_or(Fault::NotUtf8).and_then(|text| key.rule.parse(text));
        if let Err(problem) = value.and_then(|value| loaded.put(section, key, &value, &origin)) {
            problems.push(Problem { origin, key: Some(format!("{section}.{}", key.name)), fault: problem });
        }
    }
}
