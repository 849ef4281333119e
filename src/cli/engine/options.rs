//! The options of `engine`.

use super::endpoint::{self, Endpoint, Times};
use super::key::Key;
use super::markers::Family;
use super::model::Model;
use super::serve::{self, Services};
use super::way::Way;
use crate::cli::failure::{Code, Failure};
use crate::cli::logging::log_to_stderr;
use crate::cli::options::{WaitOption, at_least_one, duration};
use crate::cli::target::BrokerTarget;
use crate::client::{self, Name};
use clap::{Args, Subcommand};
use reqwest::Url;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct EngineArgs {
    #[command(subcommand)]
    kind: Kind,
}

/// The kinds of engines.
#[derive(Debug, Subcommand)]
enum Kind {
    /// An OpenAI-compatible HTTP endpoint: llama.cpp, Ollama, vLLM, LM Studio and others
    #[command(after_help = NOTES)]
    Openai(OpenaiArgs),
}

#[derive(Debug, Args)]
struct OpenaiArgs {
    /// The endpoint; without a path, /v1 is added
    #[arg(long, value_name = "URL", value_parser = endpoint::base_url)]
    base_url: Url,
    /// The name of the model at the endpoint
    #[arg(long, value_name = "NAME")]
    model: String,
    /// The completion service
    #[arg(long, value_name = "NAME", default_value = "ai.inline-completion")]
    service: String,
    /// The chat service
    #[arg(long, value_name = "NAME", default_value = "ai.chat")]
    chat_service: String,
    /// Offer no chat service
    #[arg(long, conflicts_with = "chat_service")]
    no_chat: bool,
    /// The environment variable that has the key
    #[arg(long, value_name = "NAME", conflicts_with = "api_key_file")]
    api_key_env: Option<String>,
    /// The file whose first line is the key; not readable by all users
    #[arg(long, value_name = "PATH")]
    api_key_file: Option<PathBuf>,
    /// Requests that the engine has at a time; the others wait here
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = at_least_one)]
    slots: u64,
    /// Requests per service that this process takes; the broker rejects more as overloaded
    #[arg(long, value_name = "COUNT", default_value = "64", value_parser = at_least_one)]
    queue: u64,
    /// How to fill in the middle; without it, the way that works is found
    #[arg(long, value_enum, value_name = "WAY")]
    way: Option<Way>,
    /// Whose FIM markers the model has; without it, the model's name tells
    #[arg(long, value_enum, value_name = "FAMILY")]
    markers: Option<Family>,
    /// The most bytes before the cursor that are sent
    #[arg(long, value_name = "BYTES", default_value = "32768", value_parser = at_least_one)]
    max_prefix: u64,
    /// The most bytes after the cursor that are sent
    #[arg(long, value_name = "BYTES", default_value = "8192", value_parser = at_least_one)]
    max_suffix: u64,
    /// Limit of the time to connect to the endpoint
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    connect_timeout: Duration,
    /// Limit of the time from a request to the first token, and of the wait for a busy engine
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    first_token_timeout: Duration,
    /// Limit of the time between tokens
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    token_timeout: Duration,
    /// Limit of the time for outstanding requests after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    drain_timeout: Duration,
    #[command(flatten)]
    wait: WaitOption,
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  lapce-ipc engine openai --base-url http://127.0.0.1:8080 --model qwen2.5-coder   (llama.cpp)
  lapce-ipc engine openai --base-url http://127.0.0.1:11434 --model starcoder2     (Ollama)
  lapce-ipc engine openai --base-url https://api.example.com/v1 --model code --api-key-file ~/.config/key";

const NOTES: &str = "\
Examples:
  lapce-ipc engine openai --base-url http://127.0.0.1:8080 --model qwen2.5-coder
  lapce-ipc engine openai --base-url https://api.example.com/v1 --model code --api-key-file ~/.config/key
  lapce-ipc request ai.inline-completion.status

The completion service takes a typed completion_request and replies with completion_chunks, the chat service a \
chat_request; both in the binary or the JSON form. At most one request per document is outstanding: a newer one \
supersedes it. The service NAME.status returns the endpoint, the model, the way in use, the figures of the queue and \
the last error as JSON.

The way to fill in the middle is found at the first completions: `suffix`, llama.cpp's /infill, the model's FIM \
markers, or the text before the cursor only. Of an endpoint that ignores `suffix` without an error, name the way: \
--way markers.

An endpoint that does not connect, refuses the key, returns a server error, sends no token in time or ends a stream \
early fails the request, which counts towards the service's breaker. A request that the endpoint refuses as invalid \
does not count. After 429 and 503 no request is sent for Retry-After, or for a time that doubles from 500ms to 30s.

SIGTERM or SIGINT: outstanding requests are finished, then the exit code is 0.";

/// Serves until a signal.
///
/// # Errors
///
/// If an option is invalid, there is no broker, or the service cannot be offered.
pub(crate) fn run(target: &BrokerTarget, args: &EngineArgs) -> Result<(), Failure> {
    let Kind::Openai(args) = &args.kind;
    let key = Key::read(args.api_key_env.as_deref(), args.api_key_file.as_deref())?;
    let services = Services {
        completion: named(&args.service)?,
        chat: if args.no_chat { None } else { Some(named(&args.chat_service)?) },
        queue: args.queue.try_into().unwrap_or(u32::MAX),
        slots: size(args.slots),
        patience: args.first_token_timeout,
        drain: args.drain_timeout,
    };
    log_to_stderr("info")?;
    let times =
        Times { connect: args.connect_timeout, first_token: args.first_token_timeout, token: args.token_timeout };
    let model = Model {
        endpoint: Endpoint::new(&args.base_url, key, times)?,
        name: args.model.clone(),
        base_url: args.base_url.to_string(),
        family: args.markers.or_else(|| Family::of_model(&args.model)),
        forced: args.way,
        context: (size(args.max_prefix), size(args.max_suffix)),
        ways: Mutex::new(None),
    };
    if args.way == Some(Way::Markers) && model.family.is_none() {
        return Err(Failure::new(Code::Usage, format!("--way markers: no markers known for model {}", model.name))
            .hint("name their family: --markers"));
    }
    let builder = target.persistent_builder("engine", args.wait.wait)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Unavailable, format!("cannot wait: {error}")))?;
    runtime.block_on(serve::run(builder, model, services))
}

fn named(service: &str) -> Result<String, Failure> {
    Name::parse(service).map_err(client::Error::from)?;
    Ok(service.to_owned())
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        engine: EngineArgs,
    }

    #[test]
    fn the_key_is_no_option() {
        let base = ["engine", "openai", "--base-url", "http://127.0.0.1:1", "--model", "m"];
        let parse = |more: &[&str]| Cli::try_parse_from([&base, more].concat());
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--api-key-env", "KEY"]).is_ok());
        assert!(parse(&["--api-key", "sk-1"]).is_err());
        assert!(parse(&["--api-key-env", "KEY", "--api-key-file", "f"]).is_err());
        assert!(parse(&["--slots", "0"]).is_err());
        assert!(Cli::try_parse_from(["engine", "openai", "--base-url", "nonsense", "--model", "m"]).is_err());
    }
}
