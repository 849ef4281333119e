//! A message broker for one machine.
#[cfg(not(target_os = "linux"))]
compile_error!("lapce-ipc needs Linux: memfd seals, epoll, eventfd and SO_PEERCRED have no equivalent elsewhere");

#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub mod broker;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub mod config;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
mod routing;
#[cfg(not(lapce_ipc_loom))]
pub mod client;
mod shm;
mod sync;
#[cfg(not(lapce_ipc_loom))]
pub mod wire;
