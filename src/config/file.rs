//! Parses a configuration file into values with their positions.
//!
//! The document is walked, not deserialised: an unknown key, a wrong type and a number out of range are all found in
//! one pass, each with its position.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Fault, Origin, Problem};
use super::key::{Key, Section};
use super::loaded::Loaded;
use super::model::{BreakerOverrides, CircuitBreaker, RestartOverrides, SECTIONS, Upstream};
use super::name;
use super::value::{Value, found, quoted_if_dotted, shown_text};

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

/// The position of a byte in the file.
struct SourceMap<'a> {
    path: &'a Path,
    text: &'a str,
}

impl SourceMap<'_> {
    fn at(&self, offset: usize) -> Origin {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

type Entry<'t, 'i> = (&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>);

struct Reader<'a> {
    loaded: &'a mut Loaded,
    source: SourceMap<'a>,
    /// Problems with their offset: the parser gives tables in alphabetical order.
    found: Vec<(usize, Problem)>,
}

impl Reader<'_> {
    fn problem(&mut self, span: Range<usize>, key: &str, fault: Fault) {
        let problem = Problem { origin: self.source.at(span.start), key: Some(key.to_owned()), fault };
        self.found.push((span.start, problem));
    }

    fn document(&mut self, document: &DeTable<'_>) {
        for entry in document.iter() {
            let (name, value) = entry;
            match name.get_ref().as_ref() {
                "upstream" => self.upstreams(value),
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

    /// `[[upstream]]`.
    fn upstreams(&mut self, value: &Spanned<DeValue<'_>>) {
        let DeValue::Array(items) = value.get_ref() else {
            let expected = "an array of tables, [[upstream]]";
            let fault = Fault::WrongType { expected, found: found(value.get_ref()) };
            return self.problem(value.span(), "upstream", fault);
        };
        for (index, item) in items.iter().enumerate() {
            let full = format!("upstream[{index}]");
            let Some(table) = self.table(&full, item) else { continue };
            let (mut upstream, mut restart) = (Upstream::default(), RestartOverrides::default());
            for (name, value) in table.iter() {
                let full = format!("{full}.{}", name.get_ref());
                if let Some(key) = RestartOverrides::key(name.get_ref()) {
                    match checked(key, value) {
                        Ok(value) => _ = restart.values.insert(key.name, value),
                        Err(fault) => self.problem(value.span(), &full, fault),
                    }
                    continue;
                }
                let Some(key) = upstream.key(name.get_ref()) else {
                    let keys = upstream.keys().iter().map(|key| key.name);
                    let near = name::nearest(name.get_ref(), keys.chain(RestartOverrides::KEYS.iter().copied()));
                    self.problem(name.span(), &full, Fault::UnknownKey { near: near.map(str::to_owned) });
                    continue;
                };
                match checked(key, value) {
                    Ok(checked) if upstream.put(key.name, &checked) => {}
                    Ok(checked) => self.problem(value.span(), &full, key.rule.wrong_type(&checked)),
                    Err(fault) => self.problem(value.span(), &full, fault),
                }
            }
            for required in ["name", "socket_path"] {
                if !table.contains_key(required) {
                    self.problem(item.span(), &format!("{full}.{required}"), Fault::Missing);
                }
            }
            let twin = self.loaded.config.upstream.iter().any(|other| other.name == upstream.name);
            if twin && !upstream.name.is_empty() {
                let value = shown_text(&upstream.name);
                let why = "is also the name of another upstream".to_owned();
                self.problem(item.span(), &format!("{full}.name"), Fault::Unusable { value, why });
            }
            let origin = self.source.at(item.span().start);
            self.loaded.provenance.insert(full, origin);
            if !restart.values.is_empty() {
                self.loaded.config.upstream_restart.insert(upstream.name.clone(), restart);
            }
            self.loaded.config.upstream.push(upstream);
        }
    }

    /// The table that must be here.
    fn table<'v, 'i>(&mut self, full: &str, value: &'v Spanned<DeValue<'i>>) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let fault = Fault::WrongType { expected: "a table", found: found(value.get_ref()) };
            self.problem(value.span(), full, fault);
        }
        table
    }

    fn unknown_at_top(&mut self, (name, value): Entry<'_, '_>) {
        let written = name.get_ref();
        let sections = SECTIONS.iter().map(|about| about.name).chain(["upstream"]);
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

/// The value of a key that is in no section.
fn checked(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, Fault> {
    let value = Value::from_toml(value.get_ref(), key.rule.expected())?;
    key.rule.check(&value)?;
    Ok(value)
}
