//! Keys of the configuration: rules of values, and the macro that declares sections.
//!
//! `section!` declares each key once: its name, type, default, [`Rule`] and documentation. From this declaration follow
//! the field of the struct and its documentation, the default, the parsing of the file, the environment variable, the
//! checks with their messages, the suggestions for misspelt keys, the lines of `--check-config`, and the shipped
//! `config.toml`.

use toml::de::DeValue;

use super::error::Fault;
use super::name;
use super::value::{Value, shown_text};

/// A key, apart from its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// The name within its section.
    pub name: &'static str,
    /// The accepted values.
    pub rule: Rule,
    /// The documentation lines; the first is a summary.
    pub doc: &'static str,
}

impl Key {
    /// The documentation, line by line.
    pub fn doc_lines(&self) -> impl Iterator<Item = &'static str> {
        doc_lines(self.doc)
    }
}

/// Lines of documentation, without the space that a doc comment begins with.
pub(super) fn doc_lines(doc: &'static str) -> impl Iterator<Item = &'static str> {
    doc.lines().map(|line| line.strip_prefix(' ').unwrap_or(line))
}

/// A section's keys, by name, with its values.
pub(super) trait Section {
    /// Every key, in the order of the file.
    fn keys(&self) -> &'static [Key];
    /// The value of a key.
    fn get(&self, name: &str) -> Option<Value>;
    /// Sets a key to a value that passed its rule. Returns false if the key is unknown or its field cannot hold the
    /// value.
    fn put(&mut self, name: &str, value: &Value) -> bool;

    /// The key of that name.
    fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().iter().find(|key| key.name == name)
    }
}

/// The rule of a key's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// A whole number between two bounds, both allowed.
    Integer {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
        /// The unit.
        unit: &'static str,
    },
    /// A whole number as `Integer`, and a multiple of 8.
    MultipleOf8 {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
        /// The unit.
        unit: &'static str,
    },
    /// A file mode: read and write only, and both for the owner.
    Mode,
    /// A number between two bounds, both allowed.
    Float {
        /// The smallest.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// True or false.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The path of a socket: absolute, and short enough for `sockaddr_un`.
    SocketPath,
    /// An absolute path, or empty for none.
    FileOrNone,
    /// As `SocketPath`, or empty for none.
    SocketOrNone,
    /// Levels of the log: one, or `MODULE=LEVEL`, several with commas between.
    LogLevels,
    /// A host's name or address.
    Host,
    /// A name: tokens joined by dots.
    Name,
    /// The name of a client, or the beginning of names with a `*` behind it.
    ClientPattern,
    /// A program: an absolute path, or a name to be looked up on `PATH`.
    Program,
    /// Any text without a zero byte, as an argument of a program.
    Argument,
    /// `NAME=VALUE`, for the environment of a program.
    Variable,
    /// Several, of one kind, in this order; the same one may come again.
    Sequence {
        /// The rule of each item.
        of: &'static Rule,
        /// The largest number of items.
        max: usize,
    },
    /// Several, of one kind.
    List {
        /// The rule of each item.
        of: &'static Rule,
        /// The largest number of items.
        max: usize,
    },
}

/// The longest path that fits `sun_path` with its closing zero.
pub(super) const SOCKET_PATH_MAX: usize = 107;
/// The longest name that DNS knows, and more than an address needs.
const HOST_MAX: usize = 253;
/// Linux: `PATH_MAX` less the closing zero.
const PATH_MAX: usize = 4095;
/// Linux: `MAX_ARG_STRLEN` less the closing zero.
const ARGUMENT_MAX: usize = 131_071;

