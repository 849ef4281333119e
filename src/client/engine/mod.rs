//! Waiting: one thread leads and drains the egress ring, the others sleep; and the operations that wait.
//!
//! | file | idea |
//! |---|---|
//! | `wait` | leader and followers |
//! | `turn` | one turn of the leader |
//! | `publish`, `names` | publishing and flushing; control requests, and the numbers that come by them |

pub(crate) mod names;
pub(crate) mod publish;
pub(crate) mod turn;
pub(crate) mod wait;
