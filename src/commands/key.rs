//! `caravan key`: API keys of tenants.
//!
//! Must never write a key anywhere but to standard output, once.

use serde_json::{Value, json};

use crate::cli::{KeyArgs, KeyCommand};
use crate::client::Client;
use crate::term::{print, table};

pub fn run(args: KeyArgs) -> anyhow::Result<()> {
    match args.command {
        KeyCommand::Create { tenant, name, http, json } => {
            let made = Client::new(&http).post("/admin/v1/keys", &json!({"tenant": tenant, "name": name}))?;
            if json {
                return print(&format!("{made}\n"));
            }
            let key = made["key"].as_str().unwrap_or_default();
            print(&format!("{key}\n"))?;
            eprintln!("key {} of tenant {tenant}; it is not shown again", text(&made["id"]));
            Ok(())
        }
        KeyCommand::List { http, json } => {
            let keys = Client::new(&http).ask("/admin/v1/keys")?;
            print(&if json { format!("{keys}\n") } else { listed(&keys) })
        }
        KeyCommand::Revoke { id, http } => {
            let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !plain || id.is_empty() {
                let why = "a key's id has letters and digits only; `caravan key list` shows it";
                return Err(crate::UsageError(why.to_owned()).into());
            }
            Client::new(&http).delete(&format!("/admin/v1/keys/{id}"))?;
            print(&format!("{id} is revoked\n"))
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn listed(keys: &Value) -> String {
    let mut rows: Vec<Vec<String>> =
        vec![["KEY", "TENANT", "NAME", "STATE"].iter().map(|cell| (*cell).to_owned()).collect()];
    for key in keys["data"].as_array().into_iter().flatten() {
        let state = if key["revoked_at"].is_null() { "open" } else { "revoked" };
        rows.push(vec![text(&key["id"]), text(&key["tenant"]), text(&key["name"]), state.to_owned()]);
    }
    table(&rows)
}