impl Rule {
    /// Checks a value.
    pub(super) fn check(&self, value: &Value) -> Result<(), Fault> {
        match (*self, value) {
            (Self::Integer { min, max, .. }, Value::Integer(number)) => in_range(*number, min, max),
            (Self::MultipleOf8 { min, max, .. }, Value::Integer(number)) => {
                in_range(*number, min, max)?;
                reject_if(number % 8 != 0, value, "is not a multiple of 8")
            }
            (Self::Mode, Value::Integer(number)) => {
                in_range(*number, 0, 0o777)?;
                let why = |what: &str| format!("is mode {number:04o}, which {what}");
                reject_if(number & !0o666 != 0, value, &why("has execute bits"))?;
                reject_if(number & 0o600 != 0o600, value, &why("denies the owner read or write access"))
            }
            (Self::Float { min, max }, Value::Float(number)) => float_in_range(*number, min, max),
            (Self::Float { min, max }, Value::Integer(number)) => match i32::try_from(*number) {
                Ok(number) => float_in_range(number.into(), min, max),
                Err(_) => Err(out_of_range(number, &min, &max)),
            },
            (Self::Flag, Value::Flag(_)) => Ok(()),
            (Self::Choice(words), Value::Text(text)) => {
                reject_if(!words.contains(&text.as_str()), value, &format!("is not one of {}", one_of(words)))
            }
            (Self::SocketPath, Value::Text(text)) => {
                reject_if(!text.starts_with('/'), value, "is not an absolute path")?;
                reject_if(text.ends_with('/'), value, "names a directory")?;
                reject_if(text.contains('\0'), value, "contains a zero byte")?;
                let why = format!("is longer than {SOCKET_PATH_MAX} bytes, the limit for a socket path");
                reject_if(text.len() > SOCKET_PATH_MAX, value, &why)
            }
            (Self::SocketOrNone, Value::Text(text)) if text.is_empty() => Ok(()),
            (Self::SocketOrNone, Value::Text(_)) => Self::SocketPath.check(value),
            (Self::FileOrNone, Value::Text(text)) => {
                reject_if(!text.is_empty() && !text.starts_with('/'), value, "is not an absolute path")?;
                reject_if(text.contains('\0'), value, "contains a zero byte")?;
                reject_if(text.len() > PATH_MAX, value, &format!("is longer than {PATH_MAX} bytes"))
            }
            (Self::LogLevels, Value::Text(text)) => {
                reject_if(text.len() > PATH_MAX, value, &format!("is longer than {PATH_MAX} bytes"))?;
                let is_level = |level: &str| level.trim().parse::<log::LevelFilter>().is_ok();
                let is_module = |name: &str| {
                    let name = name.trim();
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b))
                };
                let is_good = |part: &str| match part.split_once('=') {
                    Some((module, level)) => is_module(module) && is_level(level),
                    None => is_level(part),
                };
                let bad = text.split(',').find(|part| !is_good(part));
                let why = |part: &str| format!("has {}, which is neither a level nor MODULE=LEVEL", shown_text(part));
                bad.map_or(Ok(()), |part| reject_if(true, value, &why(part)))
            }
            (Self::Host, Value::Text(text)) => {
                let good = |b: u8| b.is_ascii_alphanumeric() || b".:-_".contains(&b);
                let host = !text.is_empty() && text.len() <= HOST_MAX && text.bytes().all(good);
                reject_if(!host, value, "is not a host name or address")
            }
            (Self::Name, Value::Text(text)) => match name::fault(text) {
                Some(why) => reject_if(true, value, &why),
                None => Ok(()),
            },
            (Self::ClientPattern, Value::Text(text)) => match name::pattern_fault(text) {
                Some(why) => reject_if(true, value, &why),
                None => Ok(()),
            },
            (Self::Program, Value::Text(text)) => {
                reject_if(text.is_empty(), value, "is empty")?;
                let is_relative = !text.starts_with('/') && text.contains('/');
                reject_if(is_relative, value, "is a relative path; write an absolute one, or a name on PATH")?;
                reject_if(text.contains('\0'), value, "contains a zero byte")?;
                reject_if(text.len() > PATH_MAX, value, &format!("is longer than {PATH_MAX} bytes"))
            }
            (Self::Argument, Value::Text(text)) => {
                reject_if(text.contains('\0'), value, "contains a zero byte")?;
                reject_if(text.len() > ARGUMENT_MAX, value, &format!("is longer than {ARGUMENT_MAX} bytes"))
            }
            (Self::Variable, Value::Text(text)) => {
                let is_pair = text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
                reject_if(!is_pair, value, "is not NAME=VALUE")?;
                Self::Argument.check(value)
            }
            (Self::Sequence { of, max } | Self::List { of, max }, Value::List(items)) => {
                let long = Value::Integer(items.len().try_into().unwrap_or(i128::MAX));
                reject_if(items.len() > max, &long, &format!("entries, at most {max} are allowed"))?;
                let is_set = matches!(self, Self::List { .. });
                for (index, item) in items.iter().enumerate() {
                    of.check(item)?;
                    reject_if(is_set && items[..index].contains(item), item, "is listed twice")?;
                }
                Ok(())
            }
            (_, other) => Err(self.wrong_type(other)),
        }
    }

    /// The error for a value of another type.
    pub(super) fn wrong_type(&self, value: &Value) -> Fault {
        Fault::WrongType { expected: self.expected(), found: value.described() }
    }

    /// Reads the bare text of an environment variable or an option: texts as they are, arrays with commas, the rest as
    /// in TOML.
    pub(super) fn parse(&self, text: &str) -> Result<Value, Fault> {
        match self {
            Self::Choice(_)
            | Self::SocketPath
            | Self::FileOrNone
            | Self::SocketOrNone
            | Self::LogLevels
            | Self::Host
            | Self::Program
            | Self::Argument
            | Self::Variable
            | Self::Name
            | Self::ClientPattern => Ok(Value::Text(text.to_owned())),
            Self::Sequence { .. } | Self::List { .. } if text.trim().is_empty() => Ok(Value::List(Vec::new())),
            Self::Sequence { of, .. } | Self::List { of, .. } => {
                text.split(',').map(|item| of.parse(item.trim())).collect::<Result<_, _>>().map(Value::List)
            }
            Self::Integer { .. } | Self::MultipleOf8 { .. } | Self::Mode | Self::Float { .. } | Self::Flag => {
                let wrong = || Fault::WrongType { expected: self.expected(), found: shown_text(text) };
                let value = DeValue::parse(text.trim()).map_err(|_| wrong())?;
                let value = Value::from_toml(value.get_ref(), self.expected())?;
                match value {
                    // Report the text as written, not its TOML value.
                    Value::Text(_) | Value::List(_) => Err(wrong()),
                    value => Ok(value),
                }
            }
        }
    }

    /// The expected value, for an error message.
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Self::Integer { .. } | Self::MultipleOf8 { .. } | Self::Mode => "an integer",
            Self::Float { .. } => "a number",
            Self::Flag => "true or false",
            Self::Choice(_)
            | Self::SocketPath
            | Self::FileOrNone
            | Self::SocketOrNone
            | Self::LogLevels
            | Self::Host
            | Self::Program
            | Self::Argument
            | Self::Variable
            | Self::Name
            | Self::ClientPattern => "a string",
            Self::List { of: Self::Integer { .. }, .. } => "an array of integers",
            Self::Sequence { .. } | Self::List { .. } => "an array of strings",
        }
    }

    /// The expected value, for the manual.
    pub fn describe(&self) -> String {
        match self {
            Self::Integer { min, max, unit: "" } => format!("{min} to {max}"),
            Self::Integer { min, max, unit } => format!("{min} to {max} {unit}"),
            Self::MultipleOf8 { min, max, unit } => format!("{min} to {max} {unit}, a multiple of 8"),
            Self::Mode => "an integer: 384 is 0600, 432 is 0660, 438 is 0666; 0o600 may be written too".to_owned(),
            Self::Float { min, max } => format!("{min} to {max}"),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(words) => one_of(words),
            Self::SocketPath => format!("an absolute path of at most {SOCKET_PATH_MAX} bytes"),
            Self::FileOrNone => "an absolute path, or empty for none".to_owned(),
            Self::SocketOrNone => {
                format!("an absolute path of at most {SOCKET_PATH_MAX} bytes, or empty for none")
            }
            Self::LogLevels => {
                "levels as in RUST_LOG, for example \"warn,lapce_ipc::broker::telemetry::events=info\"".to_owned()
            }
            Self::Host => "a host name or address".to_owned(),
            Self::Name => "a name: tokens of A-Z a-z 0-9 _ -, joined by dots".to_owned(),
            Self::ClientPattern => "a name, or the beginning of names with * behind it".to_owned(),
            Self::Program => "an absolute path, or a name to be looked up on PATH".to_owned(),
            Self::Argument => "any text".to_owned(),
            Self::Variable => "NAME=VALUE".to_owned(),
            Self::Sequence { of, max } | Self::List { of, max } => {
                format!("an array of at most {max}, each {}", of.describe())
            }
        }
    }
}

