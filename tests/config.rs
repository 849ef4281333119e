//! The configuration through its public interface: what is refused, in which words and where; what wins over what.

#![cfg(feature = "broker")]

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lapce_ipc::config::{
    Config, Env, Loaded, Options, Origin, Rule, WaitStrategy, explain, keys, load, template, variable,
};
use lapce_ipc::wire::Name;
use proptest::prelude::*;
use tempfile::TempDir;

/// A directory of its own, with what a test puts there.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        path
    }

    fn options(&self, file: Option<&Path>) -> Options {
        Options { file: file.map(Path::to_owned), etc: self.path("etc"), ..Options::default() }
    }

    /// Loads a file of this text; an error comes as text that begins with the file's name alone.
    fn load(&self, text: impl AsRef<[u8]>, env: &Env) -> Result<Loaded, String> {
        let path = self.write("config.toml", text);
        let directory = format!("{}/", self.dir.path().display());
        load(&self.options(Some(&path)), env).map_err(|error| error.to_string().replace(&directory, ""))
    }
}

fn env(variables: &[(&str, &str)]) -> Env {
    variables.iter().copied().collect()
}

#[track_caller]
fn refused(text: impl AsRef<[u8]>, expected: &str) {
    assert_eq!(Fixture::new().load(text, &Env::default()).expect_err("refused"), expected);
}

#[track_caller]
fn accepted(text: &str) -> Loaded {
    Fixture::new().load(text, &Env::default()).expect("accepted")
}

// ---- the shipped file

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml")
}

#[test]
fn config_toml_equals_the_defaults() {
    // Keys are commented without a space, and so are the examples, which begin with a table of their own.
    let mut is_example = false;
    let mut active = |line: &str| {
        is_example = line.starts_with("#[") || is_example && !line.starts_with('[');
        match line.strip_prefix('#') {
            Some(key) if !is_example && !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        }
    };
    let text: String = fs::read_to_string(shipped()).expect("config.toml").lines().map(&mut active).collect();
    let loaded = Fixture::new().load(text, &Env::default()).expect("config.toml loads");
    assert_eq!(loaded.config, Config::default());
    for (section, key) in keys() {
        let origin = loaded.origin(&format!("{section}.{}", key.name)).clone();
        assert!(matches!(origin, Origin::File { .. }), "{section}.{} is not in config.toml", key.name);
    }
}

#[test]
fn config_toml_as_shipped_sets_nothing() {
    let text = fs::read(shipped()).expect("config.toml");
    let loaded = Fixture::new().load(text, &Env::default()).expect("config.toml loads");
    assert_eq!(loaded.config, Config::default());
    for (section, key) in keys() {
        let full = format!("{section}.{}", key.name);
        assert_eq!(*loaded.origin(&full), Origin::Default, "config.toml sets {full}");
    }
}

/// After a change of the keys: `cargo test --test config -- --ignored write_config_toml`.
#[test]
fn config_toml_is_current() {
    let text = fs::read_to_string(shipped()).expect("config.toml");
    assert!(text == template(), "config.toml is not what the keys say: see this test's comment");
}

#[test]
#[ignore = "writes config.toml"]
fn write_config_toml() {
    fs::write(shipped(), template()).expect("config.toml");
}

#[test]
fn the_examples_in_config_toml_load() {
    // Examples are commented without a space.
    let text: String = template()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = accepted(&text).config;
    assert_eq!(config.breaker_for("ai.complete").failure_threshold, 10);
    assert_eq!(config.breaker_for("ai.complete").success_threshold, 2);
    assert_eq!(config.breaker_for("ai.chat"), config.circuit_breaker);
    assert_eq!(config.upstream[0].services, ["ai.complete"]);
}

#[test]
fn the_original_file_loads() {
    let config = accepted(
        "[ipc]\nsocket_path = \"/tmp/lapce_ipc.sock\"\nmax_connections = 1000\nmax_message_size = 10485760  # 10MB\n\
         [shared_memory]\nslot_size = 1024\nnum_slots = 1024\npermissions = 384  # 0600\n\
         [circuit_breaker]\nfailure_threshold = 5\nsuccess_threshold = 2\n\
         timeout_secs = 60\nhalf_open_max_requests = 3\n\
         [health_server]\nport = 9090\nhost = \"0.0.0.0\"\n[metrics]\nenable = true\nexport_interval_secs = 10\n",
    )
    .config;
    assert_eq!(config.health_server.host, "0.0.0.0");
    let mut ours = config;
    ours.health_server.host = "127.0.0.1".to_owned();
    assert_eq!(ours, Config::default());
}

#[test]
fn every_key_is_explained() {
    let output = explain(&Loaded::default()).to_string();
    for (section, key) in keys() {
        let first = key.doc_lines().next().unwrap_or_default();
        assert!(first.len() > 15 && first.ends_with('.'), "{section}.{}: {first:?} is no sentence", key.name);
        let value = Config::default().get(&format!("{section}.{}", key.name)).expect("a value");
        assert!(
            output.contains(&format!("# {first}\n{section}.{} = {value}   # default", key.name)),
            "{section}.{}",
            key.name
        );
    }
}

// ---- errors, with their place

