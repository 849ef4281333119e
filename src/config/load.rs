//! Loading: file, environment and command line, in this order.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::env::{self, Env};
use super::error::{ConfigError, Fault, Origin, Problem};
use super::key::SOCKET_PATH_MAX;
use super::loaded::Loaded;
use super::model::SECTIONS;
use super::paths::{self, Options};
use super::value::shown_text;
use super::{check, file};

/// Loads the configuration: the first existing file of the lookup order of `options` and `env`, then the overrides in
/// `env`.
///
/// # Errors
///
/// All errors of the file and the overrides.
///
/// ```
/// use lapce_ipc::config::{Env, Options, load};
///
/// let env: Env = [("LAPCE_IPC__LIMITS__MAX_TOPICS", "10000")].into_iter().collect();
/// let options = Options { etc: "/nonexistent".into(), ..Options::default() };
/// let loaded = load(&options, &env)?;
/// assert_eq!(loaded.config.limits.max_topics, 10_000);
/// assert_eq!(loaded.config.limits.max_services, 1024);
/// # Ok::<(), lapce_ipc::config::ConfigError>(())
/// ```
pub fn load(options: &Options, env: &Env) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded::default();
    let mut problems = Vec::new();
    if let Some((path, text)) = paths::find(options, env)? {
        file::apply(&mut loaded, &path, &text, &mut problems);
        loaded.source = Some(path);
    }
    env::apply(&mut loaded, env, &mut problems);
    if problems.is_empty() {
        // Contradictions are checked only between valid values.
        problems = check::contradictions(&loaded);
    }
    if problems.is_empty() { Ok(loaded) } else { Err(ConfigError::new(problems)) }
}

impl Loaded {
    /// Sets a key to the value of a command-line option. Unchanged in case of an error.
    ///
    /// # Errors
    ///
    /// If the key is unknown, or the value is invalid or contradicts another one.
    ///
    /// ```
    /// # use lapce_ipc::config::Loaded;
    /// let mut loaded = Loaded::default();
    /// loaded.set_from_command_line("health_server.port", "9191")?;
    /// assert_eq!(loaded.config.health_server.port, 9191);
    /// assert!(loaded.set_from_command_line("health_server.port", "http").is_err());
    /// # Ok::<(), lapce_ipc::config::ConfigError>(())
    /// ```
    pub fn set_from_command_line(&mut self, key: &str, text: &str) -> Result<(), ConfigError> {
        self.set(key, text, Origin::CommandLine)
    }

    /// Sets the path of the broker's socket: the option `--socket`, else `LAPCE_IPC_SOCKET`, else the configuration (by
    /// default `/tmp/lapce_ipc.sock`). A relative path is resolved against the working directory, and stays relative if
    /// its absolute form is too long for a socket.
    ///
    /// # Errors
    ///
    /// If the path is not UTF-8 or too long for a socket, or the working directory does not exist.
    ///
    /// ```
    /// # use lapce_ipc::config::{Env, Loaded, Origin};
    /// let mut loaded = Loaded::default();
    /// let env = [("LAPCE_IPC_SOCKET", "/run/a.sock")].into_iter().collect();
    /// loaded.settle_socket(None, &env)?;
    /// assert_eq!(loaded.config.ipc.socket_path.to_str(), Some("/run/a.sock"));
    /// loaded.settle_socket(Some("/run/b.sock".as_ref()), &env)?;
    /// assert_eq!(loaded.config.ipc.socket_path.to_str(), Some("/run/b.sock"));
    /// assert_eq!(loaded.origin("ipc.socket_path"), &Origin::CommandLine);
    /// # Ok::<(), lapce_ipc::config::ConfigError>(())
    /// ```
    pub fn settle_socket(&mut self, option: Option<&OsStr>, env: &Env) -> Result<(), ConfigError> {
        const KEY: &str = "ipc.socket_path";
        const VARIABLE: &str = "LAPCE_IPC_SOCKET";
        let (path, origin) = match (option, env.get(VARIABLE)) {
            (Some(path), _) => (path, Origin::CommandLine),
            (None, Some(path)) => (path, Origin::Environment(VARIABLE.to_owned())),
            (None, None) => return Ok(()),
        };
        let problem = |fault| Problem { origin: origin.clone(), key: Some(KEY.to_owned()), fault };
        let text = path.to_str().ok_or_else(|| problem(Fault::NotUtf8))?;
        let unusable = |error: std::io::Error| {
            problem(Fault::Unusable { value: shown_text(text), why: format!("is not a path: {error}") })
        };
        let absolute = std::path::absolute(text).map_err(unusable)?;
        let absolute = absolute.to_str().ok_or_else(|| problem(Fault::NotUtf8))?.to_owned();
        if absolute.len() > SOCKET_PATH_MAX && text.len() <= SOCKET_PATH_MAX && !text.ends_with('/') {
            // In a deep working directory only the relative path fits a socket's address.
            self.config.ipc.socket_path = PathBuf::from(text);
            self.provenance.insert(KEY.to_owned(), origin);
            return Ok(());
        }
        self.set(KEY, &absolute, origin)
    }

    /// The broker listens at `path`, with an inherited socket. Returns the configured path if it is set and different.
    ///
    /// ```
    /// # use lapce_ipc::config::Loaded;
    /// let mut loaded = Loaded::default();
    /// assert_eq!(loaded.inherit_socket("/run/a.sock".as_ref()), None);
    /// assert_eq!(loaded.config.ipc.socket_path.to_str(), Some("/run/a.sock"));
    /// ```
    pub fn inherit_socket(&mut self, path: &Path) -> Option<PathBuf> {
        const KEY: &str = "ipc.socket_path";
        let was_set = *self.origin(KEY) != Origin::Default;
        let configured = std::mem::replace(&mut self.config.ipc.socket_path, path.to_owned());
        self.provenance.insert(KEY.to_owned(), Origin::Inherited);
        (was_set && configured != path).then_some(configured)
    }

    fn set(&mut self, full: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let problem = |fault| Problem { origin: origin.clone(), key: Some(full.to_owned()), fault };
        let mut changed = self.clone();
        let found = full.split_once('.').and_then(|(section, name)| {
            let about = SECTIONS.iter().find(|about| about.name == section)?;
            Some((about.name, self.config.section(section)?.key(name)?))
        });
        let (section, key) = found.ok_or_else(|| problem(Fault::UnknownKey { near: None }))?;
        key.rule.parse(text).and_then(|value| changed.put(section, key, &value, &origin)).map_err(problem)?;
        let contradictions = check::contradictions(&changed);
        if !contradictions.is_empty() {
            return Err(ConfigError::new(contradictions));
        }
        *self = changed;
        Ok(())
    }
}
