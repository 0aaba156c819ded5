//! The HTTP front door: /v1, /admin/v1, health and metrics.

use caravan_core::ids::CoordinatorId;

use crate::consensus::Consensus;
use crate::driver::Drivers;
use crate::fleet::Fleet;
use crate::generate::Generator;
use crate::model_files::ModelFiles;

/// What the handlers need; made by `node`.
#[derive(Clone)]
pub struct ApiParts {
    pub me: CoordinatorId,
    pub consensus: Consensus,
    pub drivers: Drivers,
    pub fleet: Fleet,
    pub generator: Generator,
    pub models: ModelFiles,
    /// Model used when... never: a request names its model; this one is only listed first.
    pub default_model: Option<String>,
}

pub fn router(_parts: ApiParts) -> axum::Router {
    todo!()
}