#[test]
fn out_of_range() {
    refused("[ipc]\n\nmax_connections = 0\n", "config.toml:3:19: ipc.max_connections: 0 is out of range 1..=100000");
    refused(
        "ipc.max_message_size = 0x40000001",
        "config.toml:1:24: ipc.max_message_size: 1073741825 is out of range 1..=1073741824",
    );
    refused("ipc.max_connections = -1", "config.toml:1:23: ipc.max_connections: -1 is out of range 1..=100000");
    refused(
        "ipc.max_connections = 99999999999999999999",
        "config.toml:1:23: ipc.max_connections: 99999999999999999999 is out of range 1..=100000",
    );
    refused(
        "ipc.max_connections = 9999999999999999999999999999999999999999999999999",
        "config.toml:1:23: ipc.max_connections: 9999999999999999999999999999999999999999999999999 \
         is too large",
    );
    refused("restart.jitter = 1.5", "config.toml:1:18: restart.jitter: 1.5 is out of range 0..=1");
    refused("restart.jitter = nan", "config.toml:1:18: restart.jitter: NaN is out of range 0..=1");
    refused("restart.jitter = -inf", "config.toml:1:18: restart.jitter: -inf is out of range 0..=1");
    refused("restart.jitter = 99999999999", "config.toml:1:18: restart.jitter: 99999999999 is out of range 0..=1");
    assert_eq!(accepted("restart.jitter = 1").config.restart.jitter, 1.0);
}

#[test]
fn columns_are_characters() {
    refused(
        "ipc = { socket_path = \"/é\", max_connections = 0 }",
        "config.toml:1:47: ipc.max_connections: 0 is out of range 1..=100000",
    );
}

#[test]
fn wrong_types() {
    refused(
        "[ipc]\nmax_connections = \"many\"",
        "config.toml:2:19: ipc.max_connections: expected an integer, found the string \"many\"",
    );
    refused(
        "[ipc]\nmax_connections = 1.0",
        "config.toml:2:19: ipc.max_connections: expected an integer, found the number 1.0",
    );
    refused("[metrics]\nenable = 1", "config.toml:2:10: metrics.enable: expected true or false, found the integer 1");
    refused(
        "[ipc]\nsocket_path = true",
        "config.toml:2:15: ipc.socket_path: expected a string, found the boolean true",
    );
    refused(
        "[ipc]\nsocket_path = 1979-05-27",
        "config.toml:2:15: ipc.socket_path: expected a string, found a date or time",
    );
    refused("[ipc.socket_path]", "config.toml:1:1: ipc.socket_path: expected a string, found a table");
    refused(
        "[ipc]\nallowed_uids = 1000",
        "config.toml:2:16: ipc.allowed_uids: expected an array of integers, found the integer 1000",
    );
    refused(
        "[ipc]\nallowed_uids = [\"me\"]",
        "config.toml:2:16: ipc.allowed_uids: expected an integer, found the string \"me\"",
    );
    refused("ipc = 3", "config.toml:1:7: ipc: expected a table, found the integer 3");
    refused("[[ipc]]\n", "config.toml:1:1: ipc: expected a table, found an array");
    refused(
        "[circuit_breaker]\nservices = 1",
        "config.toml:2:12: circuit_breaker.services: expected a table, found the integer 1",
    );
    refused("upstream = [1]", "config.toml:1:13: upstream[0]: expected a table, found the integer 1");
    refused("[upstream]\n", "config.toml:1:1: upstream: expected an array of tables, [[upstream]], found a table");
}

#[test]
fn unknown_keys() {
    refused(
        "[ipc]\nmax_conections = 5",
        "config.toml:2:1: ipc.max_conections: unknown key (did you mean ipc.max_connections?)",
    );
    refused(
        "[ipc]\n  slot_size = 5",
        "config.toml:2:3: ipc.slot_size: unknown key (did you mean shared_memory.slot_size?)",
    );
    refused("[ipc]\ncolour = 5", "config.toml:2:1: ipc.colour: unknown key");
    refused("port = 5", "config.toml:1:1: port: unknown key (did you mean health_server.port?)");
    refused("[shared-memory]\n", "config.toml:1:2: shared-memory: unknown table (did you mean [shared_memory]?)");
    refused("[colours]\n", "config.toml:1:2: colours: unknown table");
    refused("[ipc]\n\"\\u001b[2J\" = 5", "config.toml:2:1: ipc.\\u{1b}[2J: unknown key");
    let long = "x".repeat(500);
    refused(format!("{long} = 1"), &format!("config.toml:1:1: {}…: unknown key", &long[..64]));
}

