//! How a failure is told: whose fault it is, what to do, and whether a retry is safe.
//!
//! Must never know about HTTP or gRPC; the edges map these to status codes.

use serde::{Deserialize, Serialize};

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The request itself is wrong; the same request will be refused again.
    Client,
    /// The cluster cannot do it now (no quorum, no pipeline, queue full, deadline passed).
    Cluster,
    /// A person must change the deployment (bad file, wrong version, too little memory).
    Operator,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retry {
    Never,
    AfterMs(u64),
}

/// A request that was refused, in words for the one who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// Stable machine-readable word, e.g. `queue_full`, `model_not_found`, `context_length_exceeded`.
    pub code: String,
    pub fault: Fault,
    pub retry: Retry,
    /// The field of the request that is wrong, if one is.
    pub param: Option<String>,
    pub message: String,
}

impl Refusal {
    /// The client's fault, naming the field.
    pub fn client(code: &str, param: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            code: code.to_owned(),
            fault: Fault::Client,
            retry: Retry::Never,
            param: Some(param.to_owned()),
            message: message.into(),
        }
    }

    /// The cluster's fault; a retry after `retry_ms` is safe.
    pub fn cluster(code: &str, retry_ms: u64, message: impl Into<String>) -> Refusal {
        Refusal {
            code: code.to_owned(),
            fault: Fault::Cluster,
            retry: Retry::AfterMs(retry_ms),
            param: None,
            message: message.into(),
        }
    }

    /// The operator's fault; no retry helps until a person changes something.
    pub fn operator(code: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            code: code.to_owned(),
            fault: Fault::Operator,
            retry: Retry::Never,
            param: None,
            message: message.into(),
        }
    }
}
