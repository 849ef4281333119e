//! The roster: a file beside the socket that lists the sessions which the next broker waits for (S12).
//!
//! A session is listed before its first subscription is confirmed, and removed when it ends for another reason than the
//! broker's shutdown. The next broker holds publishes back until the listed clients have subscribed again. The threads
//! of the connections write the file, and the root at the start. It contains neither messages nor tokens.

use super::private_file::{self, beside};
use crate::broker::clock::elapsed;
use crate::broker::router::{OpenLanes, RouterHandle};
use crate::logic::session::publisher::Publisher;
use crate::logic::session::restart_grace::{Opened, RestartGrace};
use crate::logic::session::roster::{
    ClientKey, RosterTable, SESSIONS_MAX, TEXT_MAX, TextError, begin_line, end_line, instance,
};
use crate::shm::peer::stat;
use crate::wire::control::RECONNECTS;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Interval of checks whether the awaited processes are alive.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Processes per check.
const CHECK_BATCH: usize = 200;
/// Appended lines after which the file is rewritten, or the number of sessions if that is larger.
const REWRITE_AFTER: usize = 1024;

/// The roster of this broker, and the clients that the last one listed.
#[derive(Debug)]
pub(in crate::broker) struct Roster {
    opened: Instant,
    inner: Mutex<Inner>,
    /// A client has restored its subscriptions, or left.
    back: Notify,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    boot: String,
    /// `None` while no file is open.
    file: Option<File>,
    appended: usize,
    listed: RosterTable,
    restart_grace: RestartGrace,
    /// The broker is shutting down: sessions that end now stay listed.
    is_frozen: bool,
    has_warned: bool,
}

impl Roster {
    /// Reads the roster of the last broker beside the socket at `socket`, without the processes that have ended.
    /// Publishes wait for the others until the grace is over.
    pub(in crate::broker) fn open(socket: &Path, grace: Duration) -> Roster {
        let path = beside(socket, ".sessions");
        // Without a boot id, an equal start time after a reboot passes for the same process: that costs the grace.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let left = read_previous(&path, &boot);
        let mut listed = RosterTable::default();
        for (client, start) in left.clients().filter(|(client, start)| lives(client, *start)) {
            listed.add(client, start);
        }
        let ns = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let restart_grace = RestartGrace::new(listed.clients(), 0, ns);
        let mut inner =
            Inner { path, boot, file: None, appended: 0, listed, restart_grace, is_frozen: false, has_warned: false };
        if inner.listed.len() > 0 {
            inner.write_anew();
        } else if left != RosterTable::default() {
            let _ = std::fs::remove_file(&inner.path);
        }
        let sessions = inner.restart_grace.awaited();
        if sessions > 0 {
            log::info!(
                "publishing held back for sessions of the last broker sessions={sessions} grace_ms={}",
                grace.as_millis()
            );
        }
        Roster { opened: Instant::now(), inner: Mutex::new(inner), back: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        elapsed(self.opened)
    }

    /// The number of sessions for which publishes wait.
    pub(in crate::broker) fn awaited(&self) -> u32 {
        u32::try_from(self.lock().restart_grace.awaited()).unwrap_or(u32::MAX)
    }

    /// The entry of a session that begins with a Hello; a client that does not reconnect has none.
    pub(in crate::broker) fn listing(self: &Arc<Roster>, client: &Publisher, flags: u32) -> Listing {
        let Publisher { uid, pid, start, nonce } = *client;
        let client = ClientKey { uid, pid, instance: instance(nonce) };
        Listing((flags & RECONNECTS != 0).then(|| Entry { roster: self.clone(), client, start, is_listed: false }))
    }

    /// Opens the router's lanes when all clients are back, or the grace is over.
    pub(in crate::broker) async fn follow(self: Arc<Roster>, router: RouterHandle) {
        if self.awaited() == 0 {
            return;
        }
        let opened = loop {
            let now = self.now();
            let (opened, until) = {
                let mut inner = self.lock();
                for dead in inner.restart_grace.look(CHECK_BATCH, lives) {
                    inner.strike(&dead);
                }
                (inner.restart_grace.decide(now), inner.restart_grace.until())
            };
            if let Some(opened) = opened {
                break opened;
            }
            let left = CHECK_INTERVAL.min(Duration::from_nanos(until.saturating_sub(now)));
            let _ = tokio::time::timeout(left, self.back.notified()).await;
        };
        let _ = router.send(OpenLanes).await;
        let waited_ms = self.opened.elapsed().as_millis();
        match opened {
            Opened::AllBack => log::info!("publishing enabled reason=all_back waited_ms={waited_ms}"),
            Opened::GraceOver(missing) => {
                log::info!("publishing enabled reason=grace_over missing={missing} waited_ms={waited_ms}");
            }
        }
        let mut inner = self.lock();
        for late in inner.restart_grace.expire() {
            inner.strike(&late);
        }
    }

    /// The broker is shutting down: sessions that end now stay listed for the next one.
    pub(in crate::broker) fn freeze(&self) {
        self.lock().is_frozen = true;
    }

    /// Removes the file if it lists no session.
    pub(in crate::broker) fn close(&self) {
        let mut inner = self.lock();
        if inner.listed.len() == 0 && inner.file.take().is_some() {
            let _ = std::fs::remove_file(&inner.path);
        }
    }
}

/// The entry of a session in the roster. Dropping it removes the session, unless the broker is shutting down.
#[derive(Debug, Default)]
pub(in crate::broker) struct Listing(Option<Entry>);

#[derive(Debug)]
struct Entry {
    roster: Arc<Roster>,
    client: ClientKey,
    start: u64,
    is_listed: bool,
}

impl Listing {
    /// The session has a subscription, which is about to be confirmed.
    pub(in crate::broker) fn subscribed(&mut self) {
        let Some(entry) = self.0.as_mut().filter(|entry| !entry.is_listed) else { return };
        entry.is_listed = entry.roster.lock().add(entry.client, entry.start);
    }