#[test]
fn impossible_values() {
    refused("shared_memory.slot_size = 1020", "config.toml:1:27: shared_memory.slot_size: 1020 is not a multiple of 8");
    refused(
        "shared_memory.permissions = 511",
        "config.toml:1:29: shared_memory.permissions: 511 is mode 0777, which has execute bits",
    );
    refused(
        "shared_memory.permissions = 0o440",
        "config.toml:1:29: shared_memory.permissions: 288 is mode 0440, which denies the owner read or write access",
    );
    refused(
        "shared_memory.permissions = 0o1600",
        "config.toml:1:29: shared_memory.permissions: 896 is out of range 0..=511",
    );
    refused(
        "router.wait = \"lazy\"",
        "config.toml:1:15: router.wait: \"lazy\" is not one of \"adaptive\", \"busy\" or \"block\"",
    );
    refused("ipc.socket_path = \"x.sock\"", "config.toml:1:19: ipc.socket_path: \"x.sock\" is not an absolute path");
    refused("ipc.socket_path = \"/x\\u0000\"", "config.toml:1:19: ipc.socket_path: \"/x\\u0000\" contains a zero byte");
    refused("ipc.socket_path = \"/tmp/\"", "config.toml:1:19: ipc.socket_path: \"/tmp/\" names a directory");
    let path = format!("/{}", "x".repeat(107));
    refused(
        format!("ipc.socket_path = \"{path}\""),
        &format!(
            "config.toml:1:19: ipc.socket_path: \"{}\"… is longer than 107 bytes, \
             the limit for a socket path",
            &path[..64]
        ),
    );
    accepted(&format!("ipc.socket_path = \"{}\"", &path[..107]));
    refused("ipc.allowed_uids = [7, 7]", "config.toml:1:20: ipc.allowed_uids: 7 is listed twice");
    refused(
        "health_server.host = \"a b\"",
        "config.toml:1:22: health_server.host: \"a b\" is not a host name or address",
    );
    refused(
        "health_server.token_file = \"t\"",
        "config.toml:1:28: health_server.token_file: \"t\" is not an absolute path",
    );
    refused(
        "health_server.socket_path = \"http.sock\"",
        "config.toml:1:29: health_server.socket_path: \"http.sock\" is not an absolute path",
    );
    refused(
        "logging.level = \"info,loud\"",
        "config.toml:1:17: logging.level: \"info,loud\" has \"loud\", which is neither a level nor MODULE=LEVEL",
    );
    refused(
        "health_server.require_token = \"maybe\"",
        "config.toml:1:31: health_server.require_token: expected true or false, found the string \"maybe\"",
    );
    refused(
        "health_server.socket_path = \"/tmp/lapce_ipc.sock\"",
        "config.toml:1:29: health_server.socket_path: \"/tmp/lapce_ipc.sock\" is also ipc.socket_path",
    );
}

proptest! {
    /// What is a name is said in two layers, none of which may use the other.
    #[test]
    fn a_service_has_the_names_that_the_wire_has(
        text in "([A-Za-z0-9_.$*>é -]{0,12}|[a-z]{60,68}|([a-z]{1,30}\\.){6,17}[a-z]?)"
    ) {
        let file = format!("[[upstream]]\nname = \"x\"\nsocket_path = \"/x\"\nservices = [{text:?}]\n");
        let is_accepted = Fixture::new().load(file, &Env::default()).is_ok();
        prop_assert_eq!(is_accepted, Name::parse(&text).is_ok(), "{:?}", text);
    }
}

#[test]
fn contradictions_are_told_at_a_key_that_was_set() {
    refused(
        "shared_memory.num_slots = 100",
        "config.toml:1:27: shared_memory.num_slots: 100 is less than shared_memory.max_window_slots, which is 512",
    );
    refused(
        "shared_memory.max_window_slots = 2000",
        "config.toml:1:34: shared_memory.max_window_slots: 2000 is more than shared_memory.num_slots, which is 1024",
    );
    refused(
        "restart.max_delay_ms = 20\nrestart.initial_delay_ms = 30",
        "config.toml:2:28: restart.initial_delay_ms: 30 is more than restart.max_delay_ms, which is 20",
    );
    refused(
        "circuit_breaker.half_open_max_requests = 1",
        "config.toml:1:42: circuit_breaker.half_open_max_requests: \
         1 is less than circuit_breaker.success_threshold, which is 2",
    );
    refused(
        "shared_memory.num_slots = 1048576\nshared_memory.slot_size = 8192",
        "config.toml:1:27: shared_memory.num_slots: 1048576 times shared_memory.slot_size, which is 8192, \
         is more than 4294967296 bytes",
    );
    refused(
        "delivery.stream_credit_bytes = 1024",
        "config.toml:1:32: delivery.stream_credit_bytes: 1024 is less than one full record of shared_memory.slot_size, \
         which takes 1152 bytes",
    );
}

#[test]
fn breaker_tables_of_services() {
    let loaded =
        accepted("[circuit_breaker]\ntimeout_secs = 7\n[circuit_breaker.services.lsp]\nfailure_threshold = 1\n");
    let breaker = loaded.config.breaker_for("lsp");
    assert_eq!((breaker.failure_threshold, breaker.timeout_secs, breaker.success_threshold), (1, 7, 2));
    refused(
        "[circuit_breaker.services.lsp]\nfailure_threshold = 0",
        "config.toml:2:21: circuit_breaker.services.lsp.failure_threshold: 0 is out of range 1..=1000000",
    );
    refused(
        "[circuit_breaker.services.lsp]\nfailure_treshold = 1",
        "config.toml:2:1: circuit_breaker.services.lsp.failure_treshold: unknown key (did you mean failure_threshold?)",
    );
    refused(
        "[circuit_breaker.services.ai.complete]\nfailure_threshold = 1",
        "config.toml:1:30: circuit_breaker.services.ai.complete: unknown table \
         (did you mean circuit_breaker.services.\"ai.complete\"?)",
    );
    refused(
        "[circuit_breaker.services.\"<script>\"]\n",
        "config.toml:1:27: circuit_breaker.services: \"<script>\" is not a name: \
         character '<' is not allowed at byte 0",
    );
    refused(
        "[circuit_breaker.services.\"a.b\"]\ntimeout_secs = 601",
        "config.toml:2:16: circuit_breaker.services.\"a.b\".timeout_secs: \
         601 is more than circuit_breaker.max_timeout_secs, which is 600",
    );
}

