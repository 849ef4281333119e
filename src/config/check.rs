//! Contradictions between values that are each valid.

use super::error::{Fault, Origin, Problem};
use super::loaded::Loaded;
use super::model::{CircuitBreaker, Config, Restart};
use super::value::{Value, quoted_if_dotted, shown_text};
use crate::shm::layout::{CELL_BYTES, HEADER_BYTES};

/// Pairs of keys of which the first must not be larger than the second.
const ORDERED: &[(&str, &str)] = &[
    ("shared_memory.max_window_slots", "shared_memory.num_slots"),
    ("limits.max_topics_per_connection", "limits.max_topics"),
    ("limits.default_request_timeout_ms", "limits.max_request_timeout_ms"),
    ("limits.probe_delay_ms", "limits.max_probe_delay_ms"),
    ("restart.initial_delay_ms", "restart.max_delay_ms"),
    ("circuit_breaker.timeout_secs", "circuit_breaker.max_timeout_secs"),
    // A trial has no more probes, so the breaker would never close.
    ("circuit_breaker.success_threshold", "circuit_breaker.half_open_max_requests"),
];

/// The largest budget of the rings of one user.
const BUDGET_MAX: u64 = 4 << 30;

/// The largest number of quotas.
const QUOTAS_MAX: usize = 64;

/// Each contradiction, at one of its keys: preferably one that was set.
pub(super) fn contradictions(loaded: &Loaded) -> Vec<Problem> {
    let config = &loaded.config;
    let mut problems = Vec::new();
    for (smaller, larger) in ORDERED {
        if let (Some(a), Some(b)) = (number(config, smaller), number(config, larger))
            && a > b
        {
            // Say it of the key that was set; of two, of the first.
            let (key, fault) =
                if *loaded.origin(smaller) == Origin::Default && *loaded.origin(larger) != Origin::Default {
                    (*larger, unusable(b, format!("is less than {smaller}, which is {a}")))
                } else {
                    (*smaller, unusable(a, format!("is more than {larger}, which is {b}")))
                };
            problems.push(at(loaded, key, fault));
        }
    }
    budget(loaded, &mut problems);
    let health = config.health_server.socket_path.as_str();
    if !health.is_empty() && config.ipc.socket_path == std::path::Path::new(health) {
        let fault = Fault::Unusable { value: shown_text(health), why: "is also ipc.socket_path".to_owned() };
        problems.push(at(loaded, "health_server.socket_path", fault));
    }
    credits(loaded, &mut problems);
    for (index, upstream) in config.upstream.iter().enumerate() {
        if config.upstream_restart.contains_key(&upstream.name) {
            delays(loaded, &format!("upstream[{index}]"), &config.restart_for(&upstream.name), &mut problems);
        }
    }
    for (index, engine) in config.engine.iter().enumerate() {
        let table = format!("engine[{index}]");
        if config.engine_restart.contains_key(&engine.name) {
            delays(loaded, &table, &config.engine_restart_for(&engine.name), &mut problems);
        }
        let names: Vec<_> = engine.env.iter().filter_map(|pair| pair.split_once('=')).map(|(name, _)| name).collect();
        let twice = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
        if let Some((_, name)) = twice {
            let fault = Fault::Unusable { value: shown_text(name), why: "is set twice".to_owned() };
            let origin = loaded.origin(&table).clone();
            problems.push(Problem { origin, key: Some(format!("{table}.env")), fault });
        }
    }
    quotas(loaded, &mut problems);
    for service in config.breaker_services.keys() {
        breaker(loaded, service, &config.breaker_for(service), &mut problems);
    }
    problems
}

/// The delays between restarts, in the table of an upstream or an engine.
fn delays(loaded: &Loaded, table: &str, restart: &Restart, problems: &mut Vec<Problem>) {
    let (first, longest) = (restart.initial_delay_ms, restart.max_delay_ms);
    if first > longest {
        let fault = unusable(first.into(), format!("is more than max_delay_ms, which is {longest}"));
        let origin = loaded.origin(table).clone();
        problems.push(Problem { origin, key: Some(format!("{table}.initial_delay_ms")), fault });
    }
}

