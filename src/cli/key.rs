//! Flags of `caravan key`.
//!
//! Must never act: `commands` does.

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};

#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  caravan key create --tenant research --name laptop
  caravan key list
  caravan key revoke 0123456789abcdef

Keys are managed on the machine of a coordinator. From the first key on every request needs one, sent
as `Authorization: Bearer KEY`; the commands of this program send the one in CARAVAN_API_KEY.")]
pub struct KeyArgs {
    #[command(subcommand)]
    pub command: KeyCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key for a tenant, and print it once
    #[command(after_help = "Example:
  caravan key create --tenant research --name laptop")]
    Create {
        /// Whose the key is; what is stored with one tenant's keys does not exist for another's
        #[arg(long, value_name = "NAME")]
        tenant: String,

        /// A word to know the key by
        #[arg(long, value_name = "TEXT", default_value = "")]
        name: String,

        /// A coordinator on this machine
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        http: String,

        /// Print one JSON object
        #[arg(long, value_parser = FalseyValueParser::new())]
        json: bool,
    },
    /// List the keys, without the keys themselves
    #[command(after_help = "Example:
  caravan key list --json")]
    List {
        /// A coordinator on this machine
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        http: String,

        /// Print one JSON object
        #[arg(long, value_parser = FalseyValueParser::new())]
        json: bool,
    },
    /// Let a key open nothing any more
    #[command(after_help = "Example:
  caravan key revoke 0123456789abcdef")]
    Revoke {
        /// The key's id, as `list` shows it
        id: String,

        /// A coordinator on this machine
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
        http: String,
    },
}