#[test]
fn upstreams() {
    let loaded = accepted(
        "[[upstream]]\nname = \"a\"\nsocket_path = \"/a\"\n\
         [[upstream]]\nname = \"b\"\nsocket_path = \"/b\"\nservices = [\"x.y\"]\n",
    );
    let names: Vec<_> = loaded.config.upstream.iter().map(|upstream| upstream.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(loaded.config.upstream[1].services, ["x.y"]);
    refused(
        "[[upstream]]\nname = \"a b\"\nservice = []\n",
        "config.toml:1:1: upstream[0].socket_path: missing\n\
         config.toml:2:8: upstream[0].name: \"a b\" is not a name: \
         character ' ' is not allowed at byte 1\n\
         config.toml:3:1: upstream[0].service: unknown key (did you mean services?)",
    );
    refused(
        "[[upstream]]\nname = \"a\"\nsocket_path = \"/a\"\n[[upstream]]\nname = \"a\"\nsocket_path = \"/b\"\n",
        "config.toml:4:1: upstream[1].name: \"a\" is also the name of another upstream",
    );
}

#[test]
fn an_upstream_may_have_restart_keys_of_its_own() {
    let loaded = accepted(
        "[restart]\nmax_restarts = 3\nmax_delay_ms = 900\n\
         [[upstream]]\nname = \"a\"\nsocket_path = \"/a\"\ninitial_delay_ms = 7\n\
         max_delay_ms = 8\njitter = 0\nperiod_secs = 9\nstable_secs = 1\n\
         [[upstream]]\nname = \"b\"\nsocket_path = \"/b\"\nmax_restarts = 4\n",
    );
    let own = loaded.config.restart_for("a");
    assert_eq!(
        (own.initial_delay_ms, own.max_delay_ms, own.jitter, own.period_secs, own.stable_secs),
        (7, 8, 0.0, 9, 1)
    );
    assert_eq!(own.max_restarts, 0, "without a limit of its own it is dialled for ever");
    let other = loaded.config.restart_for("b");
    assert_eq!((other.max_restarts, other.max_delay_ms), (4, 900), "the other keys are as for all");
    let output = explain(&loaded).to_string();
    assert!(output.contains("initial_delay_ms = 7"), "{output}");
    assert_eq!(Fixture::new().load(&output, &Env::default()).expect("it loads again").config, loaded.config);
    refused(
        "[[upstream]]\nname = \"a\"\nsocket_path = \"/a\"\nwatchdog_abort_ms = 100\nmax_restart = 1\n",
        "config.toml:4:1: upstream[0].watchdog_abort_ms: unknown key\n\
         config.toml:5:1: upstream[0].max_restart: unknown key (did you mean max_restarts?)",
    );
    refused(
        "[[upstream]]\nname = \"a\"\nsocket_path = \"/a\"\ninitial_delay_ms = 6000\n",
        "config.toml:1:1: upstream[0].initial_delay_ms: 6000 is more than max_delay_ms, which is 5000",
    );
    refused(
        "[[upstream]]\nname = \"a\"\nsocket_path = \"/a\"\njitter = 2\n",
        "config.toml:4:10: upstream[0].jitter: 2 is out of range 0..=1",
    );
}

#[test]
fn engines() {
    let loaded = accepted(
        "[restart]\nmax_restarts = 3\n\
         [[engine]]\nname = \"a\"\ncommand = \"/bin/engine\"\nargs = [\"-v\", \"-v\", \"\"]\nenv = [\"A=b=c\"]\n\
         stop_timeout_ms = 7\nmax_restarts = 4\n\
         [[engine]]\nname = \"b\"\ncommand = \"engine\"\n",
    );
    let config = &loaded.config;
    assert_eq!(config.engine[0].args, ["-v", "-v", ""]);
    assert_eq!((&config.engine[0].env[..], config.engine[0].stop_timeout_ms), (&["A=b=c".to_owned()][..], 7));
    assert_eq!((config.engine[1].command.as_str(), config.engine[1].stop_timeout_ms), ("engine", 2000));
    assert_eq!((config.engine_restart_for("a").max_restarts, config.engine_restart_for("b").max_restarts), (4, 3));
    let output = explain(&loaded).to_string();
    assert_eq!(Fixture::new().load(&output, &Env::default()).expect("it loads again").config, loaded.config);
}

#[test]
fn an_engine_that_cannot_be_meant_is_refused() {
    let engine = |more: &str| format!("[[engine]]\nname = \"a\"\n{more}\n");
    refused("[engine]\n", "config.toml:1:1: engine: expected an array of tables, [[engine]], found a table");
    refused(
        "[[engine]]\nname = \"\"\n",
        "config.toml:1:1: engine[0].command: missing\n\
         config.toml:2:8: engine[0].name: \"\" is not a name: empty token at byte 0",
    );
    refused(engine("command = \"\""), "config.toml:3:11: engine[0].command: \"\" is empty");
    refused(
        engine("command = \"./bin/x\""),
        "config.toml:3:11: engine[0].command: \"./bin/x\" is a relative path; write an absolute one, or a name on PATH",
    );
    refused(engine("command = \"a\\u0000\""), "config.toml:3:11: engine[0].command: \"a\\u0000\" contains a zero byte");
    refused(
        engine("command = \"x\"\nargs = [\"\\u0000\"]"),
        "config.toml:4:8: engine[0].args: \"\\u0000\" contains a zero byte",
    );
    refused(engine("command = \"x\"\nenv = [\"=x\"]"), "config.toml:4:7: engine[0].env: \"=x\" is not NAME=VALUE");
    refused(engine("command = \"x\"\nenv = [\"A=1\", \"A=2\"]"), "config.toml:1:1: engine[0].env: \"A\" is set twice");
    refused(
        engine("command = \"x\"\ninitial_delay_ms = 6000"),
        "config.toml:1:1: engine[0].initial_delay_ms: 6000 is more than max_delay_ms, which is 5000",
    );
    refused(
        &(engine("command = \"x\"") + &engine("command = \"y\"")),
        "config.toml:4:1: engine[1].name: \"a\" is also the name of another engine",
    );
}

#[test]
fn quotas() {
    let loaded = accepted(
        "[[quota]]\nname = \"plugins\"\nclients = [\"plugin-*\", \"lsp-rust\"]\n\
         [[quota]]\nname = \"rest\"\nclients = [\"*\"]\n",
    );
    let quotas = &loaded.config.quota;
    assert_eq!(
        (quotas[0].name.as_str(), &quotas[0].clients[..]),
        ("plugins", &["plugin-*", "lsp-rust"].map(str::to_owned)[..])
    );
    assert_eq!((quotas[1].name.as_str(), quotas[1].clients.len()), ("rest", 1));
    let output = explain(&loaded).to_string();
    assert!(output.contains("\n# [[quota]]\nquota = [\n"), "{output}");
    assert_eq!(Fixture::new().load(&output, &Env::default()).expect("it loads again").config, loaded.config);
}

#[test]
fn a_quota_that_cannot_be_meant_is_refused() {
    let quota = |more: &str| format!("[[quota]]\nname = \"a\"\n{more}\n");
    let clients = |clients: &str| quota(&format!("clients = [{clients}]"));
    refused("[quota]\n", "config.toml:1:1: quota: expected an array of tables, [[quota]], found a table");
    refused(
        "[[quota]]\nname = \"a b\"\n",
        "config.toml:1:1: quota[0].clients: missing\n\
         config.toml:2:8: quota[0].name: \"a b\" is not a name: character ' ' is not allowed at byte 1",
    );
    refused(clients(""), "config.toml:1:1: quota[0].clients: [] names no client");
    refused(
        clients("\"x\", \"a*b\""),
        "config.toml:3:11: quota[0].clients: \"a*b\" is not a name: character '*' is not allowed at byte 1",
    );
    refused(
        clients("\".a*\""),
        "config.toml:3:11: quota[0].clients: \".a*\" is not the beginning of a name: empty token at byte 0",
    );
    refused(clients("\"x\", \"x\""), "config.toml:3:11: quota[0].clients: \"x\" is listed twice");
    refused(clients("7"), "config.toml:3:11: quota[0].clients: expected a string, found the integer 7");
    refused(
        &(clients("\"x\"") + "client = 1\n"),
        "config.toml:4:1: quota[0].client: unknown key (did you mean clients?)",
    );
    refused(&(clients("\"x\"") + "max_restarts = 1\n"), "config.toml:4:1: quota[0].max_restarts: unknown key");
    refused(
        &(clients("\"x\"") + &clients("\"y\"")),
        "config.toml:4:1: quota[1].name: \"a\" is also the name of another quota",
    );
    let many: String = (0..65).map(|n| format!("[[quota]]\nname = \"q{n}\"\nclients = [\"x\"]\n")).collect();
    refused(&many, "config.toml:193:1: quota[64].name: \"q64\" is one quota more than the 64 that are allowed");
}

#[test]
fn upstreams_without_a_name_are_not_namesakes() {
    refused(
        "[[upstream]]\nsocket_path = \"/a\"\n[[upstream]]\nsocket_path = \"/b\"\n",
        "config.toml:1:1: upstream[0].name: missing\nconfig.toml:3:1: upstream[1].name: missing",
    );
}

#[test]
fn syntax_errors() {
    refused("[ipc\nmax_connections = 1\n", "config.toml:1:5: syntax error: unclosed table, expected `]`");
    refused("[ipc]\nmax_connections 1\n", "config.toml:2:17: syntax error: key with no value, expected `=`");
    refused("[ipc]\n[ipc]\n", "config.toml:2:2: syntax error: duplicate key");
    refused(
        "a = \n\n[ipc]\nb = 'x\n",
        "config.toml:1:5: syntax error: string values must be quoted, expected literal string\n\
         config.toml:4:7: syntax error: invalid literal string, expected `'`",
    );
    // One problem a line, though the parser has more to say of this one.
    refused("a = ]]] = 3\n", "config.toml:1:5: syntax error: missing array opening, expected `[`");
    refused(b"[ipc]\n# \xff\n", "config.toml:2:3: is not UTF-8");
}

#[test]
fn all_problems_are_told_in_the_order_of_the_file() {
    let variables = env(&[("LAPCE_IPC__LIMITS__MAX_TOPICS", "0"), ("LAPCE_IPC__LIMITS__MAX_TOPIC", "1")]);
    let text = "[router]\nbatch_records = 0\n[ipc]\ncolour = 1\nmax_connections = \"\"\n";
    assert_eq!(
        Fixture::new().load(text, &variables).expect_err("refused"),
        "config.toml:2:17: router.batch_records: 0 is out of range 1..=4096\n\
         config.toml:4:1: ipc.colour: unknown key\n\
         config.toml:5:19: ipc.max_connections: expected an integer, found the string \"\"\n\
         LAPCE_IPC__LIMITS__MAX_TOPIC: unknown variable (did you mean LAPCE_IPC__LIMITS__MAX_TOPICS?)\n\
         LAPCE_IPC__LIMITS__MAX_TOPICS: limits.max_topics: 0 is out of range 1..=16777216"
    );
}

// ---- the environment

#[test]
fn variables_override_the_file() {
    let variables = env(&[
        ("LAPCE_IPC__IPC__SOCKET_PATH", "/run/é \"x\".sock"),
        ("LAPCE_IPC__IPC__ALLOWED_UIDS", "1, 2,3"),
        ("LAPCE_IPC__SHARED_MEMORY__PERMISSIONS", "0o660"),
        ("LAPCE_IPC__RESTART__JITTER", "0.5"),
        ("LAPCE_IPC__METRICS__ENABLE", "false"),
        ("LAPCE_IPC__ROUTER__WAIT", "busy"),
        ("LAPCE_IPC__HEALTH_SERVER__ALLOWED_HOSTS", ""),
        ("LAPCE_IPC_SOCKET", "/not/an/override"),
        ("PATH", "/bin"),
    ]);
    let text = "[ipc]\nsocket_path = \"/a\"\nmax_connections = 7\n[health_server]\nallowed_hosts = [\"a\"]\n";
    let loaded = Fixture::new().load(text, &variables).expect("accepted");
    let config = &loaded.config;
    assert_eq!(config.ipc.socket_path, Path::new("/run/é \"x\".sock"));
    assert_eq!(config.ipc.allowed_uids, [1, 2, 3]);
    assert_eq!(config.shared_memory.permissions, 0o660);
    assert_eq!(config.restart.jitter, 0.5);
    assert!(!config.metrics.enable);
    assert_eq!(config.router.wait, WaitStrategy::Busy);
    assert_eq!(config.health_server.allowed_hosts, [""; 0]);
    assert_eq!(config.ipc.max_connections, 7);
    assert_eq!(loaded.origin("ipc.socket_path"), &Origin::Environment("LAPCE_IPC__IPC__SOCKET_PATH".to_owned()));
    assert!(matches!(loaded.origin("ipc.max_connections"), Origin::File { line: 3, column: 19, .. }));
    assert_eq!(loaded.origin("ipc.worker_threads"), &Origin::Default);
}

#[test]
fn bad_variables() {
    let bad = |name: &str, value: &str| Fixture::new().load("", &env(&[(name, value)])).expect_err("refused");
    let int = "LAPCE_IPC__IPC__MAX_CONNECTIONS";
    for text in ["abc", "", "1 2", "007", "[1]", "\"1\"", "1\n2", "1 # one"] {
        let shown = lapce_ipc::config::Value::Text(text.to_owned());
        assert_eq!(bad(int, text), format!("{int}: ipc.max_connections: expected an integer, found {shown}"));
    }
    assert_eq!(bad(int, "0"), format!("{int}: ipc.max_connections: 0 is out of range 1..=100000"));
    assert_eq!(
        bad("LAPCE_IPC__METRICS__ENABLE", "yes"),
        "LAPCE_IPC__METRICS__ENABLE: metrics.enable: expected true or false, found \"yes\""
    );
    assert_eq!(
        bad("LAPCE_IPC__IPC__ALLOWED_UIDS", "1,,2"),
        "LAPCE_IPC__IPC__ALLOWED_UIDS: ipc.allowed_uids: expected an integer, found \"\""
    );
    assert_eq!(bad("LAPCE_IPC__ipc__socket_path", "/x"), "LAPCE_IPC__ipc__socket_path: unknown variable");
    assert_eq!(bad("LAPCE_IPC__", ""), "LAPCE_IPC__: unknown variable");
    let not_utf8: Env =
        [("LAPCE_IPC__IPC__SOCKET_PATH", std::ffi::OsString::from_vec(vec![b'/', 0xff]))].into_iter().collect();
    assert_eq!(
        Fixture::new().load("", &not_utf8).expect_err("refused"),
        "LAPCE_IPC__IPC__SOCKET_PATH: ipc.socket_path: is not UTF-8"
    );
}

#[test]
fn every_key_has_its_variable() {
    for (section, key) in keys() {
        let full = format!("{section}.{}", key.name);
        let value = Config::default().get(&full).expect("a value").to_string();
        let bare = match key.rule {
            Rule::Sequence { .. } | Rule::List { .. } => "",
            _ => value.trim_matches('"'),
        };
        let name = variable(section, key.name);
        let loaded = Fixture::new().load("", &env(&[(&name, bare)])).expect("a default is accepted");
        assert_eq!(loaded.origin(&full), &Origin::Environment(name));
        assert_eq!(loaded.config, Config::default());
    }
}

// ---- which file

#[test]
fn search_order() {
    let fixture = Fixture::new();
    let file = |name: &str, topics: u32| fixture.write(name, format!("limits.max_services = {topics}\n"));
    let services = |file: Option<&Path>, variables: &[(&str, &str)]| {
        let loaded = load(&fixture.options(file), &env(variables)).expect("loads");
        (loaded.config.limits.max_services, loaded.source)
    };
    let (home, xdg) = (fixture.path("home"), fixture.path("xdg"));
    let both = [("HOME", home.to_str().unwrap()), ("XDG_CONFIG_HOME", xdg.to_str().unwrap())];

    assert_eq!(services(None, &both), (1024, None));
    let etc = file("etc/lapce-ipc/config.toml", 1);
    assert_eq!(services(None, &both), (1, Some(etc.clone())));
    let in_home = file("home/.config/lapce-ipc/config.toml", 2);
    assert_eq!(services(None, &both), (1, Some(etc.clone())), "XDG_CONFIG_HOME is set, so ~/.config is not it");
    assert_eq!(services(None, &both[..1]), (2, Some(in_home.clone())));
    assert_eq!(services(None, &[both[0], ("XDG_CONFIG_HOME", "")]), (2, Some(in_home)));
    let in_xdg = file("xdg/lapce-ipc/config.toml", 3);
    assert_eq!(services(None, &both), (3, Some(in_xdg)));
    let by_variable = file("variable.toml", 4);
    let all = [both[0], both[1], ("LAPCE_IPC_CONFIG", by_variable.to_str().unwrap())];
    assert_eq!(services(None, &all), (4, Some(by_variable.clone())));
    let by_option = file("option.toml", 5);
    assert_eq!(services(Some(&by_option), &all), (5, Some(by_option.clone())));
    // A relative directory is passed over, even where it leads to a file. Tests run in the package's directory.
    let up = "../".repeat(Path::new(env!("CARGO_MANIFEST_DIR")).components().count() - 1);
    let relative = format!("{up}{}", xdg.strip_prefix("/").unwrap().display());
    assert!(Path::new(&relative).join("lapce-ipc/config.toml").exists(), "{relative}");
    assert_eq!(services(None, &[("XDG_CONFIG_HOME", &relative), both[0]]), (1, Some(etc)));
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let fixture = Fixture::new();
    fixture.write("etc/lapce-ipc/config.toml", "");
    let missing = fixture.path("missing.toml");
    let expected = format!("{}: no such file", missing.display());
    let error = load(&fixture.options(Some(&missing)), &Env::default()).expect_err("refused");
    assert_eq!(error.to_string(), expected);
    let by_variable = env(&[("LAPCE_IPC_CONFIG", missing.to_str().unwrap())]);
    let error = load(&fixture.options(None), &by_variable).expect_err("refused");
    assert_eq!(error.to_string(), format!("{expected}, which LAPCE_IPC_CONFIG names"));
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.write("etc/lapce-ipc/config.toml", "");
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = load(&fixture.options(None), &Env::default()).expect_err("refused");
        let expected =
            format!("{}: mode {mode:04o} is writable by group or others; refused (chmod go-w)", path.display());
        assert_eq!(error.to_string(), expected);
    }
    for mode in [0o400, 0o644, 0o755] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        load(&fixture.options(None), &Env::default()).expect("accepted");
    }
}

