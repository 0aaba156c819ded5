//! One file per command; this one only chooses.
//!
//! Must never hold a command's work.

mod bench;
mod chat;
mod coordinator;
mod eval;
mod key;
mod model;
mod status;
mod up;
pub mod worker;

use crate::cli::{Cli, Command};
use crate::local::specs::LogSettings;

pub fn run(cli: Box<Cli>) -> anyhow::Result<()> {
    let log = LogSettings { level: cli.log, json: cli.log_json };
    match cli.command {
        Command::Up(args) => up::run(args, &log),
        Command::Coordinator(args) => coordinator::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Status(args) => status::run(&args),
        Command::Chat(args) => chat::run(args),
        Command::Key(args) => key::run(args),
        Command::Model(args) => model::run(args.command),
        Command::Bench(args) => bench::run(args.command),
        Command::Eval(args) => eval::run(&args),
    }
}
