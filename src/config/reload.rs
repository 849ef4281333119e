//! Which changes of a new configuration take effect in a running broker, and which need a restart. Pure.

use super::Config;

/// The class of a key: when a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// At once.
    Live,
    /// After a restart: objects created at the start depend on it, or clients have received it in the handshake.
    Restart,
}

/// The class of each key, or of all keys of a section.
const CLASSES: &[(&str, Class)] = &[
    ("ipc.socket_path", Class::Restart),
    ("ipc.max_connections", Class::Restart),
    ("ipc.max_message_size", Class::Restart),
    ("ipc.allowed_uids", Class::Live),
    ("ipc.handshake_timeout_ms", Class::Live),
    ("ipc.drain_timeout_ms", Class::Live),
    ("ipc.worker_threads", Class::Restart),
    ("ipc.operator_uids", Class::Live),
    ("shared_memory.slot_size", Class::Restart),
    ("shared_memory.num_slots", Class::Restart),
    ("shared_memory.permissions", Class::Restart),
    ("shared_memory.max_window_slots", Class::Restart),
    ("shared_memory.audit_interval_ms", Class::Live),
    ("shared_memory.allow_dumps", Class::Restart),
    ("delivery.slow_consumer_timeout_ms", Class::Live),
    ("delivery.subscription_credit_bytes", Class::Restart),
    ("delivery.stream_credit_bytes", Class::Restart),
    ("delivery.drop_grace_ms", Class::Live),
    ("limits.max_topics", Class::Live),
    ("limits.max_routes", Class::Live),
    ("limits.max_subscriptions", Class::Live),
    ("limits.user_work_percent", Class::Live),
    ("limits.user_control_percent", Class::Live),
    ("delivery.user_wait_ms", Class::Live),
    ("limits.max_topics_per_connection", Class::Live),
    ("limits.max_subscriptions_per_connection", Class::Live),
    ("limits.max_services", Class::Live),
    ("limits.user_share_percent", Class::Live),
    ("limits.max_requests_per_connection", Class::Restart),
    ("limits.max_requests_per_responder", Class::Live),
    ("limits.default_request_timeout_ms", Class::Live),
    ("limits.max_request_timeout_ms", Class::Live),
    ("limits.request_body_idle_ms", Class::Live),
    ("limits.max_backlog_bytes", Class::Live),
    ("limits.max_user_backlog_bytes", Class::Live),
    ("limits.max_rings_without_progress", Class::Live),
    ("limits.probe_delay_ms", Class::Live),
    ("limits.max_probe_delay_ms", Class::Live),
    ("limits.stream_first_chunk_ms", Class::Live),
    ("limits.stream_idle_ms", Class::Live),
    ("router.wait", Class::Restart),
    ("router.spin_max_us", Class::Restart),
    ("router.batch_records", Class::Live),
    ("router.turn_max_us", Class::Live),
    ("restart", Class::Restart),
    ("circuit_breaker", Class::Live),
    ("health_server.port", Class::Restart),
    ("health_server.host", Class::Restart),
    ("health_server.required", Class::Restart),
    ("health_server.allowed_hosts", Class::Live),
    ("health_server.token_file", Class::Live),
    ("health_server.max_connections", Class::Restart),
    ("health_server.request_timeout_ms", Class::Restart),
    ("health_server.idle_timeout_secs", Class::Restart),
    ("health_server.unread_timeout_secs", Class::Restart),
    ("health_server.max_unread_bytes", Class::Restart),
    ("health_server.max_streams", Class::Restart),
    ("health_server.socket_path", Class::Restart),
    ("health_server.require_token", Class::Live),
    ("metrics", Class::Restart),
    ("logging", Class::Live),
];

/// The class of a key. A key without one needs a restart; a test checks that each key has one.
fn class(section: &str, key: &str) -> Option<Class> {
    let full = format!("{section}.{key}");
    CLASSES.iter().find(|(name, _)| *name == full || *name == section).map(|(_, class)| *class)
}

/// Keys whose values differ between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// In force at once.
    pub(crate) live: Vec<String>,
    /// In force after a restart.
    pub(crate) restart: Vec<String>,
}

/// The changes from `old` to `new`, and the configuration then in force: `old` with the changes that need no restart.
pub(crate) fn adopt(old: &Config, new: &Config) -> (Changes, Config) {
    let (mut changes, mut adopted) = (Changes::default(), old.clone());
    for (section, key) in super::keys() {
        let value = |config: &Config| config.section(section).and_then(|keys| keys.get(key.name));
        let (was, is) = (value(old), value(new));
        if was == is {
            continue;
        }
        let full = format!("{section}.{}", key.name);
        let is_live = class(section, key.name) == Some(Class::Live);
        let keys = adopted.section_mut(section).filter(|_| is_live);
        if let (Some(is), Some(keys)) = (is, keys)
            && keys.put(key.name, &is)
        {
            changes.live.push(full);
        } else {
            changes.restart.push(full);
        }
    }
    if old.breaker_services != new.breaker_services {
        adopted.breaker_services = new.breaker_services.clone();
        changes.live.push("circuit_breaker.services".to_owned());
    }
    if old.upstream != new.upstream || old.upstream_restart != new.upstream_restart {
        changes.restart.push("upstream".to_owned());
    }
    if old.engine != new.engine || old.engine_restart != new.engine_restart {
        (adopted.engine, adopted.engine_restart) = (new.engine.clone(), new.engine_restart.clone());
        changes.live.push("engine".to_owned());
    }
    if old.quota != new.quota {
        adopted.quota = new.quota.clone();
        changes.live.push("quota".to_owned());
    }
    (changes, adopted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loaded, Value, keys};

    #[test]
    fn every_key_has_one_class_and_every_class_a_key() {
        for (section, key) in keys() {
            assert!(class(section, key.name).is_some(), "{section}.{} needs a class in CLASSES", key.name);
        }
        for (name, _) in CLASSES {
            let is_key = keys().any(|(section, key)| *name == section || *name == format!("{section}.{}", key.name));
            assert!(is_key, "{name} is no key");
        }
    }

    /// Another value that the key's rule lets through.
    fn other(value: &Value) -> Vec<String> {
        match value {
            Value::Integer(number) => [number + 8, number - 8, number / 2, 0o640].map(|n| n.to_string()).to_vec(),
            Value::Flag(flag) => vec![(!flag).to_string()],
            Value::Float(_) => vec!["0.5".to_owned()],
            _ => ["block", "/other", "7", "other", "warn"].map(str::to_owned).to_vec(),
        }
    }

    #[test]
    fn each_change_is_told_by_its_class_and_only_a_live_one_is_taken_up() {
        let old = Loaded::default();
        for (section, key) in keys().filter(|(section, _)| *section != "upstream") {
            let full = format!("{section}.{}", key.name);
            let value = old.config.get(&full).unwrap();
            let mut new = old.clone();
            let set = other(&value).iter().any(|text| {
                new.set_from_command_line(&full, text).is_ok() && new.config.get(&full) != Some(value.clone())
            });
            assert!(set, "no other value for {full}");
            let (changes, adopted) = adopt(&old.config, &new.config);
            match class(section, key.name).unwrap() {
                Class::Live => {
                    assert_eq!((changes.live, changes.restart), (vec![full], vec![]));
                    assert_eq!(adopted, new.config);
                }
                Class::Restart => {
                    assert_eq!((changes.live, changes.restart), (vec![], vec![full]));
                    assert_eq!(adopted, old.config);
                }
            }
        }
        assert_eq!(adopt(&old.config, &old.config), (Changes::default(), old.config.clone()));
    }
}
