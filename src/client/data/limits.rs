//! The limits of the current broker: read for each record, replaced when the session is restored at another broker.

use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::Limits;

macro_rules! present {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// [`Limits`] that may change. Each value is read alone: a caller that needs several that belong together, or a
        /// value that belongs to a session, checks under the lock of the lane.
        #[derive(Debug)]
        pub(crate) struct CurrentLimits {
            $($name: AtomicU64,)*
        }

        impl CurrentLimits {
            pub(crate) fn new(limits: &Limits) -> CurrentLimits {
                CurrentLimits { $($name: AtomicU64::new(u64::from(limits.$name)),)* }
            }

            /// Another broker has other limits.
            pub(crate) fn adopt(&self, limits: &Limits) {
                $(self.$name.store(u64::from(limits.$name), Ordering::Relaxed);)*
            }

            pub(crate) fn all(&self) -> Limits {
                Limits { $($name: self.$name(),)* }
            }

            $(
                #[inline]
                pub(crate) fn $name(&self) -> u32 {
                    self.$name.load(Ordering::Relaxed) as u32
                }
            )*
        }
    };
}

present!(
    max_message_size,
    slot_size,
    stream_credit_cells,
    subscription_credit_cells,
    default_request_timeout_ms,
    max_request_timeout_ms,
    max_requests,
    stream_first_chunk_ms,
    stream_idle_ms,
);
