//! The configuration: load, validate, explain.
//!
//! | file | holds |
//! |---|---|
//! | `model` | every key: type, default, range, meaning; the structs that they make up |
//! | `entries` | the keys of `[[upstream]]`, `[[engine]]` and `[[quota]]` |
//! | `key` | the macro behind `model`, and the rules for values |
//! | `value` | a value from any source |
//! | `name` | names of services, and suggestions for misspelt names |
//! | `paths` | the lookup of the file, and its trust checks |
//! | `file` | TOML, with source positions |
//! | `reader` | positions, problems and single values of a file |
//! | `tables` | the arrays of tables of a file |
//! | `secret` | the token of the endpoints, from its file |
//! | `env` | variables that override keys |
//! | `check` | contradictions between values |
//! | `loaded` | the values, each with its source |
//! | `load` | file, environment and command line, in order |
//! | `reload` | changes that take effect in a running broker |
//! | `explain` | `--check-config`, and the text of the shipped `config.toml` |
//! | `error` | errors with their sources |
//!
//! A value comes from the command line, an environment variable, one file, or the default, in this order of precedence.
//! A configuration with an unknown, mistyped or invalid entry is refused as a whole, with all its errors: a broker that
//! ignored a misspelt limit would run without it.
//!
//! ```
//! use lapce_ipc::config::{Env, Options, explain, load};
//!
//! // A program passes `Env::of_process()` and `Options::default()`.
//! let env: Env = [("LAPCE_IPC__ROUTER__WAIT", "block")].into_iter().collect();
//! let loaded = load(&Options { etc: "/nonexistent".into(), ..Options::default() }, &env)?;
//! let text = explain(&loaded).to_string();
//! assert!(text.contains("router.wait = \"block\"   # env LAPCE_IPC__ROUTER__WAIT"));
//! # Ok::<(), lapce_ipc::config::ConfigError>(())
//! ```

mod check;
mod entries;
mod env;
mod error;
mod explain;
mod file;
mod key;
mod load;
mod loaded;
mod model;
mod name;
mod paths;
mod reader;
mod reload;
mod secret;
mod tables;
mod value;

pub use entries::{Engine, Quota, Upstream};
pub use env::{Env, variable};
pub use error::{ConfigError, Fault, Origin, Problem};
pub use explain::{explain, template};
pub use key::{Key, Rule};
pub use load::load;
pub use loaded::Loaded;
pub use model::{
    BreakerOverrides, CircuitBreaker, Config, Delivery, HealthServer, Ipc, Limits, Metrics, Restart, Router,
    SharedMemory, WaitStrategy,
};
pub use paths::Options;
pub(crate) use reload::adopt;
#[cfg(feature = "editor")]
pub(crate) use secret::read_secret_line;
pub use value::Value;

/// Every key with its section's name, in the order of the file.
///
/// ```
/// # use lapce_ipc::config::keys;
/// assert!(keys().any(|(section, key)| section == "ipc" && key.name == "max_connections"));
/// ```
pub fn keys() -> impl Iterator<Item = (&'static str, &'static Key)> {
    let defaults = Config::default();
    model::SECTIONS.iter().flat_map(move |about| {
        let keys = defaults.section(about.name).map(|section| section.keys()).unwrap_or_default();
        keys.iter().map(|key| (about.name, key))
    })
}
