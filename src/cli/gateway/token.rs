//! The token that programs must send.

use crate::broker::TokenFile;
use crate::cli::failure::{Code, Failure};
use crate::config::read_secret_line;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The longest token.
const TOKEN_MAX: usize = 512;

/// A token, and its file.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) path: PathBuf,
    pub(super) token: Vec<u8>,
    /// Removes the file at the end, unless the user named it.
    _file: Option<TokenFile>,
}

impl Token {
    /// The token in a file that the user names. If there is no file, it is created and stays.
    ///
    /// # Errors
    ///
    /// If other users can read or write the file, it has no token, or it cannot be created.
    pub(super) fn kept(path: &Path) -> Result<Token, Failure> {
        if !path.try_exists().unwrap_or(true) {
            TokenFile::make_at(path).map_err(|error| cannot_create(path, &error))?.keep();
        }
        let failed = |why: String| Failure::new(Code::Config, format!("{}: {why}", path.display()));
        let token = read_secret_line(path, TOKEN_MAX).map_err(failed)?;
        if token.len() < 8 || !token.iter().all(u8::is_ascii_graphic) {
            return Err(failed("no token in the first line; expected 8 to 512 printable characters".to_owned()));
        }
        Ok(Token { path: path.to_owned(), token, _file: None })
    }

    /// A new token in a file of its own in the user's runtime directory.
    ///
    /// # Errors
    ///
    /// If there is no such directory, or the file cannot be created.
    pub(super) fn generated(runtime: Option<OsString>, name: &str) -> Result<Token, Failure> {
        let folder = runtime.map(PathBuf::from).filter(|folder| folder.is_absolute());
        let folder = folder.ok_or_else(|| {
            Failure::new(Code::Config, "XDG_RUNTIME_DIR is not set: no place for the token file")
                .hint("name one with --token-file, or use --no-token")
        })?;
        let path = folder.join(format!("lapce-ipc-gateway-{name}.token"));
        let file = TokenFile::make_at(&path).map_err(|error| cannot_create(&path, &error))?;
        Ok(Token { path, token: file.token().to_vec(), _file: Some(file) })
    }
}

fn cannot_create(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::Unavailable, format!("cannot create {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_generated_token_is_private_and_goes_with_its_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let token = Token::generated(Some(folder.path().into()), "7").unwrap();
        assert_eq!(token.path, folder.path().join("lapce-ipc-gateway-7.token"));
        assert_eq!(std::fs::metadata(&token.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&token.path).unwrap().trim_ascii_end(), token.token);
        let path = token.path.clone();
        drop(token);
        assert!(!path.exists());
        for runtime in [None, Some("relative".into())] {
            assert!(Token::generated(runtime, "7").unwrap_err().message.contains("XDG_RUNTIME_DIR"));
        }
    }

    #[test]
    fn a_named_token_file_is_created_once_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let first = Token::kept(&path).unwrap().token;
        assert_eq!(Token::kept(&path).unwrap().token, first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short\n").unwrap();
        assert!(Token::kept(&path).unwrap_err().message.contains("no token"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::kept(&path).unwrap_err().message.contains("readable by others"));
    }
}
