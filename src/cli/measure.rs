//! Flags of the commands that measure: `bench` and `eval`.
//!
//! Must never act: `commands` does.

use std::path::PathBuf;

use caravan_core::limits;
use clap::builder::{FalseyValueParser, PossibleValuesParser};
use clap::{Args, Subcommand};

#[derive(Clone, Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Example:
  caravan bench engine --threads 2 --prompt 512 --generate 64 --batch 1,16
  caravan bench http --url http://127.0.0.1:8080/v1 --model smollm2-135m-instruct --clients 8 --requests 64"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure how fast the engine computes a model, or some of its layers, in this process
    Engine(EngineArgs),
    /// Measure a server with an OpenAI API, this one or another, under load
    Http(HttpArgs),
    /// Measure how fast a model, or some of its layers, is loaded from blobs in memory
    Load(LoadArgs),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan bench engine --model smollm2-135m-instruct --threads 2 --prompt 512 --generate 64 --batch 1,16
  caravan bench engine --model model.gguf --threads 1 --layers 0..15 --depth 0,1024 --json

Every figure is tokens of all sequences together, a second. The first run of each is not counted.")]
pub struct EngineArgs {
    /// Model to compute: a name of the catalogue or a GGUF file
    #[arg(long, value_name = "NAME|FILE", default_value = "smollm2-135m-instruct")]
    pub model: String,

    /// Threads that compute [default: the cores this process may use]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Tokens of each prompt; 0 measures no prefill
    #[arg(long, value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(limits::CONTEXT_TOKENS)))]
    pub prompt: u32,

    /// Tokens of each answer; 0 measures no decode
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(limits::CONTEXT_TOKENS)))]
    pub generate: u32,

    /// Sequences at a time; several numbers are measured one after the other
    #[arg(long, value_name = "B,…", default_value = "1", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::STEP_ROWS)))]
    pub batch: Vec<u32>,

    /// Tokens of each sequence that are in the cache before; several numbers likewise
    #[arg(long, value_name = "N,…", default_value = "0", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(0..=i64::from(limits::CONTEXT_TOKENS)))]
    pub depth: Vec<u32>,

    /// Compute these layers only, from A to B without B [default: all]
    #[arg(long, value_name = "A..B", value_parser = layers)]
    pub layers: Option<(u32, u32)>,

    /// Rows of one step of a prefill
    #[arg(long, value_name = "N", default_value_t = limits::STEP_ROWS,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::STEP_ROWS)))]
    pub chunk: u32,

    /// Counted runs of each measurement
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::BENCH_REPEATS)))]
    pub repeat: u32,

    /// Begin no further run of a measurement that has taken this many seconds
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// Print a JSON object a measurement
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub json: bool,

    /// Folder whose models/ is the cache
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan bench http --url http://127.0.0.1:8080/v1 --model smollm2-135m-instruct --clients 8 --requests 64
  caravan bench http --url http://127.0.0.1:8080/v1 --model smollm2-135m-instruct --rate 2.5 --requests 100 --json

With --clients each of them sends its next request when its last is answered. With --rate requests arrive at
random times at that mean rate, whatever the server does, and times count from the arrival.")]
pub struct HttpArgs {
    /// The server's API, up to and with /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/v1")]
    pub url: String,

    /// Model to ask, as the server names it
    #[arg(long, value_name = "NAME", default_value = "smollm2-135m-instruct")]
    pub model: String,

    /// Which endpoint to ask
    #[arg(long, value_name = "KIND", default_value = "chat", value_parser = PossibleValuesParser::new(["chat", "completions"]))]
    pub api: String,

    /// Clients that ask one request after the other
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "rate",
        value_parser = clap::value_parser!(u32).range(1..=limits::BENCH_CLIENTS as i64))]
    pub clients: u32,

    /// Requests a second, arriving by chance (Poisson) instead of by clients
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,

    /// Requests that are measured
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::BENCH_REQUESTS)))]
    pub requests: u32,

    /// Requests before these that are not measured
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(limits::BENCH_REQUESTS)))]
    pub warm_up: u32,

    /// About how many tokens each prompt has: it is made of that many common words
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::BENCH_PROMPT_TOKENS)))]
    pub prompt_tokens: u32,

    /// Length of an answer at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,

    /// Ask the server to go on at an end of text, so that all answers have --max-tokens (an extension that
    /// caravan, llama.cpp's server and vLLM have)
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub ignore_eos: bool,

    /// Of prompts and arrival times: the same seed gives the same load
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Seconds that a request may take in all
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,

    /// Seconds without a byte after which a request is given up
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub stall: u64,

    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan bench load --model smollm2-135m-instruct --layers 0..15 --json

Writes the tensors as blobs into a folder of their own and deletes it at the end. The first run is not counted.")]
pub struct LoadArgs {
    /// Model to load: a name of the catalogue or a GGUF file
    #[arg(long, value_name = "NAME|FILE", default_value = "smollm2-135m-instruct")]
    pub model: String,

    /// Load these layers only, from A to B without B [default: all]
    #[arg(long, value_name = "A..B", value_parser = layers)]
    pub layers: Option<(u32, u32)>,

    /// Counted runs
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::BENCH_REPEATS)))]
    pub repeat: u32,

    /// Begin no further run after this many seconds
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub json: bool,

    /// Folder whose models/ is the cache, and where the blobs are written
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan eval benches/data/text.txt --model smollm2-135m-instruct --positions 6000

Compares the engine as it is served with the same weights unpacked to f32 and computed in f32: perplexity of the
text by both, mean Kullback-Leibler divergence, and how often both find the same token the likeliest.")]
pub struct EvalArgs {
    /// Text to predict
    #[arg(value_name = "FILE")]
    pub text: PathBuf,

    /// Model to evaluate: a name of the catalogue or a GGUF file
    #[arg(long, value_name = "NAME|FILE", default_value = "smollm2-135m-instruct")]
    pub model: String,

    /// Predictions to compare
    #[arg(long, value_name = "N", default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    pub positions: u32,

    /// Tokens of a window; every window begins anew
    #[arg(long, value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(2..=i64::from(limits::CONTEXT_TOKENS)))]
    pub context: u32,

    /// Threads that compute [default: the cores this process may use]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Print one JSON object
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub json: bool,

    /// Folder whose models/ is the cache
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

fn layers(text: &str) -> Result<(u32, u32), String> {
    let pair = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let pair = pair.filter(|(first, end): &(u32, u32)| first < end);
    pair.ok_or_else(|| "not a range of layers such as 0..15".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.001..=10_000.0).contains(value));
    value.ok_or_else(|| "not a number from 0.001 to 10000".to_owned())
}