/// A quota without clients would be a mistake, and each quota lets a user hold one more share.
fn quotas(loaded: &Loaded, problems: &mut Vec<Problem>) {
    for (index, quota) in loaded.config.quota.iter().enumerate() {
        let table = format!("quota[{index}]");
        let fault = if index >= QUOTAS_MAX {
            ("name", shown_text(&quota.name), format!("is one quota more than the {QUOTAS_MAX} that are allowed"))
        } else if quota.clients.is_empty() {
            ("clients", "[]".to_owned(), "names no client".to_owned())
        } else {
            continue;
        };
        let (key, value, why) = fault;
        let origin = loaded.origin(&table).clone();
        problems.push(Problem { origin, key: Some(format!("{table}.{key}")), fault: Fault::Unusable { value, why } });
    }
}

fn budget(loaded: &Loaded, problems: &mut Vec<Problem>) {
    let memory = &loaded.config.shared_memory;
    if memory.budget_bytes() > BUDGET_MAX {
        let why =
            format!("times shared_memory.slot_size, which is {}, is more than {BUDGET_MAX} bytes", memory.slot_size);
        problems.push(at(loaded, "shared_memory.num_slots", unusable(memory.num_slots.into(), why)));
    }
}

/// Credit that is too small for one full record would hold a stream up for ever.
fn credits(loaded: &Loaded, problems: &mut Vec<Problem>) {
    let record =
        (u64::from(loaded.config.shared_memory.slot_size) + HEADER_BYTES as u64).next_multiple_of(CELL_BYTES as u64);
    let delivery = &loaded.config.delivery;
    for (key, credit) in [
        ("delivery.subscription_credit_bytes", delivery.subscription_credit_bytes),
        ("delivery.stream_credit_bytes", delivery.stream_credit_bytes),
    ] {
        if u64::from(credit) < record {
            let why = format!("is less than one full record of shared_memory.slot_size, which takes {record} bytes");
            problems.push(at(loaded, key, unusable(credit.into(), why)));
        }
    }
}

/// The rules of `[circuit_breaker]` apply to a service's own table.
fn breaker(loaded: &Loaded, service: &str, breaker: &CircuitBreaker, problems: &mut Vec<Problem>) {
    let general = contradicts(&loaded.config.circuit_breaker);
    if let Some((name, value, why)) = contradicts(breaker)
        && general.is_none()
    {
        let table = format!("circuit_breaker.services.{}", quoted_if_dotted(service));
        let full = format!("{table}.{name}");
        // Of the two keys the other one may be what the table sets.
        let set = loaded.provenance.keys().find(|key| **key == full);
        let set = set.or_else(|| loaded.provenance.keys().find(|key| key.starts_with(&format!("{table}."))));
        let origin = set.map_or(&Origin::Default, |key| loaded.origin(key)).clone();
        problems.push(Problem { origin, key: Some(full), fault: unusable(value, why) });
    }
}

fn contradicts(breaker: &CircuitBreaker) -> Option<(&'static str, i128, String)> {
    use super::key::Section;
    let value = |full: &str| match breaker.get(full.strip_prefix("circuit_breaker.")?) {
        Some(Value::Integer(number)) => Some(number),
        _ => None,
    };
    ORDERED.iter().find_map(|(smaller, larger)| {
        let (a, b) = (value(smaller)?, value(larger)?);
        let name = smaller.strip_prefix("circuit_breaker.")?;
        (a > b).then(|| (name, a, format!("is more than {larger}, which is {b}")))
    })
}

fn number(config: &Config, key: &str) -> Option<i128> {
    if let Some(Value::Integer(number)) = config.get(key) { Some(number) } else { None }
}

fn unusable(value: i128, why: String) -> Fault {
    Fault::Unusable { value: value.to_string(), why }
}

fn at(loaded: &Loaded, key: &str, fault: Fault) -> Problem {
    Problem { origin: loaded.origin(key).clone(), key: Some(key.to_owned()), fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_the_pairs_exist() {
        for key in ORDERED.iter().flat_map(|(a, b)| [a, b]) {
            assert!(number(&Config::default(), key).is_some(), "{key}");
        }
    }

    #[test]
    fn the_defaults_go_together() {
        assert_eq!(contradictions(&Loaded::default()), []);
    }
}
