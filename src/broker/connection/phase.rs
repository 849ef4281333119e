//! The life of the broker, as its connections see it.

/// Where the broker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Phase {
    /// Everything is served.
    Running,
    /// Nothing new is let in; what is under way is finished within so many milliseconds.
    Draining(u32),
    /// Connections are closed.
    Closing,
}

impl Phase {
    /// Whether nothing new is let in.
    pub(in crate::broker) fn is_ending(&self) -> bool {
        *self != Phase::Running
    }
}
