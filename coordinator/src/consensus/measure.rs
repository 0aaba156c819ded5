//! How fast the store is: a group of coordinators in this process, on real files and sockets, under a
//! load of responses that are accepted and answered.
//!
//! Must never touch a cluster that serves: it makes its own, in a folder of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use caravan_core::ids::CoordinatorId;
use caravan_core::journal::{Entry, Tokens, TurnEnd};
use caravan_core::store::{Accept, Body, Item, Kind, Order, Owner, StoreCommand, StoreOutcome, Target, read};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use super::{Consensus, ConsensusConfig};

/// What to measure.
#[derive(Clone, Debug)]
pub struct StoreLoad {
    pub coordinators: u64,
    /// Each waits for its commit before it proposes the next.
    pub clients: u64,
    /// Responses accepted and answered, two commits each.
    pub responses: u64,
    /// Bytes of each request record, input item and answer.
    pub bytes: usize,
    /// Pages listed, each behind another cursor.
    pub pages: u64,
    /// An empty folder.
    pub folder: PathBuf,
}

/// Times in milliseconds, of every one that was measured.
#[derive(Clone, Debug)]
pub struct StoreFigures {
    pub responses_per_s: f64,
    pub commit_ms: Vec<f64>,
    pub page_ms: Vec<f64>,
    /// From the first process's start until it has read what was acknowledged before the stop.
    pub restart_ms: f64,
    /// Of all coordinators' files together.
    pub file_bytes: u64,
}

/// How long the group may take to have a leader, or to come back.
const START: Duration = Duration::from_secs(60);
const ROWS: usize = 20;

/// Measures, and leaves the files in the folder.
pub async fn measure_store(load: StoreLoad) -> anyhow::Result<StoreFigures> {
    let group = start(&load).await?;
    let started = Instant::now();
    let commit_ms = commit_all(&load, &group).await?;
    let responses_per_s = load.responses as f64 / started.elapsed().as_secs_f64();
    let page_ms = list_pages(&load, &group).await?;
    stop(group).await;
    let begun = Instant::now();
    let group = start(&load).await?;
    for one in &group {
        let found = one.consensus.look(|view| read::list(view, TENANT, Kind::Response, &page(None))).await?;
        if found.is_none_or(|found| found.rows.is_empty()) {
            bail!("a restarted coordinator has lost what was acknowledged");
        }
    }
    let restart_ms = begun.elapsed().as_secs_f64() * 1_000.0;
    stop(group).await;
    let file_bytes = folder_bytes(&load.folder)?;
    Ok(StoreFigures { responses_per_s, commit_ms, page_ms, restart_ms, file_bytes })
}

struct Member {
    consensus: Consensus,
    server: tokio::task::JoinHandle<()>,
}

/// Starts every coordinator and waits until each can read currently.
async fn start(load: &StoreLoad) -> anyhow::Result<Vec<Member>> {
    let mut listeners = Vec::new();
    for _ in 0..load.coordinators {
        listeners.push(TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?);
    }
    let mut peers = BTreeMap::new();
    for (id, listener) in (1..).zip(&listeners) {
        peers.insert(CoordinatorId(id), listener.local_addr()?.to_string());
    }
    let mut group = Vec::new();
    for (id, listener) in (1..).zip(listeners) {
        let data_dir = load.folder.join(format!("coordinator-{id}"));
        let config = ConsensusConfig { me: CoordinatorId(id), data_dir, peers: peers.clone() };
        let consensus = Consensus::start(config).await?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tonic::transport::Server::builder()
            .add_service(consensus.service())
            .serve_with_incoming(incoming);
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "a coordinator of the measurement does not listen");
            }
        });
        group.push(Member { consensus, server });
    }
    for one in &group {
        let ready = async { while one.consensus.linearize().await.is_err() {} };
        tokio::time::timeout(START, ready).await.context("the coordinators found no leader")?;
    }
    Ok(group)
}

async fn stop(group: Vec<Member>) {
    for one in group {
        one.consensus.shutdown().await;
        one.server.abort();
    }
}

const TENANT: &str = "bench";

fn accept(number: u64, bytes: usize) -> StoreCommand {
    let text = || Body::Inline(vec![b'x'; bytes]);
    StoreCommand::AcceptResponse(Box::new(Accept {
        owner: Owner { tenant: TENANT.to_owned(), key: TENANT.to_owned() },
        id: format!("resp_{number:016x}"),
        model: TENANT.to_owned(),
        background: true,
        created_ms: 1 + number,
        previous: None,
        conversation: None,
        record: text(),
        request: Body::Inline(b"{}".to_vec()),
        input: vec![Item { id: format!("msg_in_{number:x}"), body: text() }],
        once: None,
    }))
}

fn answered(number: u64, bytes: usize) -> StoreCommand {
    let tokens = Tokens { prompt: 100, cached: 0, output: 100, reasoning: 0 };
    StoreCommand::Journal {
        target: Target { tenant: TENANT.to_owned(), id: format!("resp_{number:016x}") },
        entry: Entry::ItemComplete { item: 0, tokens, end: Some(TurnEnd::Answered) },
        item: Some(Item { id: format!("msg_out_{number:x}"), body: Body::Inline(vec![b'y'; bytes]) }),
        upload: None,
        now_ms: 2 + number,
    }
}

/// Times of every commit.
async fn commit_all(load: &StoreLoad, group: &[Member]) -> anyhow::Result<Vec<f64>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients: JoinSet<anyhow::Result<Vec<f64>>> = JoinSet::new();
    for client in 0..load.clients {
        let at = (client % load.coordinators) as usize;
        let Some(member) = group.get(at) else { continue };
        let (consensus, next, load) = (member.consensus.clone(), next.clone(), load.clone());
        clients.spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.responses {
                    return Ok(times);
                }
                for command in [accept(number, load.bytes), answered(number, load.bytes)] {
                    let began = Instant::now();
                    match consensus.store(command).await? {
                        StoreOutcome::Done => times.push(began.elapsed().as_secs_f64() * 1_000.0),
                        other => bail!("response {number}: {other:?}"),
                    }
                }
            }
        });
    }
    let mut all = Vec::new();
    while let Some(times) = clients.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}

fn page(after: Option<String>) -> read::Page {
    read::Page { after, order: Order::Descending, limit: ROWS }
}

/// Times of pages with their responses, as a current read of any coordinator.
async fn list_pages(load: &StoreLoad, group: &[Member]) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for number in 0..load.pages {
        // Cursors all over the list.
        let cursor = number.wrapping_mul(0x9e37_79b9) % load.responses.max(1);
        let Some(member) = group.get((number % load.coordinators) as usize) else { continue };
        let began = Instant::now();
        member.consensus.linearize().await?;
        let after = Some(format!("resp_{cursor:016x}"));
        let found = member
            .consensus
            .look(move |view| {
                let Some(found) = read::list(view, TENANT, Kind::Response, &page(after))? else {
                    return Ok(None);
                };
                for id in &found.rows {
                    read::response(view, &Target { tenant: TENANT.to_owned(), id: id.clone() })?;
                }
                Ok(Some(found.rows.len()))
            })
            .await?;
        if found.is_none() {
            bail!("response {cursor} is not in the list");
        }
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(times)
}

fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        bytes += if data.is_dir() { folder_bytes(&entry.path())? } else { data.len() };
    }
    Ok(bytes)
}
