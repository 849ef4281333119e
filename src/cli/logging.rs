//! The log on stderr: one line per event, `words key=value …`.
//!
//! The journal adds the time, and reads the level from `<N>` at the start of a line (`sd-daemon(3)`); otherwise a line
//! has the time and the level in letters. `JOURNAL_STREAM` holds device and inode of the journal's stream: a process
//! that inherits the variable but writes elsewhere does not write to the journal.

use super::failure::{Code, Failure};
use super::output::plain;
use crate::broker::telemetry::stderr;
use env_logger::Logger;
use env_logger::fmt::{Formatter, Target, WriteStyle};
use log::{Level, Log, Metadata, Record};
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Logs to stderr, with the levels of RUST_LOG or else `levels`.
///
/// # Errors
///
/// If a logger is already installed.
pub(super) fn log_to_stderr(levels: &str) -> Result<Levels, Failure> {
    stderr::start(|count| log::warn!("log lines dropped count={count}")).map_err(no_thread)?;
    let logger = logger(levels);
    let most = logger.filter();
    let shared = Levels(Arc::new(RwLock::new(logger)));
    log::set_boxed_logger(Box::new(shared.clone()))
        .map_err(|error| Failure::new(Code::Unavailable, format!("cannot log: {error}")))?;
    log::set_max_level(most);
    Ok(shared)
}

/// A logger to stderr.
fn logger(levels: &str) -> Logger {
    let mut builder = env_logger::Builder::new();
    // What the HTTP library logs as an error is a fault in a client's request, not in the broker. To see it anyhow
    // names it.
    builder.parse_filters(&format!("{levels},actix_http=off,actix_server=warn"));
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    builder.target(Target::Pipe(Box::new(Queued)));
    match std::env::var("RUST_LOG_STYLE").as_deref() {
        Ok(style) if style != "auto" => builder.parse_write_style(style),
        _ => builder.write_style(if is_coloured() { WriteStyle::Always } else { WriteStyle::Never }),
    };
    if is_journal() {
        builder.format(|out, record| writeln!(out, "<{}>{}", priority(record.level()), message(record)));
    } else {
        builder.format(timed);
    }
    builder.build()
}

/// The log, whose levels can be changed. The lock is held for writing while a logger is replaced by another, which is
/// built before; a line only reads.
#[derive(Clone)]
pub(super) struct Levels(Arc<RwLock<Logger>>);

impl Levels {
    /// Changes the levels, unless RUST_LOG sets them.
    pub(super) fn set_levels(&self, levels: &str) {
        let logger = logger(levels);
        let most = logger.filter();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = logger;
        log::set_max_level(most);
    }

    fn logger(&self) -> RwLockReadGuard<'_, Logger> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Levels {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.logger().log(record);
    }

    fn flush(&self) {}
}

/// Makes writes to stderr non-blocking for commands without a log.
///
/// # Errors
///
/// If there can be no thread.
pub(super) fn queued_stderr() -> Result<(), Failure> {
    stderr::start(|count| stderr::write(format!("{count} lines dropped\n").as_bytes())).map_err(no_thread)
}

fn no_thread(error: io::Error) -> Failure {
    Failure::new(Code::Unavailable, format!("cannot start a thread for stderr: {error}"))
}

/// The logger's target: it writes each line in one piece.
struct Queued;

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr::write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether stderr is a terminal, and colours are not disabled.
fn is_coloured() -> bool {
    let says = |name, value: &str| std::env::var_os(name).is_some_and(|is| is == value);
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !no_colour && !says("TERM", "dumb")
}

/// Whether stderr goes to the journal.
pub(super) fn is_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| names(&stream, stat.st_dev, stat.st_ino))
}

/// Whether `DEVICE:INODE` is this stream.
fn names(stream: &OsStr, device: u64, inode: u64) -> bool {
    let numbers = stream.to_str().and_then(|text| text.split_once(':'));
    let numbers = numbers.and_then(|(device, inode)| Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?)));
    numbers == Some((device, inode))
}

/// The priorities of `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn timed(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, style) = (out.timestamp_millis(), out.default_level_style(record.level()));
    writeln!(out, "[{time} {style}{:<5}{style:#} {}", record.level(), message(record).replacen(' ', "] ", 1))
}

/// Module and message, on one line: values are escaped where they are logged, and here is made sure of it.
fn message(record: &Record<'_>) -> String {
    plain(&format!("{} {}", record.target(), record.args()))
}

/// A value after `key=`: as it is if it is one word, else quoted and escaped.
pub(super) fn value(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let is_word =
        !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace() || "\"'\\=".contains(c));
    if is_word { text } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_is_named_is_the_journal() {
        assert!(names("8:12345".as_ref(), 8, 12_345));
        for other in ["8:12346", "9:12345", "", ":", "8", "8:", "8:12345:1", "a:b"] {
            assert!(!names(other.as_ref(), 8, 12_345), "{other}");
        }
    }

    #[test]
    fn what_is_foreign_makes_no_line_of_its_own() {
        let message = |args: fmt::Arguments<'_>| message(&Record::builder().target("module").args(args).build());
        assert_eq!(
            message(format_args!("lost reason={}", "a\n<3>forged\u{1b}[2J")),
            "module lost reason=a\\n<3>forged\\u{1b}[2J"
        );
        assert_eq!(message(format_args!("path=\"/tmp/ä b\"")), "module path=\"/tmp/ä b\"");
    }

    #[test]
    fn values_are_one_word_or_quoted() {
        assert_eq!(value("/run/a.sock"), "/run/a.sock");
        for (text, expected) in
            [("a b", r#""a b""#), ("", r#""""#), ("a\nb", r#""a\nb""#), ("a=b", r#""a=b""#), ("\"", r#""\"""#)]
        {
            assert_eq!(value(text), expected);
        }
    }

    #[test]
    fn levels_are_those_of_syslog() {
        let all = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        assert_eq!(all.map(priority), [3, 4, 6, 7, 7]);
    }
}
