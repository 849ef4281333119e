//! Programs that this process starts, and that must not outlive it: engines, and the commands of `reply` and `bench`.
//!
//! | file | idea |
//! |---|---|
//! | `children` | processes and folders that must not outlive this process |
//! | `guard` | a process that removes them when this one is killed |
//! | `path` | programs by their names |

pub(crate) mod children;
pub(crate) mod guard;
pub(crate) mod path;
