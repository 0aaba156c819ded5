//! The rules for names and sizes that every command obeys.
//!
//! Must never be the only check: gateways say the same earlier, in words for their clients.

use std::collections::BTreeSet;

use super::types::*;
use crate::limits;

/// An id of an object or item: it stands in keys, paths and cursors.
pub fn id(id: &str) -> Result<(), String> {
    name("an id", id, limits::OBJECT_ID_BYTES)
}

pub fn tenant(tenant: &str) -> Result<(), String> {
    name("a tenant", tenant, limits::TENANT_BYTES)
}

fn name(what: &str, text: &str, bytes: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > bytes {
        return Err(format!("{what} has 1 to {bytes} bytes, not {}", text.len()));
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte)) {
        return Err(format!("{what} may hold letters, digits and - _ . : @ only"));
    }
    Ok(())
}

pub(super) fn owner(owner: &Owner) -> Result<(), String> {
    tenant(&owner.tenant)?;
    name("the id of an API key", &owner.key, limits::OBJECT_ID_BYTES)
}

/// An idempotency key: printable, since it stands in an HTTP header.
pub fn once(once: Option<&Once>) -> Result<(), String> {
    let Some(once) = once else { return Ok(()) };
    let printable = once.key.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if once.key.is_empty() || once.key.len() > limits::IDEMPOTENCY_KEY_BYTES || !printable {
        let most = limits::IDEMPOTENCY_KEY_BYTES;
        return Err(format!("an idempotency key has 1 to {most} printable characters"));
    }
    Ok(())
}

/// Ids and inline sizes of items; the sum of their bytes.
pub(super) fn items(items: &[Item]) -> Result<u64, String> {
    let mut bytes = 0u64;
    let mut ids = BTreeSet::new();
    for item in items {
        id(&item.id)?;
        if !ids.insert(&item.id) {
            return Err(format!("item {} comes twice", item.id));
        }
        body(&item.body)?;
        bytes = bytes.saturating_add(item.body.bytes());
    }
    Ok(bytes)
}

pub(super) fn body(body: &Body) -> Result<(), String> {
    match body {
        Body::Inline(bytes) if bytes.len() > limits::COMMAND_BYTES => {
            Err("an inline body must fit into a command".to_owned())
        }
        _ => Ok(()),
    }
}

pub(super) fn metadata(metadata: &[u8]) -> Result<(), String> {
    if metadata.len() > limits::METADATA_BYTES {
        return Err(format!("metadata has at most {} bytes", limits::METADATA_BYTES));
    }
    Ok(())
}
