//! Bar 8, nodes: a worker of another protocol version, one that claims a lower epoch, a stale edge.
//!
//! Must never be mistaken for a worker that computes: these peers only talk.

use std::time::Duration;

use caravan_core::limits::PROTOCOL_VERSION;
use caravan_proto::wire::directive::Directive as Told;
use caravan_proto::wire::edge_frame::Frame;
use caravan_proto::wire::fleet_client::FleetClient;
use caravan_proto::wire::stage_client::StageClient;
use caravan_proto::wire::worker_report::Report;
use caravan_proto::wire::{EdgeFrame, EdgeHello, WorkerHello, WorkerReport};
use tokio_stream::StreamExt;

use super::ask::{Question, ask, prose};
use super::harness::{Cluster, Options, wait_for};

fn hello(protocol_version: u32) -> WorkerHello {
    WorkerHello {
        protocol_version,
        worker: "stranger".to_owned(),
        incarnation: 1,
        grpc: "127.0.0.1:1".to_owned(),
        device: "cpu".to_owned(),
        threads: 1,
        memory_bytes: 1 << 30,
        kv_bytes: 1 << 28,
        numerics: "stranger".to_owned(),
        epoch: 0,
    }
}

/// Attaches and returns the first directive that `wanted` accepts.
async fn told(grpc: &str, hello: WorkerHello, wanted: impl Fn(&Told) -> bool) -> Option<Told> {
    let mut client = FleetClient::connect(format!("http://{grpc}")).await.expect("the fleet door");
    let report = WorkerReport { report: Some(Report::Hello(hello)) };
    let reports = tokio_stream::iter([report]).chain(tokio_stream::pending());
    let mut directives = client.attach(reports).await.expect("attached").into_inner();
    let answer = async {
        while let Some(Ok(directive)) = directives.next().await {
            if let Some(directive) = directive.directive.filter(|directive| wanted(directive)) {
                return Some(directive);
            }
        }
        None
    };
    tokio::time::timeout(Duration::from_secs(10), answer).await.expect("told in time")
}

/// Opens an edge of epoch 0 into a worker's stage and gives the refusal.
async fn stale_edge(grpc: &str, pipeline: &str) -> tonic::Status {
    let mut client = StageClient::connect(format!("http://{grpc}")).await.expect("the stage door");
    let hello =
        EdgeHello { protocol_version: PROTOCOL_VERSION, epoch: 0, pipeline: pipeline.to_owned(), stage: 0 };
    let frames = tokio_stream::iter([EdgeFrame { frame: Some(Frame::Hello(hello)) }]);
    match client.edge(frames.chain(tokio_stream::pending())).await {
        Err(status) => status,
        Ok(answer) => answer.into_inner().message().await.expect_err("a stale edge is refused"),
    }
}

#[test]
fn strangers_and_stale_edges_are_refused() {
    let cluster = Cluster::start(Options::new(2, 1));
    let question =
        Question { prompt: prose()[..9].to_vec(), max_tokens: 48, seed: 1, temperature: 0.0, top_p: 1.0 };
    let expected = ask(&cluster.http, &question, |_| {}).expect("undisturbed").answer;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let door = cluster.leader().grpc;

    let refused =
        runtime.block_on(told(&door, hello(PROTOCOL_VERSION + 997), |told| matches!(told, Told::Refused(_))));
    let Some(Told::Refused(refused)) = refused else { panic!("not refused: {refused:?}") };
    let versions = [PROTOCOL_VERSION + 997, PROTOCOL_VERSION].map(|version| format!("version {version}"));
    assert!(versions.iter().all(|version| refused.why.contains(version)), "names both: {}", refused.why);

    let worker = cluster.role("worker")[0].clone();
    let before = cluster.admin("plan");
    let pipeline = before["models"][0]["pipelines"][0]["id"].as_str().expect("a pipeline").to_owned();
    let status = runtime.block_on(stale_edge(&worker.grpc, &pipeline));
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
    wait_for("the refusal to be counted", || {
        let workers = cluster.admin("workers");
        let found = workers.as_array().and_then(|list| list.iter().find(|w| w["id"] == worker.id.as_str()));
        found.is_some_and(|w| w["fenced_messages"].as_u64().is_some_and(|count| count >= 1))
    });

    // A worker with other numerics and an old epoch is told the truth, and never gets into the pipeline.
    let directive =
        runtime.block_on(told(&door, hello(PROTOCOL_VERSION), |told| !matches!(told, Told::Coordinators(_))));
    assert!(matches!(directive, Some(Told::Measure(_) | Told::Assignments(_))), "{directive:?}");
    let answer = ask(&cluster.http, &question, |_| {}).expect("after the strangers").answer;
    assert_eq!(expected, answer);
    let stages = cluster.admin("plan")["models"][0]["pipelines"][0]["stages"].clone();
    assert_eq!(stages, before["models"][0]["pipelines"][0]["stages"], "the stranger has no stage");
}
