//! `bench-part`: the other processes of a measurement. Each prints `ready` when it is, and ends when its stdin does.

use super::deliveries::{END, MEASURED, pattern_of};
use super::processes::Role;
use crate::broker;
use crate::cli::exit::{exit_now, exit_on_signals};
use crate::cli::failure::{Code, Failure};
use crate::cli::logging::log_to_stderr;
use crate::cli::options::WaitOption;
use crate::cli::output::Out;
use crate::cli::target::BrokerTarget;
use crate::client::{HealthStatus, Subscription, View};
use crate::config::Loaded;
use clap::Args;
use rustix::process::{Signal, getpid, kill_process};
use std::io::{self, Read};

/// The service that the responder offers.
pub(super) const SERVICE: &str = "bench";

#[derive(Debug, Args)]
pub(crate) struct PartArgs {
    #[arg(value_enum)]
    role: Role,
    #[command(flatten)]
    wait: WaitOption,
    /// For a broker: `ipc.max_connections`
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    /// For a broker: the port of its health endpoints
    #[arg(long, value_name = "N")]
    health_port: Option<u16>,
    /// For a broker and a subscriber: the number of topics
    #[arg(long, value_name = "N", default_value_t = 1)]
    topics: u32,
    /// For a subscriber: the number of publishers
    #[arg(long, value_name = "N", default_value_t = 1)]
    publishers: u32,
    /// For a subscriber: its connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: u32,
    /// For a subscriber: read all that have arrived with each call, unless it is 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    batch: u32,
}

/// Performs the task of its role until stdin ends.
///
/// # Errors
///
/// If the task fails.
pub(crate) fn run(target: &BrokerTarget, args: &PartArgs) -> Result<(), Failure> {
    if args.role == Role::Broker {
        return run_broker(target, args);
    }
    exit_on_signals()?;
    let client = target.connect(args.role.as_str(), args.wait.wait)?;
    let responder = (args.role == Role::Responder).then(|| client.clone());
    when_stdin_ends(move || {
        // The others close before the last line that they print.
        if let Some(responder) = responder {
            responder.close();
        }
        exit_now(Code::Done)
    });
    match args.role {
        Role::Broker => Ok(()),
        Role::Responder => {
            let mut service = client.serve(SERVICE)?;
            print_line("ready")?;
            Ok(service.run(|request| Ok::<_, std::convert::Infallible>(request.take_payload()))?)
        }
        Role::Subscriber => {
            let pattern = pattern_of(args.topics);
            let further = (1..args.connections).map(|_| target.connect(args.role.as_str(), args.wait.wait));
            let further = further.collect::<Result<Vec<_>, _>>()?;
            let clients = std::iter::once(client).chain(further);
            // Kept with its client, which ends the subscription.
            let subscribed = clients.map(|client| Ok((client.subscribe(pattern)?, client)));
            let mut subscribed = subscribed.collect::<Result<Vec<_>, Failure>>()?;
            print_line("ready")?;
            let count = std::thread::scope(|scope| {
                let readers =
                    subscribed.iter_mut().map(|(subscription, _)| scope.spawn(|| count_messages(subscription, args)));
                let readers: Vec<_> = readers.collect();
                let panicked = || Failure::new(Code::Unavailable, "a thread panicked".to_owned());
                readers.into_iter().map(|reader| reader.join().map_err(|_| panicked())?).sum::<Result<u64, Failure>>()
            })?;
            // Behind the line, stdin ends, and so does this process.
            drop(subscribed);
            print_line(&count.to_string())
        }
    }
}

/// Counts the measured messages until each publisher has ended.
fn count_messages(subscription: &mut Subscription, args: &PartArgs) -> Result<u64, Failure> {
    let (mut count, mut ended) = (0u64, 0);
    // Where it lies, as a subscriber that is after speed reads.
    let mut read = |view: &View<'_>| {
        let mut phase = [0];
        view.copy_to(0, &mut phase);
        count += u64::from(phase[0] == MEASURED);
        ended += u32::from(phase[0] == END);
        ended
    };
    if args.batch > 0 {
        let mut ended = 0;
        while ended < args.publishers {
            subscription.read_batch(|view| ended = read(view))?;
        }
    } else {
        while subscription.read_next(&mut read)? < args.publishers {}
    }
    Ok(count)
}

fn run_broker(target: &BrokerTarget, args: &PartArgs) -> Result<(), Failure> {
    let loaded = configuration(target, args)?;
    log_to_stderr("warn")?;
    let ready = |_: &Loaded, _: &HealthStatus| {
        when_stdin_ends(|| {
            let _ = kill_process(getpid(), Signal::TERM);
        });
        // Without a reader, stdin has ended too.
        let _ = print_line("ready");
    };
    let again = loaded.clone();
    Ok(broker::run(loaded, move || Ok(again.clone()), |_| {}, ready)?)
}

/// The built-in defaults, so that figures compare, unless a file was named; and what the measurement is about.
fn configuration(target: &BrokerTarget, args: &PartArgs) -> Result<Loaded, Failure> {
    let mut loaded = match target.config {
        Some(_) => target.load()?,
        None => {
            let mut loaded = Loaded::default();
            let socket = target.socket.as_ref().map(|path| path.as_os_str());
            loaded.settle_socket(socket, &[("", ""); 0].into_iter().collect())?;
            loaded
        }
    };
    // Beside a broker that has the usual one.
    let port = args.health_port.unwrap_or_default();
    loaded.set_from_command_line("health_server.port", &port.to_string())?;
    loaded.set_from_command_line("router.wait", args.wait.wait.as_str())?;
    if let Some(max) = args.max_connections {
        loaded.set_from_command_line("ipc.max_connections", &max.to_string())?;
    }
    if args.topics > loaded.config.limits.max_topics_per_connection {
        loaded.set_from_command_line("limits.max_topics_per_connection", &args.topics.to_string())?;
    }
    Ok(loaded)
}

fn when_stdin_ends(then: impl FnOnce() + Send + 'static) {
    let watch = || {
        let mut byte = [0];
        loop {
            match io::stdin().read(&mut byte) {
                Ok(read) if read > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        then();
    };
    // Without the thread, the parent kills this process.
    let _ = std::thread::Builder::new().name("stdin".to_owned()).spawn(watch);
}

fn print_line(line: &str) -> Result<(), Failure> {
    let mut out = Out::new()?;
    out.write(format!("{line}\n").as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WaitStrategy;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        target: BrokerTarget,
        #[command(flatten)]
        part: PartArgs,
    }

    #[test]
    fn a_broker_with_a_file_is_told_the_same_as_one_without() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        let text = "[router]\nwait = \"busy\"\n[ipc]\nmax_connections = 3\n[limits]\nmax_topics = 12345\n";
        std::fs::write(&file, text).unwrap();
        let with = ["--config", file.to_str().unwrap()];
        for (more, topics) in [(&[][..], Loaded::default().config.limits.max_topics), (&with, 12_345)] {
            let said = ["x", "broker", "--wait", "block", "--max-connections", "20", "--health-port", "9191"];
            let Cli { target, part } = Cli::try_parse_from(said.iter().chain(more)).unwrap();
            let config = configuration(&target, &part).unwrap().config;
            assert_eq!(config.router.wait, WaitStrategy::Block);
            assert_eq!((config.ipc.max_connections, config.health_server.port), (20, 9191));
            assert_eq!(config.limits.max_topics, topics);
        }
    }
}
