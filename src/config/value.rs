//! A value of the configuration, from any source.
//!
//! Values of a file, an environment variable and the command line all become a [`Value`] first, so that there is one
//! set of checks and one way to print them (TOML, so that the output can be loaded again).

use std::fmt;

use toml::de::DeValue;

use super::error::{Fault, SHOWN_MAX, shown};

/// A value that a key can have.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// Text: a path, a name, a choice.
    Text(String),
    /// Several values of one type.
    List(Vec<Value>),
}

impl Value {
    /// Converts a TOML value. Tables and dates are not accepted.
    pub(super) fn from_toml(value: &DeValue<'_>, expected: &'static str) -> Result<Self, Fault> {
        Ok(match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => Self::Integer(
                i128::from_str_radix(number.as_str(), number.radix())
                    .map_err(|_| Fault::NumberTooLarge { text: shown(number.as_str()) })?,
            ),
            DeValue::Float(number) => Self::Float(
                number.as_str().parse().map_err(|_| Fault::NumberTooLarge { text: shown(number.as_str()) })?,
            ),
            DeValue::Boolean(flag) => Self::Flag(*flag),
            DeValue::Array(items) => Self::List(
                items.iter().map(|item| Self::from_toml(item.get_ref(), expected)).collect::<Result<_, _>>()?,
            ),
            DeValue::Table(_) | DeValue::Datetime(_) => return Err(Fault::WrongType { expected, found: found(value) }),
        })
    }

    /// Its type, for "expected …, found …".
    pub(super) fn described(&self) -> String {
        match self {
            Self::Integer(_) => format!("the integer {self}"),
            Self::Float(_) => format!("the number {self}"),
            Self::Flag(_) => format!("the boolean {self}"),
            Self::Text(text) => format!("the string {}", shown_text(text)),
            Self::List(_) => "an array".to_owned(),
        }
    }
}

/// The type of a TOML value, for "expected …, found …".
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Table(_) => "a table".to_owned(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        scalar => match Value::from_toml(scalar, "") {
            Ok(value) => value.described(),
            Err(fault) => fault.to_string(),
        },
    }
}

/// TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            // `Debug` keeps the `.0` that TOML wants of a float.
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => quoted(f, text),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Writes a TOML basic string.
fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

/// A name as a part of a TOML key.
pub(super) fn quoted_if_dotted(name: &str) -> String {
    if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() }
}

/// Foreign text for a message, as a quoted string.
pub(super) fn shown_text(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{more}", Value::Text(cut))
}

/// A type that a field of the configuration may have.
pub(super) trait Setting: Sized {
    /// The field's value.
    fn to_value(&self) -> Value;
    /// The other way round; `None` if the type cannot hold it.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! integers {
    ($($int:ty),+) => {$(
        impl Setting for $int {
            fn to_value(&self) -> Value {
                Value::Integer((*self).into())
            }
            fn from_value(value: &Value) -> Option<Self> {
                let Value::Integer(number) = value else { return None };
                Self::try_from(*number).ok()
            }
        }
    )+};
}
integers!(u16, u32, u64);

impl Setting for f64 {
    fn to_value(&self) -> Value {
        Value::Float(*self)
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => Some(*number),
            // `jitter = 0` is an integer in TOML. An i32 covers the range of every ratio.
            Value::Integer(number) => i32::try_from(*number).ok().map(Self::from),
            _ => None,
        }
    }
}

impl Setting for bool {
    fn to_value(&self) -> Value {
        Value::Flag(*self)
    }
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Flag(flag) = value { Some(*flag) } else { None }
    }
}

impl Setting for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text.clone()) } else { None }
    }
}

impl Setting for std::path::PathBuf {
    fn to_value(&self) -> Value {
        Value::Text(self.to_string_lossy().into_owned())
    }
    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(Self::from)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }
    fn from_value(value: &Value) -> Option<Self> {
        let Value::List(items) = value else { return None };
        items.iter().map(T::from_value).collect()
    }
}
