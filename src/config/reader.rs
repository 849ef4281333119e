//! What the parts of the reader of a file share: positions, problems, and single values.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Fault, Origin, Problem};
use super::key::Key;
use super::loaded::Loaded;
use super::value::{Value, found};

/// The position of a byte in the file.
pub(super) struct SourceMap<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl SourceMap<'_> {
    pub(super) fn at(&self, offset: usize) -> Origin {
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

/// Reads one file.
pub(super) struct Reader<'a> {
    pub(super) loaded: &'a mut Loaded,
    pub(super) source: SourceMap<'a>,
    /// Problems with their offset: the parser gives tables in alphabetical order.
    pub(super) found: Vec<(usize, Problem)>,
}

impl Reader<'_> {
    pub(super) fn problem(&mut self, span: Range<usize>, key: &str, fault: Fault) {
        let problem = Problem { origin: self.source.at(span.start), key: Some(key.to_owned()), fault };
        self.found.push((span.start, problem));
    }

    /// The table that must be here.
    pub(super) fn table<'v, 'i>(&mut self, full: &str, value: &'v Spanned<DeValue<'i>>) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let fault = Fault::WrongType { expected: "a table", found: found(value.get_ref()) };
            self.problem(value.span(), full, fault);
        }
        table
    }
}

/// The value of a key that is in no section.
pub(super) fn checked(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, Fault> {
    let value = Value::from_toml(value.get_ref(), key.rule.expected())?;
    key.rule.check(&value)?;
    Ok(value)
}
