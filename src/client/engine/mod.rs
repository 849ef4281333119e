//! Waiting: one thread leads and drains the egress ring, the others sleep; and the operations that wait.

pub(crate) mod names;
pub(crate) mod publish;
pub(crate) mod turn;
pub(crate) mod wait;
