//! `caravan bench`: chooses what to measure.
//!
//! Must never hold a measurement.

mod engine;
mod http;
mod load;

use crate::cli::BenchCommand;

pub fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Engine(args) => engine::run(&args),
        BenchCommand::Http(args) => http::run(&args),
        BenchCommand::Load(args) => load::run(&args),
    }
}
