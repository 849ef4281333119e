//! Supervision: restarts of actors, stuck threads, the resources of the process, injected faults.
//!
//! | file | idea |
//! |---|---|
//! | `fault` | injected faults, for tests |
//! | `resources` | limits, descriptors and threads of the process |
//! | `supervisor/` | restarts actors by their policies, and publishes their addresses |
//! | `watchdog` | aborts the process when a thread is stuck |

pub(in crate::broker) mod fault;
pub(crate) mod resources;
pub(in crate::broker) mod supervisor;
pub(in crate::broker) mod watchdog;
