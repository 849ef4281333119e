//! Faults that are injected into the real binary: feature `fault-injection`, see `src/broker/fault.rs`.
