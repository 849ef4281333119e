//! The permits of connections, and the time that sockets wait for their turn. The rules are in
//! `logic::session::permits`. They are charged to a uid in no quota: a client tells its name later.

use crate::broker::clock::elapsed;
pub(in crate::broker) use crate::logic::session::permits::PermitKind;
use crate::logic::session::permits::Permits;
use crate::logic::shares::{BROKER, Holding, Principal, ShareReached};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The permits of all connections. The lock is never held across an await.
#[derive(Debug)]
pub(in crate::broker) struct ConnectionPermits {
    books: Mutex<Permits>,
    /// What times are counted from.
    began: Instant,
    /// No permit for a connection is held any more.
    all_given_back: Notify,
}

/// A permit of a user, which is given back when this is dropped.
#[derive(Debug)]
pub(in crate::broker) struct Permit {
    permits: Arc<ConnectionPermits>,
    kind: PermitKind,
    user: Principal,
}

impl Permit {
    pub(in crate::broker) fn kind(&self) -> PermitKind {
        self.kind
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut books = self.permits.lock();
        books.give_back(self.kind, self.user);
        if books.connections().held() == 0 {
            self.permits.all_given_back.notify_waiters();
        }
    }
}

impl ConnectionPermits {
    pub(in crate::broker) fn new(each: usize, percent: u32) -> Arc<ConnectionPermits> {
        let (books, all_given_back) = (Mutex::new(Permits::new(each, percent)), Notify::new());
        Arc::new(ConnectionPermits { books, began: Instant::now(), all_given_back })
    }

    fn lock(&self) -> MutexGuard<'_, Permits> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket of `user` takes a permit.
    ///
    /// # Errors
    ///
    /// If the user holds its share already.
    pub(in crate::broker) fn take(self: &Arc<Self>, kind: PermitKind, user: Principal) -> Result<Permit, ShareReached> {
        self.lock().take(kind, user)?;
        Ok(Permit { permits: self.clone(), kind, user })
    }

    /// A socket of `user` pays for what it costs. Returns how long it waits for its turn.
    pub(in crate::broker) fn pay(&self, user: Principal, percent: u32) -> Duration {
        let now = elapsed(self.began);
        Duration::from_nanos(self.lock().pay(user, percent, now) - now)
    }

    /// The connections of all users.
    pub(in crate::broker) fn held(&self) -> usize {
        self.lock().connections().held()
    }

    /// The most connections that a user may have now.
    pub(in crate::broker) fn most_of(&self, user: Principal) -> usize {
        self.lock().connections().most_of(user)
    }

    /// The users that have connections.
    pub(in crate::broker) fn users(&self) -> Vec<Holding> {
        self.lock().connections().holdings().collect()
    }

    /// Waits until there is no connection.
    pub(in crate::broker) async fn all_given_back(&self) {
        loop {
            let given_back = self.all_given_back.notified();
            if self.held() == 0 {
                return;
            }
            given_back.await;
        }
    }
}

/// The refusal of a user that holds its share of connections.
pub(in crate::broker) fn at_capacity(ShareReached { user, most }: ShareReached) -> String {
    let keys = "ipc.max_connections, limits.user_share_percent";
    match user {
        BROKER => format!("the broker itself has reached its share of {most} connections ({keys})"),
        user => format!("user {} has reached its share of {most} connections ({keys})", user.uid()),
    }
}
