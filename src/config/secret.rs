//! The token that readers of the endpoints must send, out of the file that holds it.

use std::path::Path;

use super::error::{ConfigError, Fault, Problem};
use super::loaded::Loaded;
use super::paths::{Options, read_secret};
use super::value::Value;

/// The longest token, and the shortest.
const TOKEN: std::ops::RangeInclusive<usize> = 8..=512;

impl Loaded {
    /// The token of the endpoints, which is the first line of `health_server.token_file`; `None` if no file is named.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is writable by other users or readable by all, or has no token.
    ///
    /// ```
    /// # use lapce_ipc::config::Loaded;
    /// let mut loaded = Loaded::default();
    /// assert_eq!(loaded.health_token()?, None);
    /// loaded.set_from_command_line("health_server.token_file", "/nonexistent")?;
    /// let error = loaded.health_token().unwrap_err();
    /// assert_eq!(error.to_string(), "command line: health_server.token_file: \"/nonexistent\": no such file");
    /// # Ok::<(), lapce_ipc::config::ConfigError>(())
    /// ```
    pub fn health_token(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        const KEY: &str = "health_server.token_file";
        let file = self.config.health_server.token_file.as_str();
        if file.is_empty() {
            return Ok(None);
        }
        let token = read_token(Path::new(file), Options::default().own_uid).map_err(|why| Problem {
            origin: self.origin(KEY).clone(),
            key: Some(KEY.to_owned()),
            fault: Fault::Secret { path: Value::Text(file.to_owned()).to_string(), why },
        })?;
        Ok(Some(token))
    }
}

/// The first line of a file.
fn read_token(file: &Path, own_uid: u32) -> Result<Vec<u8>, String> {
    // No more than the longest token and the end of its line.
    let bytes = read_secret(file, own_uid, *TOKEN.end() as u64 + 2).map_err(|fault| fault.to_string())?;
    let token = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    if !TOKEN.contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        let (least, most) = (TOKEN.start(), TOKEN.end());
        return Err(format!(
            "invalid token in the first line: expected {least} to {most} printable characters without spaces"
        ));
    }
    Ok(token.to_vec())
}

/// The first line of a file that no other user can have written, and not all users can read, without the white space at
/// its end; at most `max` bytes.
///
/// # Errors
///
/// Why the file is refused.
#[cfg(feature = "editor")]
pub(crate) fn read_secret_line(file: &Path, max: usize) -> Result<Vec<u8>, String> {
    let bytes = read_secret(file, Options::default().own_uid, max as u64 + 2).map_err(|fault| fault.to_string())?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    if line.len() > max { Err(format!("the first line is longer than {max} bytes")) } else { Ok(line.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn own_uid() -> u32 {
        Options::default().own_uid
    }

    fn written(text: &[u8], mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, file)
    }

    #[test]
    fn a_token_file_without_a_token_is_an_error() {
        let read = |text: &[u8]| {
            let (_folder, file) = written(text, 0o600);
            read_token(&file, own_uid())
        };
        assert_eq!(read(b"secret-token\nmore\n"), Ok(b"secret-token".to_vec()));
        assert_eq!(read(b"secret-token\r\n"), Ok(b"secret-token".to_vec()));
        assert_eq!(read(&[b'x'; 512]), Ok(vec![b'x'; 512]));
        for text in [&b""[..], b"\nsecret-token\n", b"short\n", b"with a space\n", &[b'x'; 513], b"secret\xfftoken\n"] {
            assert!(read(text).unwrap_err().contains("invalid token"), "{text:?}");
        }
    }

    #[test]
    fn what_others_could_have_written_or_read_is_no_secret() {
        for (mode, why) in [
            (0o604, "mode 0604 is readable by others; refused (chmod o-r)"),
            (0o620, "mode 0620 is writable by group or others; refused (chmod go-w)"),
            (0o602, "mode 0602 is writable by group or others; refused (chmod go-w)"),
        ] {
            let (_folder, file) = written(b"secret-token", mode);
            assert_eq!(read_token(&file, own_uid()), Err(why.to_owned()));
        }
        // The token may be for a group.
        let (folder, file) = written(b"secret-token", 0o640);
        assert!(read_token(&file, own_uid()).is_ok());
        assert_eq!(read_token(folder.path(), own_uid()), Err("is not a regular file".to_owned()));
        assert_eq!(read_token(&folder.path().join("none"), own_uid()), Err("no such file".to_owned()));
    }

    #[test]
    fn a_pipe_that_nobody_writes_hangs_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg("-m").arg("600").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(read_token(&pipe, own_uid()), Err("is not a regular file".to_owned()));
    }
}
