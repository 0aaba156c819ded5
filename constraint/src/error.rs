//! Why a constraint can't be used, and whose fault it is.
//!
//! Must never show a client the insides of this program: what the library says is cut to a line.

use caravan_core::error::Fault;
use caravan_core::limits;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The text is wrong, or asks for what this build can't enforce. The same text fails again.
    #[error("{0}")]
    Invalid(String),
    /// The text means more work than one request may cause. The same text fails again.
    #[error("the constraint is too complex: {0}; make it smaller or less deeply nested")]
    TooComplex(String),
    /// A bug of this program.
    #[error("the constraint could not be followed, a fault of the server: {0}")]
    Internal(String),
}

impl ConstraintError {
    pub fn fault(&self) -> Fault {
        match self {
            ConstraintError::Invalid(_) | ConstraintError::TooComplex(_) => Fault::Client,
            ConstraintError::Internal(_) => Fault::Operator,
        }
    }

    /// From what the library says of a text it does not take.
    pub(crate) fn of_text(why: &str) -> ConstraintError {
        let shown = line(why);
        const LIMITS: [&str; 7] =
            ["fuel", "too many", "too large", "limit", "too complex", "stack level exceeded", "too big"];
        if why.starts_with("panic") {
            return ConstraintError::Internal(shown);
        }
        let low = shown.to_lowercase();
        match LIMITS.iter().any(|word| low.contains(word)) {
            true => ConstraintError::TooComplex(shown),
            false => ConstraintError::Invalid(shown),
        }
    }
}

/// The first line, without what follows it and not too long.
pub(crate) fn line(why: &str) -> String {
    let why = why.trim();
    let end = why.find("\n<").unwrap_or(why.len());
    let shown: String = why[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    match shown.len() > limits::CONSTRAINT_ERROR_BYTES {
        true => format!("{}…", &shown[..shown.floor_char_boundary(limits::CONSTRAINT_ERROR_BYTES)]),
        false => shown,
    }
}
