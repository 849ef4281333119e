//! The arrays of tables: `[[upstream]]`, `[[engine]]` and `[[quota]]`. Each table has a name; those of programs may
//! override keys of `[restart]`.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use super::entries::{Engine, Quota, Upstream};
use super::error::Fault;
use super::key::Section;
use super::model::{Config, RestartOverrides};
use super::name;
use super::reader::{Reader, checked};
use super::value::{found, shown_text};

/// One table of an array.
pub(super) trait Listed: Section + Default {
    /// The name of the array.
    const ARRAY: &'static str;
    /// What must stand there.
    const EXPECTED: &'static str;
    /// The keys that have no default.
    const REQUIRED: [&'static str; 2];

    fn name(&self) -> &str;
    /// All tables.
    fn all(config: &mut Config) -> &mut Vec<Self>;
    /// The overrides of `[restart]` by the names of the tables; `None`: a table has none.
    fn restart(config: &mut Config) -> Option<&mut BTreeMap<String, RestartOverrides>>;
}

impl Listed for Upstream {
    const ARRAY: &'static str = "upstream";
    const EXPECTED: &'static str = "an array of tables, [[upstream]]";
    const REQUIRED: [&'static str; 2] = ["name", "socket_path"];

    fn name(&self) -> &str {
        &self.name
    }

    fn all(config: &mut Config) -> &mut Vec<Self> {
        &mut config.upstream
    }

    fn restart(config: &mut Config) -> Option<&mut BTreeMap<String, RestartOverrides>> {
        Some(&mut config.upstream_restart)
    }
}

impl Listed for Engine {
    const ARRAY: &'static str = "engine";
    const EXPECTED: &'static str = "an array of tables, [[engine]]";
    const REQUIRED: [&'static str; 2] = ["name", "command"];

    fn name(&self) -> &str {
        &self.name
    }

    fn all(config: &mut Config) -> &mut Vec<Self> {
        &mut config.engine
    }

    fn restart(config: &mut Config) -> Option<&mut BTreeMap<String, RestartOverrides>> {
        Some(&mut config.engine_restart)
    }
}

impl Listed for Quota {
    const ARRAY: &'static str = "quota";
    const EXPECTED: &'static str = "an array of tables, [[quota]]";
    const REQUIRED: [&'static str; 2] = ["name", "clients"];

    fn name(&self) -> &str {
        &self.name
    }

    fn all(config: &mut Config) -> &mut Vec<Self> {
        &mut config.quota
    }

    fn restart(_: &mut Config) -> Option<&mut BTreeMap<String, RestartOverrides>> {
        None
    }
}

/// Reads the array.
pub(super) fn read<T: Listed>(reader: &mut Reader<'_>, value: &Spanned<DeValue<'_>>) {
    let DeValue::Array(items) = value.get_ref() else {
        let fault = Fault::WrongType { expected: T::EXPECTED, found: found(value.get_ref()) };
        return reader.problem(value.span(), T::ARRAY, fault);
    };
    let overrides: &[&str] = if T::restart(&mut reader.loaded.config).is_some() { RestartOverrides::KEYS } else { &[] };
    for (index, item) in items.iter().enumerate() {
        let full = format!("{}[{index}]", T::ARRAY);
        let Some(table) = reader.table(&full, item) else { continue };
        let (mut listed, mut restart) = (T::default(), RestartOverrides::default());
        for (name, value) in table.iter() {
            let full = format!("{full}.{}", name.get_ref());
            if overrides.contains(&name.get_ref().as_ref())
                && let Some(key) = RestartOverrides::key(name.get_ref())
            {
                match checked(key, value) {
                    Ok(value) => _ = restart.values.insert(key.name, value),
                    Err(fault) => reader.problem(value.span(), &full, fault),
                }
                continue;
            }
            let Some(key) = listed.key(name.get_ref()) else {
                let keys = listed.keys().iter().map(|key| key.name);
                let near = name::nearest(name.get_ref(), keys.chain(overrides.iter().copied()));
                reader.problem(name.span(), &full, Fault::UnknownKey { near: near.map(str::to_owned) });
                continue;
            };
            match checked(key, value) {
                Ok(checked) if listed.put(key.name, &checked) => {}
                Ok(checked) => reader.problem(value.span(), &full, key.rule.wrong_type(&checked)),
                Err(fault) => reader.problem(value.span(), &full, fault),
            }
        }
        for required in T::REQUIRED {
            if !table.contains_key(required) {
                reader.problem(item.span(), &format!("{full}.{required}"), Fault::Missing);
            }
        }
        let name = listed.name().to_owned();
        let twin = T::all(&mut reader.loaded.config).iter().any(|other| other.name() == name);
        if twin && !name.is_empty() {
            let why = format!("is also the name of another {}", T::ARRAY);
            let fault = Fault::Unusable { value: shown_text(&name), why };
            reader.problem(item.span(), &format!("{full}.name"), fault);
        }
        let origin = reader.source.at(item.span().start);
        reader.loaded.provenance.insert(full, origin);
        if let Some(overrides) = T::restart(&mut reader.loaded.config).filter(|_| !restart.values.is_empty()) {
            overrides.insert(name, restart);
        }
        T::all(&mut reader.loaded.config).push(listed);
    }
}
