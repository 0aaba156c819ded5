//! Logs: `tracing` to standard error, for people or as JSON.
//!
//! Must never write to standard output: that belongs to a command's result.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::UsageError;

/// Starts logging. `level` is a filter such as `warn` or `info,caravan_worker=debug`.
pub fn start(level: &str, json: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        UsageError(format!("the log level {level:?} is not a filter such as \"warn\" or \"info\": {error}"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
    Ok(())
}
