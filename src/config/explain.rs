//! The explained configuration: each key with its value, source and meaning.
//!
//! Both texts are TOML, made from the table of keys: what `--check-config` prints, and the shipped `config.toml`.

use std::collections::BTreeMap;
use std::fmt;

use super::entries::{Engine, Quota, Upstream};
use super::error::Origin;
use super::key::{Key, Section, doc_lines};
use super::loaded::Loaded;
use super::model::{About, Config, RestartOverrides, SECTIONS};
use super::tables::Listed;
use super::value::{Value, quoted_if_dotted};

/// Every key with its value, source and meaning, to be printed. It is TOML, and loads again.
///
/// ```
/// # use lapce_ipc::config::{Loaded, explain};
/// let text = explain(&Loaded::default()).to_string();
/// assert!(text.contains("ipc.max_connections = 1000   # default"));
/// ```
pub fn explain(loaded: &Loaded) -> impl fmt::Display + '_ {
    Explained(loaded)
}

struct Explained<'a>(&'a Loaded);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loaded = self.0;
        match &loaded.source {
            Some(path) => writeln!(f, "# read from {}", Origin::shown_path(path))?,
            None => writeln!(f, "# no file: built-in defaults")?,
        }
        for about in SECTIONS {
            let Some(section) = loaded.config.section(about.name) else { continue };
            writeln!(f, "\n# [{}]", about.name)?;
            for key in section.keys() {
                let full = format!("{}.{}", about.name, key.name);
                let (Some(doc), Some(value)) = (key.doc_lines().next(), section.get(key.name)) else { continue };
                writeln!(f, "# {doc}")?;
                writeln!(f, "{full} = {value}   # {}", loaded.origin(&full))?;
            }
            if about.name == "circuit_breaker" {
                self.breaker_services(f)?;
            }
        }
        let config = &loaded.config;
        self.tables(f, &config.upstream, &config.upstream_restart)?;
        self.tables(f, &config.engine, &config.engine_restart)?;
        self.tables(f, &config.quota, &BTreeMap::new())
    }
}

impl Explained<'_> {
    fn breaker_services(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (service, overrides) in &self.0.config.breaker_services {
            for (name, value) in &overrides.values {
                let full = format!("circuit_breaker.services.{}.{name}", quoted_if_dotted(service));
                writeln!(f, "{full} = {value}   # {}", self.0.origin(&full))?;
            }
            if overrides.values.is_empty() {
                writeln!(f, "circuit_breaker.services.{} = {{}}", quoted_if_dotted(service))?;
            }
        }
        Ok(())
    }

    fn tables<T: Listed>(
        &self,
        f: &mut fmt::Formatter<'_>,
        all: &[T],
        restart: &BTreeMap<String, RestartOverrides>,
    ) -> fmt::Result {
        if all.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n# [[{0}]]\n{0} = [", T::ARRAY)?;
        for (index, table) in all.iter().enumerate() {
            let own = table.keys().iter().filter_map(|key| Some((key.name, table.get(key.name)?)));
            let restart = restart.get(table.name()).into_iter();
            let restart = restart.flat_map(|restart| restart.values.iter().map(|(name, value)| (*name, value.clone())));
            let pairs: Vec<_> = own.chain(restart).map(|(name, value)| format!("{name} = {value}")).collect();
            let origin = self.0.origin(&format!("{}[{index}]", T::ARRAY));
            writeln!(f, "  {{ {} }},   # {origin}", pairs.join(", "))?;
        }
        writeln!(f, "]")
    }
}

