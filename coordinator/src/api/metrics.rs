//! `/metrics` in the Prometheus text format.
//!
//! Must never put anything of a request (ids, models asked for, prompts) into a label: labels are few.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::App;
use super::errors::{ApiError, internal};
use super::views::worker_state;
use crate::consensus::Role;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;

/// Seconds to the first token: from a warm small model to a long queue.
const FIRST_TOKEN_BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// What handlers count as they go.
#[derive(Clone)]
pub struct Metrics {
    pub tokens: Counter,
    pub prompt_tokens: Counter,
    pub first_token_seconds: Histogram,
    http: Family<Labels, Counter>,
    in_flight: Gauge,
    scraped: Arc<Mutex<Scraped>>,
}

/// What is read from the other parts when someone asks.
struct Scraped {
    registry: Registry,
    requests: Gauge,
    pipelines: Gauges,
    consensus: Gauges,
    epoch: Gauge,
    workers: Gauges,
    ready: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("caravan");
        let tokens = Counter::default();
        let prompt_tokens = Counter::default();
        let first_token_seconds = Histogram::new(FIRST_TOKEN_BUCKETS);
        let http = Family::default();
        let in_flight = Gauge::default();
        registry.register("tokens_emitted", "Tokens given to clients of this coordinator", tokens.clone());
        registry.register("prompt_tokens", "Prompt tokens of accepted requests", prompt_tokens.clone());
        let help = "From acceptance to the first token of a request";
        registry.register("first_token_seconds", help, first_token_seconds.clone());
        registry.register("http_requests", "Requests by route and status", http.clone());
        registry.register("http_in_flight", "Requests whose answer has not begun", in_flight.clone());
        let scraped = Arc::new(Mutex::new(Scraped::new(registry)));
        Metrics { tokens, prompt_tokens, first_token_seconds, http, in_flight, scraped }
    }
}

impl Scraped {
    fn new(mut registry: Registry) -> Scraped {
        let (requests, epoch, ready) = (Gauge::default(), Gauge::default(), Gauge::default());
        let (pipelines, consensus, workers) = (Gauges::default(), Gauges::default(), Gauges::default());
        registry.register("requests_serving", "Completions being answered here", requests.clone());
        let help = "Pipelines driven here, by pipeline and what is counted";
        registry.register("pipeline", help, pipelines.clone());
        let help = "This coordinator's consensus: term, applied, leader (its id, 0 if none), leading";
        registry.register("consensus", help, consensus.clone());
        registry.register("epoch", "Epoch of the applied plan", epoch.clone());
        registry.register("workers", "Workers by state", workers.clone());
        registry.register("ready", "1 if the cluster answers", ready.clone());
        Scraped { registry, requests, pipelines, consensus, epoch, workers, ready }
    }

    fn read(&self, app: &App) {
        self.requests.set(whole(app.requests.len() as u64));
        self.pipelines.clear();
        for (id, stats) in app.backend.stats() {
            let set = |what: &str, value: u64| {
                let labels = vec![("pipeline", id.0.clone()), ("what", what.to_owned())];
                self.pipelines.get_or_create(&labels).set(whole(value));
            };
            set("running", stats.running as u64);
            set("waiting", stats.waiting as u64);
            set("free_pages", u64::from(stats.free_pages));
            set("pages", u64::from(stats.pages));
            set("steps_in_flight", stats.steps_in_flight as u64);
            set("tokens_total", stats.tokens_total);
            set("prefill_tokens_total", stats.prefill_tokens_total);
            set("tokens_per_s", stats.tokens_per_s.max(0.0) as u64);
        }
        let status = app.backend.status().borrow().clone();
        let set = |what: &str, value: u64| {
            self.consensus.get_or_create(&vec![("what", what.to_owned())]).set(whole(value));
        };
        set("term", status.term);
        set("applied", status.applied);
        set("leader", status.leader.map_or(0, |leader| leader.0));
        set("leading", u64::from(status.role == Role::Leader));
        let state = app.state();
        self.epoch.set(whole(state.plan.epoch.0));
        self.workers.clear();
        for worker in state.workers.values() {
            let labels = vec![("state", worker_state(worker.state).to_owned())];
            self.workers.get_or_create(&labels).inc();
        }
        self.ready.set(i64::from(super::health::readiness(&*app.backend).ready));
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The route a path belongs to; all that are not ours share one label.
fn route(path: &str) -> &'static str {
    const ROUTES: [&str; 10] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/admin/v1/cluster",
        "/admin/v1/plan/rebalance",
        "/admin/v1/plan",
        "/admin/v1/requests",
        "/admin/v1/events",
        "/livez",
        "/readyz",
        "/metrics",
    ];
    match ROUTES.iter().find(|route| **route == path) {
        Some(route) => route,
        None if path.starts_with("/v1/models") => "/v1/models",
        None if path.starts_with("/admin/v1/keys") => "/admin/v1/keys",
        None if path.starts_with("/admin/v1/workers") => "/admin/v1/workers",
        None => "other",
    }
}

struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts every request.
pub async fn track(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = route(request.uri().path());
    app.metrics.in_flight.inc();
    let guard = InFlight(app.metrics.in_flight.clone());
    let response = next.run(request).await;
    drop(guard);
    let labels = vec![("route", route.to_owned()), ("status", response.status().as_u16().to_string())];
    app.metrics.http.get_or_create(&labels).inc();
    response
}

pub async fn scrape(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut text = String::new();
    {
        // One scrape at a time: reading clears and fills the gauges.
        let scraped = app.metrics.scraped.lock().unwrap_or_else(PoisonError::into_inner);
        scraped.read(&app);
        encode(&mut text, &scraped.registry).map_err(|_| internal("writing the metrics failed"))?;
    }
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::OK;
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