    /// All subscriptions that its client had at the last broker are in force again.
    pub(in crate::broker) fn restored(&self) {
        if let Some(Entry { roster, client, .. }) = &self.0 {
            roster.lock().back(client);
            roster.back.notify_one();
        }
    }

    /// The client has sent `Bye`: it does not reconnect.
    pub(in crate::broker) fn left(&mut self) {
        if let Some(mut entry) = self.0.take() {
            let mut inner = entry.roster.lock();
            inner.back(&entry.client);
            if std::mem::take(&mut entry.is_listed) {
                inner.strike(&entry.client);
            }
            drop(inner);
            entry.roster.back.notify_one();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_listed {
            let mut inner = self.roster.lock();
            if !inner.is_frozen {
                inner.strike(&self.client);
            }
        }
    }
}

impl Inner {
    fn add(&mut self, client: ClientKey, start: u64) -> bool {
        let added = self.listed.add(client, start);
        if added {
            self.append(&begin_line(&client, start));
        } else {
            self.warn(format_args!("more than {SESSIONS_MAX} sessions have subscriptions"));
        }
        added
    }

    fn strike(&mut self, client: &ClientKey) {
        if self.listed.strike(client) {
            self.append(&end_line(client));
        }
    }

    fn back(&mut self, client: &ClientKey) {
        if self.restart_grace.back(client) {
            self.strike(client);
        }
    }

    /// Appends a line. The table has its change already: a file that is written anew needs no line.
    fn append(&mut self, line: &str) {
        self.appended += 1;
        let is_short = self.appended <= REWRITE_AFTER.max(self.listed.len());
        // Not if it was removed meanwhile.
        let there = |file: &File| file.metadata().is_ok_and(|found| found.nlink() > 0);
        let appended =
            self.file.as_mut().filter(|file| is_short && there(file)).map(|file| file.write_all(line.as_bytes()));
        if !matches!(appended, Some(Ok(()))) {
            self.write_anew();
        }
    }

