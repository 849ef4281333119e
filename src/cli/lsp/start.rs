//! `--start`: a broker for a user who has none.
//!
//! Editors start a bridge per window, so several may come at once: under a lock file beside the socket one of them
//! starts the broker, the others wait for it. The broker is this same program, in a session of its own (`serve` of the
//! hidden command `serve-session`), so that it outlives the editor; its log goes to a file.

use super::super::output::plain;
use crate::client::{Builder, Client, DEFAULT_SOCKET};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::process::geteuid;
use std::fmt::Display;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a broker may take to listen.
const START_TIME: Duration = Duration::from_secs(20);

/// The interval of looking for it.
const POLL: Duration = Duration::from_millis(20);

/// A log beyond this is moved away before the next broker starts.
const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The part of a line of the log that is shown.
const LINE_BYTES_MAX: u64 = 500;

/// Starts a broker at a socket if none listens there.
#[derive(Clone, Debug)]
pub(super) struct Starter {
    socket: PathBuf,
    /// Passed on.
    config: Option<PathBuf>,
    log: PathBuf,
}

impl Starter {
    /// For the socket that the command line or the environment names; otherwise for the user's own.
    pub(super) fn new(socket: Option<PathBuf>, config: Option<PathBuf>) -> Starter {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let runtime = folder("XDG_RUNTIME_DIR").filter(|folder| is_own(folder));
        let default = runtime.as_ref().map_or(PathBuf::from(DEFAULT_SOCKET), |folder| folder.join("lapce-ipc.sock"));
        let socket = socket.or_else(|| folder("LAPCE_IPC_SOCKET")).unwrap_or(default);
        let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")));
        let log = state.map(|state| state.join("lapce-ipc")).filter(|folder| can_have(folder));
        let log = log.or(runtime).map(|folder| folder.join("broker.log"));
        Starter { log: log.unwrap_or_else(|| beside(&socket, ".log")), socket, config }
    }

    /// The options of a client that connects to it.
    pub(super) fn builder(&self, builder: Builder) -> Builder {
        builder.socket_chosen_by(self.socket.clone(), "--start")
    }

    /// Whether a broker that it starts listens there.
    pub(super) fn is_for(&self, socket: &Path) -> bool {
        self.socket == socket
    }

    /// Starts a broker, unless one listens, and waits until it does.
    ///
    /// # Errors
    ///
    /// If it does not listen.
    pub(super) async fn start(&self) -> Result<(), String> {
        let starter = self.clone();
        let started = tokio::task::spawn_blocking(move || starter.start_blocking()).await;
        started.map_err(|error| error.to_string())?.map_err(|error| format!("cannot start a broker: {error}"))
    }

    fn start_blocking(&self) -> io::Result<()> {
        let until = Instant::now() + START_TIME;
        let path = beside(&self.socket, ".start");
        let lock = open_own(&path, OFlags::empty())?;
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if self.listens() {
                return Ok(());
            }
            in_time(until, "another process is starting it")?;
        }
        if self.listens() {
            return Ok(());
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--socket").arg(&self.socket);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.arg("serve-session").stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.open_log()?);
        let mut broker = command.spawn()?;
        log::info!("broker started pid={} socket={:?} log={:?}", broker.id(), self.socket, self.log);
        while !self.listens() {
            if let Some(status) = broker.try_wait()? {
                let problem =
                    format!("it ended with {status}: {}; its log is {}", self.last_line(), self.log.display());
                return Err(io::Error::other(problem));
            }
            in_time(until, "it does not listen")?;
        }
        // The end of the broker is noticed at the socket; this only takes the exit status, so that no zombie stays.
        let _ = std::thread::Builder::new().name("broker".to_owned()).spawn(move || broker.wait());
        Ok(())
    }

    fn listens(&self) -> bool {
        // The handshake follows when the client connects; a listener that is not trusted is not replaced either.
        let connected = Client::builder().socket(&self.socket).no_reconnect().connect();
        connected.map_or_else(|error| !error.is_no_broker(), |_| true)
    }

    /// The last line of the log, which says why a broker did not start.
    fn last_line(&self) -> String {
        let read = || {
            let mut log = File::open(&self.log)?;
            let end = log.metadata()?.len();
            log.seek(SeekFrom::Start(end.saturating_sub(LINE_BYTES_MAX)))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let end = read().unwrap_or_default();
        plain(end.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no line in its log"))
    }

    fn open_log(&self) -> io::Result<File> {
        if std::fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            std::fs::rename(&self.log, beside(&self.log, ".old"))?;
        }
        open_own(&self.log, OFlags::APPEND)
    }
}

/// Opens or makes a file of this user. It may stand in a folder in which others may make files, as the default socket's
/// is: no link is followed.
fn open_own(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let named = |problem: &dyn Display| io::Error::other(format!("{}: {problem}", path.display()));
    let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| named(&error))?);
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != geteuid().as_raw() {
        return Err(named(&"not a regular file of this user"));
    }
    Ok(file)
}

fn in_time(until: Instant, problem: &str) -> io::Result<()> {
    if Instant::now() >= until {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{problem}, after {START_TIME:?}")));
    }
    std::thread::sleep(POLL);
    Ok(())
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(extension);
    path.into()
}

fn is_own(folder: &Path) -> bool {
    std::fs::metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
}

/// Whether the folder is there, or could be made.
fn can_have(folder: &Path) -> bool {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).is_ok() && is_own(folder)
}
