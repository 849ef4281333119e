//! Memory that two processes share, and the doorbells by which they wake each other. Layer 1; all `unsafe` code of the
//! project is in this folder.
//!
//! | file | idea |
//! |---|---|
//! | `words` | shared memory as a run of atomic words; an `unsafe` block |
//! | `blocks` | copies of blocks of such words; `unsafe` blocks, and instructions of the machine |
//! | `layout` | the layout of a segment |
//! | `ring/` | records from one producer role to one consumer; the flags of waiting sides |
//! | `segment` | a sealed memory file, mapped; leasing and taking back its pages |
//! | `doorbell` | waking a sleeping process without blocking the ringing side |
//! | `descriptors` | descriptors over a Unix socket |
//! | `fork` | whether this process is the one that connected, or a child of it; an `unsafe` block |
//! | `peer` | credentials of the peer of a socket; the CPU of this thread |
//! | `private` | large buffers whose pages are with the system again as soon as they are dropped |
//! | `stdio` | whether stdin or stdout was closed at the start |
//!
//! The rules of the folder (R1 in `actors.md`): each side keeps its positions in private memory. A word that a peer can
//! write is read once into a local and validated against private limits; only the local is used. No `&[u8]` points into
//! memory that a peer can write. Shared memory contains no lock.

mod blocks;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod descriptors;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod doorbell;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod fork;
pub(crate) mod layout;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod peer;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod private;
pub(crate) mod ring;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod segment;
#[cfg(all(feature = "cli", not(lapce_ipc_loom)))]
pub(crate) mod stdio;
pub(crate) mod words;
