//! Parses a configuration file into values with their positions.
//!
//! The document is walked, not deserialised: an unknown key, a wrong type and a number out of range are all found in
//! one pass, each with its position.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::entries::{Engine, Quota, Upstream};
use super::error::{Fault, Origin, Problem};
use super::key::{Key, Section};
use super::loaded::Loaded;
use super::model::{BreakerOverrides, CircuitBreaker, SECTIONS};
use super::reader::{Reader, SourceMap, checked};
use super::value::{Value, quoted_if_dotted, shown_text};
use super::{name, tables};

/// Applies the values of the file, and reports its errors in the file's order.
pub(super) fn apply(loaded: &mut Loaded, path: &Path, bytes: &[u8], problems: &mut Vec<Problem>) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            // The text before the first invalid byte is valid.
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let origin = SourceMap { path, text: &good }.at(good.len());
            problems.push(Problem { origin, key: None, fault: Fault::NotUtf8 });
            return;
        }
    };
    let source = SourceMap { path, text };
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // The result of a failed parse is not checked further.
        syntax(&source, &errors, problems);
        return;
    }
    let mut reader = Reader { loaded, source, found: Vec::new() };
    reader.document(document.get_ref());
    let mut found = reader.found;
    found.sort_by_key(|(offset, _)| *offset);
    problems.extend(found.into_iter().map(|(_, problem)| problem));
}

/// One error per line: after the first, a parser repeats itself.
fn syntax(source: &SourceMap<'_>, errors: &[toml::de::Error], problems: &mut Vec<Problem>) {
    let mut last_line = None;
    let mut sorted: Vec<_> = errors.iter().collect();
    sorted.sort_by_key(|error| error.span().map(|span| span.start));
    for error in sorted {
        let origin = source.at(error.span().map_or(source.text.len(), |span| span.start));
        let line = if let Origin::File { line, .. } = origin { Some(line) } else { None };
        if line != last_line {
            let fault = Fault::Syntax(error.message().replace('\n', ", "));
            problems.push(Problem { origin, key: None, fault });
        }
        last_line = line;
    }
}

type Entry<'t, 'i> = (&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>);

impl Reader<'_> {
    fn document(&mut self, document: &DeTable<'_>) {
        for entry in document.iter() {
            let (name, value) = entry;
            match name.get_ref().as_ref() {
                "upstream" => tables::read::<Upstream>(self, value),
                "engine" => tables::read::<Engine>(self, value),
                "quota" => tables::read::<Quota>(self, value),
                section => match SECTIONS.iter().find(|about| about.name == section) {
                    Some(about) => self.section(about.name, value),
                    None => self.unknown_at_top(entry),
                },
            }
        }
    }

    fn section(&mut self, section: &'static str, value: &Spanned<DeValue<'_>>) {
        let Some(table) = self.table(section, value) else { return };
        for (name, value) in table.iter() {
            match name.get_ref().as_ref() {
                "services" if section == "circuit_breaker" => self.breaker_services(value),
                key => match self.loaded.config.section(section).and_then(|keys| keys.key(key)) {
                    Some(key) => self.key(section, key, value),
                    None => self.unknown_key(section, name),
                },
            }
        }
    }

    /// A key of a section.
    fn key(&mut self, section: &'static str, key: &'static Key, value: &Spanned<DeValue<'_>>) {
        let origin = self.source.at(value.span().start);
        let put = Value::from_toml(value.get_ref(), key.rule.expected())
            .and_then(|value| self.loaded.put(section, key, &value, &origin));
        if let Err(fault) = put {
            self.problem(value.span(), &format!("{section}.{}", key.name), fault);
        }
    }

    /// `[circuit_breaker.services.NAME]`: the keys of `[circuit_breaker]`, all optional.
    fn breaker_services(&mut self, value: &Spanned<DeValue<'_>>) {
        const TABLE: &str = "circuit_breaker.services";
        let Some(services) = self.table(TABLE, value) else { return };
        for (service, value) in services.iter() {
            if let Some(why) = name::fault(service.get_ref()) {
                let value = shown_text(service.get_ref());
                self.problem(service.span(), TABLE, Fault::Unusable { value, why });
                continue;
            }
            let full = format!("{TABLE}.{}", quoted_if_dotted(service.get_ref()));
            let Some(table) = self.table(&full, value) else { continue };
            let mut overrides = BreakerOverrides::default();
            for (name, value) in table.iter() {
                let full = format!("{full}.{}", name.get_ref());
                let Some(key) = CircuitBreaker::default().key(name.get_ref()) else {
                    let fault = if value.get_ref().is_table() {
                        // `[circuit_breaker.services.ai.complete]` nests tables; the dotted name needs quotes.
                        let quoted = format!("{TABLE}.\"{}.{}\"", service.get_ref(), name.get_ref());
                        let near = name::fault(name.get_ref()).is_none().then_some(quoted);
                        Fault::UnknownTable { near }
                    } else {
                        let keys = CircuitBreaker::default().keys();
                        let near = name::nearest(name.get_ref(), keys.iter().map(|key| key.name));
                        Fault::UnknownKey { near: near.map(str::to_owned) }
                    };
                    self.problem(name.span(), &full, fault);
                    continue;
                };
                match checked(key, value) {
                    Ok(value) => _ = overrides.values.insert(key.name, value),
                    Err(fault) => self.problem(value.span(), &full, fault),
                }
                let origin = self.source.at(value.span().start);
                self.loaded.provenance.insert(full, origin);
            }
            self.loaded.config.breaker_services.insert(service.get_ref().to_string(), overrides);
        }
    }

    fn unknown_at_top(&mut self, (name, value): Entry<'_, '_>) {
        let written = name.get_ref();
        let sections = SECTIONS.iter().map(|about| about.name).chain(["upstream", "engine", "quota"]);
        let fault = if value.get_ref().is_table() || value.get_ref().is_array() {
            let near = name::nearest(written, sections).map(|near| format!("[{near}]"));
            Fault::UnknownTable { near }
        } else {
            Fault::UnknownKey { near: self.elsewhere(written) }
        };
        self.problem(name.span(), written, fault);
    }

    fn unknown_key(&mut self, section: &str, name: &Spanned<std::borrow::Cow<'_, str>>) {
        let written = name.get_ref();
        let keys = self.loaded.config.section(section).map(|section| section.keys()).unwrap_or_default();
        let near = match name::nearest(written, keys.iter().map(|key| key.name)) {
            Some(near) => Some(format!("{section}.{near}")),
            None => self.elsewhere(written),
        };
        self.problem(name.span(), &format!("{section}.{written}"), Fault::UnknownKey { near });
    }

    /// A key of exactly this name, in whatever section.
    fn elsewhere(&self, written: &str) -> Option<String> {
        let has = |name| self.loaded.config.section(name).is_some_and(|section| section.key(written).is_some());
        SECTIONS.iter().find(|about| has(about.name)).map(|about| format!("{}.{written}", about.name))
    }
}