    /// Writes the whole table anew.
    fn write_anew(&mut self) {
        (self.file, self.appended) = (None, 0);
        match private_file::replace(&self.path, self.listed.text(&self.boot).as_bytes()) {
            Ok(file) => self.file = Some(file),
            Err(error) => self.warn(format_args!("{error}")),
        }
    }

    /// Warns once that the roster is incomplete: after a kill, the next broker would not wait for all clients.
    fn warn(&mut self, reason: std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.has_warned, true) {
            let path = self.path.display().to_string();
            log::warn!("cannot write the session roster path={path:?} reason={:?}", reason.to_string());
        }
    }
}

/// The roster of the last broker, as far as it is valid.
fn read_previous(path: &Path, boot: &str) -> RosterTable {
    let skipped = |reason: &dyn std::fmt::Display| {
        log::warn!(
            "cannot read the session roster path={:?} reason={:?}",
            path.display().to_string(),
            reason.to_string()
        );
        RosterTable::default()
    };
    let text = match private_file::read(path, TEXT_MAX) {
        Ok((_, text)) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return RosterTable::default(),
        Err(error) => return skipped(&error),
    };
    match RosterTable::parse(&text, boot) {
        Ok((listed, 0)) => listed,
        Ok((listed, bad)) => {
            log::warn!("invalid lines in the session roster path={:?} count={bad}", path.display().to_string());
            listed
        }
        Err(TextError::OtherBoot) => RosterTable::default(),
        Err(error) => skipped(&error),
    }
}

/// Whether a listed process is alive, and not another with the same pid. An unknown process counts as alive.
fn lives(client: &ClientKey, start: u64) -> bool {
    let Some(pid) = i32::try_from(client.pid).ok().and_then(Pid::from_raw) else { return client.pid == 0 };
    match stat(client.pid) {
        Ok(Some((state, started))) => !matches!(state, 'Z' | 'X') && (start == 0 || start == started),
        // The process may be hidden from this user.
        Err(error) if error.kind() == io::ErrorKind::NotFound => test_kill_process(pid) != Err(Errno::SRCH),
        Err(error) => error.raw_os_error() != Some(Errno::SRCH.raw_os_error()),
        Ok(None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::peer::{own_uid, start_time};
    use rustix::fs::{FileType, Mode};
    use std::os::unix::fs::PermissionsExt;

    const GRACE: Duration = Duration::from_secs(60);

    fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (socket, roster) = (folder.path().join("ipc.sock"), folder.path().join("ipc.sock.sessions"));
        (folder, socket, roster)
    }

    fn open(socket: &Path) -> Arc<Roster> {
        Arc::new(Roster::open(socket, GRACE))
    }

    /// A session of this process, or of another.
    fn session(roster: &Arc<Roster>, pid: u32, nonce: u64) -> Listing {
        let mut listing = roster.listing(&client(pid, nonce), RECONNECTS);
        listing.subscribed();
        listing
    }

    fn client(pid: u32, nonce: u64) -> Publisher {
        Publisher { uid: own_uid(), pid, start: start_time(pid).unwrap(), nonce }
    }

    fn us() -> u32 {
        std::process::id()
    }

    #[test]
    fn the_next_broker_waits_for_those_that_were_subscribed_when_the_last_was_killed() {
        let (_folder, socket, path) = folder();
        let first = open(&socket);
        assert!(!path.exists(), "nothing to say");
        let (one, two) = (session(&first, us(), 1), session(&first, us(), 2));
        let mut left = session(&first, us(), 3);
        left.left();
        drop(session(&first, us(), 4));
        drop(first.listing(&client(us(), 5), RECONNECTS));
        assert!(first.listing(&client(us(), 6), 0).0.is_none());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // As by a kill: no destructor runs.
        std::mem::forget((one, two));
        let second = open(&socket);
        assert_eq!(second.awaited(), 2);
        let back = second.listing(&client(us(), 1), RECONNECTS);
        assert_eq!(second.awaited(), 2, "not before its subscriptions are in force");
        back.restored();
        assert_eq!(second.awaited(), 1);
        // Killed while it waits: the third has all that the second had not seen back, and those that came.
        let again = session(&second, us(), 1);
        std::mem::forget(again);
        assert_eq!(open(&socket).awaited(), 2);
    }

    #[test]
    fn a_dead_process_is_not_waited_for_and_one_that_is_unknown_is() {
        let (_folder, socket, _) = folder();
        let first = open(&socket);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        std::mem::forget((session(&first, child.id(), 1), session(&first, 0, 2)));
        assert_eq!(open(&socket).awaited(), 2);
        child.kill().unwrap();
        let pid = child.id();
        // Also before its parent has looked.
        while stat(pid).is_ok_and(|found| found.is_some_and(|(state, _)| state != 'Z')) {
            std::thread::yield_now();
        }
        assert_eq!(open(&socket).awaited(), 1);
        child.wait().unwrap();
        assert!(!lives(&ClientKey { uid: 0, pid, instance: 0 }, 0));
        let start = stat(us()).unwrap().unwrap().1;
        assert!(lives(&ClientKey { uid: 0, pid: us(), instance: 0 }, start));
        assert!(!lives(&ClientKey { uid: 0, pid: us(), instance: 0 }, start + 1), "another process has its number");
    }

    #[test]
    fn sessions_that_end_with_the_broker_stay_listed_and_an_empty_roster_goes() {
        let (_folder, socket, path) = folder();
        let first = open(&socket);
        let (stays, mut leaves) = (session(&first, us(), 1), session(&first, us(), 2));
        first.freeze();
        drop(stays);
        leaves.left();
        first.close();
        let second = open(&socket);
        assert_eq!(second.awaited(), 1);
        second.listing(&client(us(), 1), RECONNECTS).left();
        assert_eq!(second.awaited(), 0, "a goodbye is as good as a return");
        second.close();
        assert!(!path.exists());
    }

    #[test]
    fn a_roster_that_is_no_file_of_ours_is_neither_followed_nor_read() {
        let (folder, socket, path) = folder();
        let first = open(&socket);
        std::mem::forget(session(&first, us(), 1));
        let target = folder.path().join("target");
        std::fs::rename(&path, &target).unwrap();
        let text = std::fs::read(&target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let second = open(&socket);
        assert_eq!(second.awaited(), 0);
        std::mem::forget(session(&second, us(), 2));
        assert_eq!(std::fs::read(&target).unwrap(), text, "not written through");
        assert_eq!(open(&socket).awaited(), 1, "the link was replaced");
        // Others could have written this one.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert_eq!(open(&socket).awaited(), 0);
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(open(&socket).awaited(), 0, "and nothing hangs");
    }

    #[test]
    fn a_roster_that_cannot_be_written_harms_nothing_and_a_removed_one_is_made_anew() {
        let (folder, socket, path) = folder();
        let roster = open(&folder.path().join("nowhere/ipc.sock"));
        session(&roster, us(), 1).left();
        let roster = open(&socket);
        std::mem::forget(session(&roster, us(), 1));
        std::fs::remove_file(&path).unwrap();
        std::mem::forget(session(&roster, us(), 2));
        assert_eq!(open(&socket).awaited(), 2);
    }

    #[test]
    fn the_file_stays_short_however_many_sessions_come_and_go() {
        let (_folder, socket, path) = folder();
        let roster = open(&socket);
        for nonce in 0..3000 {
            session(&roster, us(), nonce).left();
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 64 * (REWRITE_AFTER as u64 + 1));
    }
}
