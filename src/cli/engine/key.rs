//! The key of an endpoint: out of an environment variable or a file, never out of the command line or in a log.

use crate::cli::failure::{Code, Failure};
use crate::config::read_secret_line;
use std::fmt;
use std::path::Path;

/// The longest key.
const KEY_MAX: usize = 4096;

/// A key. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key(String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key in a variable or a file.
    ///
    /// # Errors
    ///
    /// If it is not there, is no key, or other users can read or write the file.
    pub(super) fn read(variable: Option<&str>, file: Option<&Path>) -> Result<Option<Key>, Failure> {
        let failed = |why: String| Failure::new(Code::Config, why);
        if let Some(name) = variable {
            let value = std::env::var_os(name);
            let value = value.ok_or_else(|| failed(format!("environment variable {name} is not set")))?;
            let key = value.to_str().and_then(Key::new);
            return key.map(Some).ok_or_else(|| failed(format!("environment variable {name}: {WANTED}")));
        }
        let Some(path) = file else { return Ok(None) };
        let line = read_secret_line(path, KEY_MAX).map_err(|why| failed(format!("{}: {why}", path.display())))?;
        let key = std::str::from_utf8(&line).ok().and_then(Key::new);
        key.map(Some).ok_or_else(|| failed(format!("{}: {WANTED}", path.display())))
    }

    fn new(text: &str) -> Option<Key> {
        let is_key = (1..=KEY_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_key.then(|| Key(text.to_owned()))
    }

    /// The value of the header `Authorization`.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The text with the key hidden: engines repeat it in their errors.
    pub(super) fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

const WANTED: &str = "no key; expected printable characters without spaces, at most 4096";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_read_from_a_private_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "sk-1\nrest").unwrap();
        let read = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            Key::read(None, Some(&file))
        };
        assert_eq!(read(0o600).unwrap(), Some(Key("sk-1".to_owned())));
        assert!(read(0o644).unwrap_err().message.contains("mode 0644 is readable by others"));
        assert!(read(0o620).unwrap_err().message.contains("writable"));
        std::fs::write(&file, "a b").unwrap();
        assert!(read(0o600).unwrap_err().message.contains("no key"));
        assert!(Key::read(Some("LAPCE_IPC_NO_SUCH_VARIABLE"), None).unwrap_err().message.contains("is not set"));
        assert_eq!(Key::read(None, None).unwrap(), None);
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = Key::new("sk-secret").unwrap();
        assert!(!format!("{key:?}").contains("secret"));
        assert_eq!(key.hide_in("wrong key: sk-secret!"), "wrong key: ***!");
    }
}