#[test]
fn a_link_does_not_hide_who_can_write() {
    let fixture = Fixture::new();
    let target = fixture.write("target.toml", "");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o666)).unwrap();
    let link = fixture.path("link.toml");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let error = load(&fixture.options(Some(&link)), &Env::default()).expect_err("refused");
    assert!(error.to_string().starts_with(&format!("{}: mode 0666", link.display())), "{error}");
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.write("config.toml", "");
    let own = rustix::process::geteuid();
    let (owner, pretended) = if own.is_root() {
        // Root's files are good for everybody, so this one is given away.
        rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(4242)), None).unwrap();
        (4242, 0)
    } else {
        (own.as_raw(), own.as_raw() + 1)
    };
    let options = Options { own_uid: pretended, ..fixture.options(Some(&path)) };
    let error = load(&options, &Env::default()).expect_err("refused");
    let expected = format!("{}: owned by uid {owner}, expected uid {pretended} or root; refused", path.display());
    assert_eq!(error.to_string(), expected);
    load(&Options { own_uid: owner, ..options }, &Env::default()).expect("the owner may");
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let fixture = Fixture::new();
    let fifo = fixture.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    for path in [fifo.as_path(), fixture.dir.path()] {
        let error = load(&fixture.options(Some(path)), &Env::default()).expect_err("refused");
        assert_eq!(error.to_string(), format!("{}: is not a regular file", path.display()));
    }
    let large = fixture.write("large.toml", "#".repeat((1 << 20) + 1));
    let error = load(&fixture.options(Some(&large)), &Env::default()).expect_err("refused");
    assert_eq!(error.to_string(), format!("{}: is larger than 1048576 bytes", large.display()));
    fixture.write("large.toml", "#".repeat(1 << 20));
    load(&fixture.options(Some(&large)), &Env::default()).expect("accepted");
}