fn reject_if(bad: bool, value: &Value, why: &str) -> Result<(), Fault> {
    if !bad {
        return Ok(());
    }
    let value = match value {
        Value::Text(text) => shown_text(text),
        other => other.to_string(),
    };
    Err(Fault::Unusable { value, why: why.to_owned() })
}

fn in_range(number: i128, min: u64, max: u64) -> Result<(), Fault> {
    if (i128::from(min)..=i128::from(max)).contains(&number) { Ok(()) } else { Err(out_of_range(&number, &min, &max)) }
}

/// Not a number is in no range.
fn float_in_range(number: f64, min: f64, max: f64) -> Result<(), Fault> {
    if (min..=max).contains(&number) { Ok(()) } else { Err(out_of_range(&number, &min, &max)) }
}

fn out_of_range(value: &dyn ToString, min: &dyn ToString, max: &dyn ToString) -> Fault {
    Fault::OutOfRange { value: value.to_string(), min: min.to_string(), max: max.to_string() }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Shorthand for the tables in `model`.
pub(super) const fn integer(min: u64, max: u64, unit: &'static str) -> Rule {
    Rule::Integer { min, max, unit }
}

/// Declares a section: its struct, its defaults and its keys.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $section:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $kind:ty = $default:expr, $rule:expr; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $section {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`")]
                pub $field: $kind,
            )+
        }

        impl Default for $section {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $section {
            /// The documentation of the section.
            #[allow(dead_code, reason = "an array of tables is not listed with the sections")]
            pub(super) const ABOUT: &str = concat!($($about, "\n"),+);
        }

        impl $crate::config::key::Section for $section {
            fn keys(&self) -> &'static [$crate::config::key::Key] {
                const KEYS: &[$crate::config::key::Key] = &[$(
                    $crate::config::key::Key {
                        name: stringify!($field),
                        rule: $rule,
                        doc: concat!($($doc, "\n"),+),
                    },
                )+];
                KEYS
            }

            fn get(&self, name: &str) -> Option<$crate::config::value::Value> {
                match name {
                    $( stringify!($field) => Some($crate::config::value::Setting::to_value(&self.$field)), )+
                    _ => None,
                }
            }

            fn put(&mut self, name: &str, value: &$crate::config::value::Value) -> bool {
                match name {
                    $( stringify!($field) => {
                        $crate::config::value::Setting::from_value(value).map(|value| self.$field = value).is_some()
                    } )+
                    _ => false,
                }
            }
        }
    };
}
pub(super) use section;
