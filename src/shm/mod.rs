//! Memory that two processes share, and how they wake each other. Layer 1; all `unsafe` of the project is in this
//! folder.
//!
//! | file | idea |
//! |---|---|
//! | `words` | shared memory as a run of atomic words; an `unsafe` block |
//! | `layout` | where everything lies in a segment |
//! | `ring/` | records from one producer role to one consumer; the flags of those who wait |
//! | `segment` | a sealed memory file, mapped; leasing and taking back its pages |
//! | `doorbell` | waking a process that sleeps, so that no peer can make the one who rings block |
//! | `descriptors` | descriptors over a Unix socket |
//! | `fork` | whether this process is the one that connected, or a child of it; an `unsafe` block |
//! | `peer` | who is at the other end of a socket; on which CPU we run |
//! | `stdio` | whether stdin or stdout was closed at the start |
//!
//! The rules of the folder (design section 5): each side keeps its positions in private memory; what a peer may write
//! is read once into a local, validated against private limits, and only the local is used; no `&[u8]` ever points into
//! memory that a peer can write; there is no lock in shared memory.

#[cfg(not(lapce_ipc_loom))]
pub(crate) mod descriptors;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod doorbell;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod fork;
pub(crate) mod layout;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod peer;
pub(crate) mod ring;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod segment;
#[cfg(all(feature = "cli", not(lapce_ipc_loom)))]
pub(crate) mod stdio;
pub(crate) mod words;
