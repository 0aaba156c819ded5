//! One command in, one outcome out: the same on every coordinator.
//!
//! Must never hold a command's rules (each object has its own file).

use super::responses::Stamped;
use super::rows::Rows;
use super::types::*;
use super::{bodies, conversations, keys, responses, retention};

/// Applies a command of the log. Deterministic: equal rows and commands give equal rows and
/// outcomes. A command that is refused or repeated changes nothing.
///
/// Errors: the rows can't be read or written; what was changed must then be thrown away.
pub fn apply<R: Rows + ?Sized>(rows: &mut R, command: &StoreCommand) -> Result<StoreOutcome, R::Error> {
    match command {
        StoreCommand::PutChunk { target, part, chunk, bytes, now_ms } => {
            bodies::put_chunk(rows, target, (*part, *chunk), bytes, *now_ms)
        }
        StoreCommand::AcceptResponse(accept) => responses::accept(rows, accept),
        StoreCommand::Journal { target, entry, item, upload, now_ms } => {
            let (item, upload) = (item.as_ref(), upload.as_deref());
            responses::journal(rows, target, &Stamped { entry, item, upload, now_ms: *now_ms })
        }
        StoreCommand::DeleteResponse { target } => responses::delete(rows, target),
        StoreCommand::CreateConversation(new) => conversations::create(rows, new),
        StoreCommand::UpdateConversation { target, metadata, now_ms } => {
            conversations::update(rows, target, metadata, *now_ms)
        }
        StoreCommand::AddItems { target, items, now_ms, once } => {
            conversations::add_items(rows, target, items, (*now_ms, once.as_ref()))
        }
        StoreCommand::DeleteItem { target, item } => conversations::delete_item(rows, target, item),
        StoreCommand::DeleteConversation { target } => conversations::delete(rows, target),
        StoreCommand::CreateKey { id, key } => keys::create(rows, id, key),
        StoreCommand::RevokeKey { id, now_ms } => keys::revoke(rows, id, *now_ms),
        StoreCommand::Expire { now_ms } => retention::expire(rows, *now_ms),
    }
}

impl StoreCommand {
    /// True for what takes something away for good: the log before it is to be compacted soon.
    pub fn deletes(&self) -> bool {
        matches!(
            self,
            StoreCommand::DeleteResponse { .. }
                | StoreCommand::DeleteItem { .. }
                | StoreCommand::DeleteConversation { .. }
                | StoreCommand::UpdateConversation { .. }
        )
    }
}