// ---- the command line

#[test]
fn the_command_line_wins_and_changes_nothing_when_it_is_wrong() {
    let variables = env(&[("LAPCE_IPC__HEALTH_SERVER__PORT", "1")]);
    let mut loaded = Fixture::new().load("health_server.port = 2", &variables).unwrap();
    loaded.set_from_command_line("health_server.port", "3").unwrap();
    assert_eq!(loaded.config.health_server.port, 3);
    assert_eq!(loaded.origin("health_server.port"), &Origin::CommandLine);
    let before = loaded.clone();
    for (key, text, expected) in [
        ("health_server.port", "65536", "command line: health_server.port: 65536 is out of range 0..=65535"),
        ("health_server.colour", "1", "command line: health_server.colour: unknown key"),
        ("colour", "1", "command line: colour: unknown key"),
        (
            "shared_memory.num_slots",
            "1",
            "command line: shared_memory.num_slots: 1 is less than shared_memory.max_window_slots, which is 512",
        ),
    ] {
        assert_eq!(loaded.set_from_command_line(key, text).unwrap_err().to_string(), expected);
        assert_eq!(loaded, before);
    }
}

#[test]
fn the_socket_of_the_broker() {
    let variables = env(&[("LAPCE_IPC_SOCKET", "/b"), ("LAPCE_IPC__IPC__SOCKET_PATH", "/c")]);
    let mut loaded = Fixture::new().load("ipc.socket_path = \"/d\"", &variables).unwrap();
    let socket = |loaded: &Loaded| loaded.config.ipc.socket_path.to_str().unwrap().to_owned();
    loaded.settle_socket(None, &Env::default()).unwrap();
    assert_eq!(socket(&loaded), "/c");
    loaded.settle_socket(None, &variables).unwrap();
    assert_eq!(socket(&loaded), "/b");
    assert_eq!(loaded.origin("ipc.socket_path").to_string(), "env LAPCE_IPC_SOCKET");
    loaded.settle_socket(Some("/a".as_ref()), &variables).unwrap();
    assert_eq!(socket(&loaded), "/a");
    let error = loaded.settle_socket(Some("".as_ref()), &variables).unwrap_err().to_string();
    assert!(error.starts_with("command line: ipc.socket_path: \"\" is not a path"), "{error}");
    let absolute = std::path::absolute("s").unwrap();
    loaded.settle_socket(Some("./s".as_ref()), &variables).unwrap();
    // The directory may be too deep for a socket.
    let expected = if absolute.as_os_str().len() > 107 { Path::new("./s") } else { &absolute };
    assert_eq!(Path::new(&socket(&loaded)), expected);
}