/// The text of the `config.toml` that is shipped: every key with its default, commented out, and its documentation. As
/// it is, it sets nothing.
///
/// ```
/// # use lapce_ipc::config::template;
/// assert!(template().contains("\n#max_connections = 1000\n"));
/// ```
pub fn template() -> String {
    let mut out = String::from(HEAD);
    let defaults = Config::default();
    for about in SECTIONS {
        let Some(section) = defaults.section(about.name) else { continue };
        head(&mut out, about);
        for key in section.keys() {
            let Some(value) = section.get(key.name) else { continue };
            pair(&mut out, key, &value, "#");
        }
        if about.name == "circuit_breaker" {
            out.push_str(SERVICES_EXAMPLE);
        }
    }
    out.push_str(UPSTREAM_HEAD);
    let example = Upstream {
        name: "workspace".to_owned(),
        socket_path: "/run/user/1000/workspace.sock".into(),
        services: vec!["ai.complete".to_owned()],
    };
    out.push_str("#[[upstream]]\n");
    for key in example.keys() {
        let Some(value) = example.get(key.name) else { continue };
        pair(&mut out, key, &value, "#");
    }
    out.push_str(UPSTREAM_RESTART);
    out.push_str(ENGINE_HEAD);
    let example = Engine {
        name: "local".to_owned(),
        command: "lapce-ipc".to_owned(),
        args: ["engine", "openai", "--base-url", "http://127.0.0.1:8080", "--model", "NAME"]
            .map(str::to_owned)
            .to_vec(),
        ..Engine::default()
    };
    out.push_str("#[[engine]]\n");
    for key in example.keys() {
        let Some(value) = example.get(key.name) else { continue };
        pair(&mut out, key, &value, "#");
    }
    out.push_str(ENGINE_RESTART);
    out.push_str(QUOTA_HEAD);
    let example = Quota { name: "plugins".to_owned(), clients: ["plugin-*", "lsp-rust"].map(str::to_owned).to_vec() };
    out.push_str("#[[quota]]\n");
    for key in example.keys() {
        let Some(value) = example.get(key.name) else { continue };
        pair(&mut out, key, &value, "#");
    }
    out
}

fn head(out: &mut String, about: &About) {
    out.push_str("\n\n");
    comment(out, doc_lines(about.doc));
    out.push_str(&format!("[{}]\n", about.name));
}

fn pair(out: &mut String, key: &Key, value: &Value, prefix: &str) {
    out.push('\n');
    comment(out, key.doc_lines());
    comment(out, [format!("({})", key.rule.describe())].iter().map(String::as_str));
    out.push_str(&format!("{prefix}{} = {value}\n", key.name));
}

fn comment<'a>(out: &mut String, lines: impl Iterator<Item = &'a str>) {
    for line in lines {
        out.push_str(&format!("# {line}\n"));
    }
}

const HEAD: &str = "\
# The configuration of the lapce-ipc broker. Every key is here with its default, commented out: remove the # to set it.
#
# The broker reads the first of these that exists, and no other:
#   the file that `--config` names; the file that LAPCE_IPC_CONFIG names;
#   $XDG_CONFIG_HOME/lapce-ipc/config.toml (or ~/.config/lapce-ipc/config.toml); /etc/lapce-ipc/config.toml
# It never reads a file of the working directory, and refuses one that users other than its own and root can write.
#
# A variable overrides a key: LAPCE_IPC__IPC__SOCKET_PATH=/x is socket_path of [ipc]. Arrays are written with commas.
# [circuit_breaker.services.*], [[upstream]], [[engine]] and [[quota]] have no variables.
# `ipc_server_main --check-config` shows each value and its source.
";

const SERVICES_EXAMPLE: &str = "
# Overrides for a single service: any of the keys above. A name with a dot must be quoted.
#[circuit_breaker.services.\"ai.complete\"]
#failure_threshold = 10
#timeout_secs = 5
";

const UPSTREAM_HEAD: &str = "

# A program that listens (as `lapce-ipc reply SERVICE --listen PATH` does) and that the broker dials to offer its
# services. One table for each. A lost upstream is redialled with the backoff of [restart].
";

const UPSTREAM_RESTART: &str = "
# Overrides of [restart] for this upstream: initial_delay_ms, max_delay_ms, jitter, max_restarts, period_secs,
# stable_secs. Without max_restarts here, or with 0, it is redialled without limit. When its socket appears, it is
# dialled at once.
#initial_delay_ms = 100
";

const ENGINE_HEAD: &str = "

# A program that the broker starts once it listens, and stops with itself: an AI engine, a language tool. One table for
# each. It is restarted with the backoff of [restart], and given up beyond its limit; the broker goes on. A reload
# starts added engines and those that were given up, stops removed ones, and restarts changed ones.
";

const ENGINE_RESTART: &str = "
# Overrides of [restart] for this engine: initial_delay_ms, max_delay_ms, jitter, max_restarts, period_secs,
# stable_secs.
#max_restarts = 10
";

const QUOTA_HEAD: &str = "

# Clients of one user (uid) that count as a user of their own, by their names: other clients of that user cannot take
# their topics, services, memory or turns of the router. One table for each; the first that matches counts. A client
# names itself, so this keeps programs apart that behave, and protects from none that lies. Connections are counted by
# uid alone. A reload changes the quotas of clients that connect later.
";
