//! The command line: reads settings, runs one command, turns its result into an exit code.
//!
//! Must never hold logic of the cluster: what a node does is in the coordinator and worker crates.

#![forbid(unsafe_code)]

mod bench;
mod catalogue;
mod cli;
mod client;
mod commands;
mod local;
mod logs;
mod settings;
mod stop;
mod term;

use std::process::ExitCode;

use settings::Loaded;

/// Done.
const DONE: u8 = 0;
/// The command failed.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const WRONG_USAGE: u8 = 2;

/// A mistake in flags or configuration that only shows after they were read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

fn main() -> ExitCode {
    ExitCode::from(match settings::load(std::env::args_os().collect()) {
        Ok(Loaded::Print(text)) => finish(term::print(&text)),
        Ok(Loaded::Run(cli)) => finish(logs::start(&cli.log, cli.log_json).and_then(|()| commands::run(cli))),
        Err(settings::LoadError::Usage(error)) => {
            // Help and version come this way too, and are not failures. A closed pipe is no reason to fail.
            let _ = error.print();
            if error.use_stderr() { WRONG_USAGE } else { DONE }
        }
        Err(settings::LoadError::File(text)) => {
            eprintln!("error: {text}");
            WRONG_USAGE
        }
    })
}

fn finish(result: anyhow::Result<()>) -> u8 {
    let Err(error) = result else { return DONE };
    eprintln!("error: {error:#}");
    if error.downcast_ref::<UsageError>().is_some() { WRONG_USAGE } else { FAILED }
}
