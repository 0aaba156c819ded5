//! The objects of the store, the commands that change them, and what a command answers.
//!
//! Must never look into a body: what items and requests say is the gateway's matter.

use serde::{Deserialize, Serialize};

use crate::journal::{Entry, Run, Tokens};

/// Whose an object is. Objects of one tenant do not exist for another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    pub tenant: String,
    /// Id of the API key that asked; usage is counted for it.
    pub key: String,
}

/// Bytes of an item or a request. Large ones are sent ahead in chunks (`PutChunk`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    Inline(Vec<u8>),
    Chunked { part: u32, chunks: u32, bytes: u64 },
}

impl Body {
    pub fn bytes(&self) -> u64 {
        match self {
            Body::Inline(bytes) => bytes.len() as u64,
            Body::Chunked { bytes, .. } => *bytes,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub id: String,
    pub body: Body,
}

/// The lists of items of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ItemList {
    Input = 0,
    Output = 1,
    /// Of a conversation.
    Conversation = 2,
}

/// Kinds of objects that can be listed, kept for a time, and made once for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Response = 0,
    Conversation = 1,
    /// An `Idempotency-Key`.
    Once = 2,
    /// Chunks whose object has not been made yet.
    Upload = 3,
}

impl Kind {
    pub(super) fn from_number(number: u8) -> Option<Kind> {
        [Kind::Response, Kind::Conversation, Kind::Once, Kind::Upload].get(usize::from(number)).copied()
    }
}

/// A create that may come twice: the same key makes the same object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Once {
    pub key: String,
    /// Digest of the request; another request with the same key is refused.
    pub fingerprint: [u8; 32],
}

/// A response as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    pub owner: Owner,
    pub model: String,
    pub background: bool,
    pub created_ms: u64,
    /// When the run was over; 0 while it is not.
    pub ended_ms: u64,
    pub previous: Option<String>,
    pub conversation: Option<String>,
    /// What is needed to compute the answer: request records, as the runtime reads them.
    pub record: Body,
    /// The request's own fields, for the object that clients see.
    pub request: Body,
    pub input_items: u64,
    pub run: Run,
    /// All that is stored of it, and the output's part of that.
    pub bytes: u64,
    pub output_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    pub owner: Owner,
    pub created_ms: u64,
    /// When it was last added to; its time to live counts from there.
    pub used_ms: u64,
    pub metadata: Vec<u8>,
    /// Items in it now.
    pub items: u64,
    /// Number of the next item; numbers are not used again.
    pub next_item: u64,
    /// Part of the next chunked body.
    pub next_part: u32,
    /// The response that is being made for it; no other may begin before it is over.
    pub busy: Option<String>,
    pub bytes: u64,
}

/// What an `Idempotency-Key` made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRow {
    pub fingerprint: [u8; 32],
    pub kind: Kind,
    pub id: String,
    pub expires_ms: u64,
}

/// An API key. The key itself is known to nobody but its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub tenant: String,
    pub name: String,
    /// Digest of the whole key.
    pub hash: [u8; 32],
    pub created_ms: u64,
    pub revoked_ms: Option<u64>,
}

/// What one key of a tenant used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub requests: u64,
    pub tokens: Tokens,
    pub stored_bytes: u64,
}

/// A response's input is accepted: from here on the answer will come, whoever dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    pub owner: Owner,
    pub id: String,
    pub model: String,
    pub background: bool,
    pub created_ms: u64,
    pub previous: Option<String>,
    pub conversation: Option<String>,
    pub record: Body,
    pub request: Body,
    pub input: Vec<Item>,
    pub once: Option<Once>,
}

/// Items to be added. Chunked bodies among them lie under the id `upload`, and are moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewItems {
    pub items: Vec<Item>,
    pub upload: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewConversation {
    pub owner: Owner,
    pub id: String,
    /// As the gateway reads it.
    pub metadata: Vec<u8>,
    pub items: NewItems,
    pub now_ms: u64,
    pub once: Option<Once>,
}

/// What a command is about: an object of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    pub tenant: String,
    pub id: String,
}

/// A log entry about the store. Times are stamped by whoever proposes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreCommand {
    /// A piece of a large body, before the command that names it.
    PutChunk {
        target: Target,
        part: u32,
        chunk: u32,
        bytes: Vec<u8>,
        now_ms: u64,
    },
    AcceptResponse(Box<Accept>),
    /// A step of a run is done. `item` is present with `Entry::ItemComplete`.
    /// Its body, if chunked, lies under `upload`.
    Journal {
        target: Target,
        entry: Entry,
        item: Option<Item>,
        upload: Option<String>,
        now_ms: u64,
    },
    DeleteResponse {
        target: Target,
    },
    CreateConversation(Box<NewConversation>),
    /// Replaces the metadata.
    UpdateConversation {
        target: Target,
        metadata: Vec<u8>,
        now_ms: u64,
    },
    AddItems {
        target: Target,
        items: NewItems,
        now_ms: u64,
        once: Option<Once>,
    },
    DeleteItem {
        target: Target,
        item: String,
    },
    DeleteConversation {
        target: Target,
    },
    CreateKey {
        id: String,
        key: ApiKey,
    },
    RevokeKey {
        id: String,
        now_ms: u64,
    },
    /// Removes what is past its time, and the oldest if the store is too large; a bounded number.
    Expire {
        now_ms: u64,
    },
}

/// What a command did. The same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreOutcome {
    Done,
    /// Nothing to change: a repeat, or overtaken by events.
    Unchanged,
    /// The `Idempotency-Key` made this object before.
    Exists {
        id: String,
    },
    /// `Expire`: this many objects were removed; there may be more if it is the most it removes.
    Removed {
        objects: u64,
    },
    Refused(Refused),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// The object does not exist (for this tenant).
    NotFound(Kind),
    /// The previous response is not there, or not over.
    PreviousNotFound,
    PreviousNotOver,
    /// An item of this id is not in the conversation.
    ItemNotFound,
    /// The `Idempotency-Key` was used for another request.
    KeyReused,
    /// The conversation belongs to a response that is not over.
    Busy {
        response: String,
    },
    /// A limit would be passed; says which.
    TooMuch(String),
    /// The store is full and nothing old is left to remove.
    Full,
    /// The command does not fit the rules; a defect of the one who made it.
    Malformed(String),
}