// ---- explain

#[test]
fn explain_tells_where_values_come_from() {
    let fixture = Fixture::new();
    let variables = env(&[("LAPCE_IPC__ROUTER__WAIT", "block")]);
    let path = fixture.write("config.toml", "[ipc]\nmax_connections = 5\n[restart]\njitter = 0\n");
    let mut loaded = load(&fixture.options(Some(&path)), &variables).unwrap();
    loaded.set_from_command_line("health_server.port", "1").unwrap();
    let output = explain(&loaded).to_string();
    for line in [
        format!("# read from {}", path.display()),
        format!("ipc.max_connections = 5   # {}:2", path.display()),
        format!("restart.jitter = 0.0   # {}:4", path.display()),
        "router.wait = \"block\"   # env LAPCE_IPC__ROUTER__WAIT".to_owned(),
        "health_server.port = 1   # command line".to_owned(),
        "ipc.worker_threads = 1   # default".to_owned(),
    ] {
        assert!(output.lines().any(|output| output == line), "{line}\nis not in\n{output}");
    }
}

#[test]
fn explain_of_a_file_with_a_newline_in_its_name_is_still_toml() {
    let fixture = Fixture::new();
    let path = fixture.write("a\nipc.max_connections = 7\n", "ipc.max_connections = 5\n");
    let output = explain(&load(&fixture.options(Some(&path)), &Env::default()).unwrap()).to_string();
    assert_eq!(accepted(&output).config.ipc.max_connections, 5);
}

