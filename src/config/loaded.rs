//! The values of a configuration, each with its source.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{Fault, Origin};
use super::key::Key;
use super::model::Config;
use super::value::Value;

/// A configuration with the source of each value.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file that was read; `None` if there was none.
    pub source: Option<PathBuf>,
    /// By full key. Keys that are absent have their default.
    pub(super) provenance: BTreeMap<String, Origin>,
}

/// The built-in defaults: the result of [`load`](super::load()) without a file and overrides.
impl Default for Loaded {
    fn default() -> Self {
        Self { config: Config::default(), source: None, provenance: BTreeMap::new() }
    }
}

impl Loaded {
    /// The source of a key's value, by its full name.
    pub fn origin(&self, key: &str) -> &Origin {
        self.provenance.get(key).unwrap_or(&Origin::Default)
    }

    /// Checks a value and sets it.
    pub(super) fn put(&mut self, section: &str, key: &Key, value: &Value, origin: &Origin) -> Result<(), Fault> {
        key.rule.check(value)?;
        let put = self.config.section_mut(section).is_some_and(|section| section.put(key.name, value));
        if !put {
            return Err(key.rule.wrong_type(value));
        }
        self.provenance.insert(format!("{section}.{}", key.name), origin.clone());
        Ok(())
    }
}
