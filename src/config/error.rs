//! Errors of a configuration, with their sources.
//!
//! All errors of a configuration are reported at once, each with its position. So a [`ConfigError`] is a list of
//! [`Problem`]s, each printed as one line: `FILE:LINE:COLUMN: KEY: message`.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The reason why no configuration could be loaded: one or more problems, one per line.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// An error of these problems, of which there must be one at least.
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "an error without a problem");
        Self { problems }
    }

    /// Each problem: those of the file first, in its order, then those of the environment.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self::new(vec![problem])
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// One error.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The source.
    pub origin: Origin,
    /// The full name of the key (`ipc.max_connections`), if the problem is about one.
    pub key: Option<String>,
    /// The kind of error.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => {}
            Origin::File { path, line: 0, .. } => write!(f, "{}: ", Origin::shown_path(path))?,
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}: ", Origin::shown_path(path))?,
            Origin::Environment(name) => write!(f, "{}: ", shown(name))?,
            Origin::CommandLine => f.write_str("command line: ")?,
            Origin::Inherited => f.write_str("inherited socket: ")?,
        }
        if let Some(key) = &self.key {
            write!(f, "{}: ", shown_key(key))?;
        }
        write!(f, "{}", self.fault)
    }
}

/// The source of a value or an error.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A configuration file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line, from 1. 0 for the file as a whole.
        line: usize,
        /// The column in characters, from 1. 0 for the file as a whole.
        column: usize,
    },
    /// An environment variable, by its name.
    Environment(String),
    /// An option of the command.
    CommandLine,
    /// A socket inherited from the service manager.
    Inherited,
}

impl Origin {
    /// A path on one line. Never cut: it is there to be found.
    pub(super) fn shown_path(path: &Path) -> String {
        let mut out = String::new();
        for c in path.to_string_lossy().chars() {
            if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
        }
        out
    }
}

/// As in `explain`: `default`, `FILE:LINE`, `env NAME`, `command line`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, .. } => write!(f, "{}:{line}", Self::shown_path(path)),
            Self::Environment(name) => write!(f, "env {}", shown(name)),
            Self::CommandLine => f.write_str("command line"),
            Self::Inherited => f.write_str("inherited socket"),
        }
    }
}

/// Characters of foreign text that a message repeats at most.
pub(super) const SHOWN_MAX: usize = 64;

/// Foreign text for a message: control characters escaped, long text cut.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == SHOWN_MAX {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A key may be foreign text: each part is escaped and cut by itself, because a valid full key may be longer.
fn shown_key(key: &str) -> String {
    key.split('.').map(shown).collect::<Vec<_>>().join(".")
}

/// The kinds of errors.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// A named file does not exist.
    #[error("no such file{}", .variable.map(|name| format!(", which {name} names")).unwrap_or_default())]
    NoSuchFile {
        /// The variable that names it, if one does.
        variable: Option<&'static str>,
    },
    /// A file cannot be opened or read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A directory, a pipe, a device.
    #[error("is not a regular file")]
    NotAFile,
    /// Other users could change the configuration.
    #[error("mode {mode:04o} is writable by group or others; refused (chmod go-w)")]
    WritableByOthers {
        /// The permission bits.
        mode: u32,
    },
    /// Another user could change the configuration.
    #[error("owned by uid {owner}, expected uid {own} or root; refused")]
    ForeignOwner {
        /// The file's owner.
        owner: u32,
        /// The user of this process.
        own: u32,
    },
    /// The file is too large.
    #[error("is larger than {max} bytes")]
    FileTooLarge {
        /// The largest size that is read.
        max: u64,
    },
    /// TOML is UTF-8; so are values of variables.
    #[error("is not UTF-8")]
    NotUtf8,
    /// Not TOML.
    #[error("syntax error: {0}")]
    Syntax(String),
    /// No key has this name.
    #[error("unknown key{}", hint(.near))]
    UnknownKey {
        /// The full name of the most similar key.
        near: Option<String>,
    },
    /// No table has this name.
    #[error("unknown table{}", hint(.near))]
    UnknownTable {
        /// The name of the most similar table.
        near: Option<String>,
    },
    /// An unknown environment variable with the prefix.
    #[error("unknown variable{}", hint(.near))]
    UnknownVariable {
        /// The name of the most similar variable.
        near: Option<String>,
    },
    /// A value of another type.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// The expected type.
        expected: &'static str,
        /// The found type.
        found: String,
    },
    /// A number that is too large for its type.
    #[error("{text} is too large")]
    NumberTooLarge {
        /// The number as written.
        text: String,
    },
    /// A number outside of its range.
    #[error("{value} is out of range {min}..={max}")]
    OutOfRange {
        /// The number.
        value: String,
        /// The smallest that is allowed.
        min: String,
        /// The largest that is allowed.
        max: String,
    },
    /// An invalid value, for another reason than its range.
    #[error("{value} {why}")]
    Unusable {
        /// The value.
        value: String,
        /// The reason, as a verb phrase.
        why: String,
    },
    /// A file with a secret.
    #[error("{path}: {why}")]
    Secret {
        /// The file, quoted.
        path: String,
        /// The reason why it is not usable.
        why: String,
    },
    /// Other users could read the secret.
    #[error("mode {mode:04o} is readable by others; refused (chmod o-r)")]
    ReadableByOthers {
        /// The permission bits.
        mode: u32,
    },
    /// A required key is missing.
    #[error("missing")]
    Missing,
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!(" (did you mean {near}?)")).unwrap_or_default()
}