/// Any text for a variable: such as is near to a good value, and such as is not.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "/[ -~é\u{7f}]{0,40}",
        any::<String>(),
        (0_u64..200_000).prop_map(|number| number.to_string()),
        (0.0..1.5_f64).prop_map(|number| number.to_string()),
        Just("true".to_owned()),
        Just("block".to_owned()),
        "[0-9]{1,4}(,[0-9]{1,4}){0,3}",
        "[a-z.:-]{1,9}(,[a-z.:-]{1,9}){0,3}",
    ]
    .prop_filter("a variable holds no zero byte", |text| !text.contains('\0'))
}

/// Changes: the number of a key, and a text for it.
fn settings() -> impl Strategy<Value = Vec<(usize, String)>> {
    prop::collection::vec((0_usize..200, texts()), 1..12)
}

fn service() -> impl Strategy<Value = String> {
    "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}"
}

/// Lines that look like tables, like pairs, or like nothing.
fn documents() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        "\\[{0,2}[a-z_.\"]{0,12}\\]{0,2}",
        (0..64_usize, "[ -~\\n]{0,12}").prop_map(|(index, value)| {
            let (section, key) = keys().nth(index).unwrap_or_else(|| keys().next().expect("a key"));
            format!("{section}.{} = {value}", key.name)
        }),
        "[a-z_.]{1,16} ?= ?[ -~]{0,12}",
        ".{0,20}",
    ];
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever loads is explained in a way that loads again, to the same.
    #[test]
    fn explain_round_trips(settings in settings(), service in service(), tries in 1_u32..50) {
        let all: Vec<_> = keys().collect();
        let mut loaded = accepted(&format!(
            "[circuit_breaker.services.\"{service}\"]\nfailure_threshold = {tries}\n[circuit_breaker.services.other]\n\
             [[upstream]]\nname = \"{service}\"\nsocket_path = '/\"x\\'\n\
             services = [\"{service}\"]\nmax_restarts = {tries}\n\
             [[engine]]\nname = \"{service}\"\ncommand = '/\"x\\'\nargs = ['\\', '\\']\nmax_restarts = {tries}\n"
        ));
        let mut set = 0;
        for (index, text) in settings {
            let (section, key) = all[index % all.len()];
            set += u32::from(loaded.set_from_command_line(&format!("{section}.{}", key.name), &text).is_ok());
        }
        let output = explain(&loaded).to_string();
        let again = Fixture::new().load(&output, &Env::default());
        let again = again.map_err(|error| TestCaseError::fail(format!("{error}\n{output}")))?;
        prop_assert_eq!(&again.config, &loaded.config, "after {} changes", set);
    }

    /// No text of a file makes the loader panic, nor an error that is more than its lines.
    #[test]
    fn any_text_is_taken_or_refused(text in documents()) {
        if let Err(error) = Fixture::new().load(&text, &Env::default()) {
            for line in error.lines() {
                prop_assert!(line.starts_with("config.toml:"), "{}", error);
            }
        }
    }
}
