//! Three coordinators whose network breaks, both ways, while many write and read.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use caravan_core::limits;

use super::testkit::{Cluster, Random, SMALL, command, eventually, worker};
use super::{Consensus, Role};

/// One direction of who calls whom. Cut, it swallows bytes and keeps the connections open, as a
/// network does: nobody is told.
struct Way {
    addr: String,
    cut: Arc<AtomicBool>,
}

fn way(to: String) -> Way {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let cut = Arc::new(AtomicBool::new(false));
    let seen = cut.clone();
    std::thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let Ok(onward) = TcpStream::connect(&to) else { continue };
            from.set_nodelay(true).unwrap();
            onward.set_nodelay(true).unwrap();
            let (from_too, onward_too) = (from.try_clone().unwrap(), onward.try_clone().unwrap());
            let cut = (seen.clone(), seen.clone());
            std::thread::spawn(move || pass(from, onward, &cut.0));
            std::thread::spawn(move || pass(onward_too, from_too, &cut.1));
        }
    });
    Way { addr, cut }
}

fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Bytes lost in the middle of a stream would be garbage later: the connection is lost.
        let mut lost = false;
        while cut.load(Ordering::SeqCst) {
            lost = true;
            std::thread::sleep(Duration::from_millis(5));
        }
        if lost || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

struct Net {
    ways: Vec<((u64, u64), Way)>,
}

impl Net {
    fn isolate(&self, id: u64, cut: bool) {
        for ((from, to), way) in &self.ways {
            if *from == id || *to == id {
                way.cut.store(cut, Ordering::SeqCst);
            }
        }
    }
}

fn start() -> (Cluster, Net) {
    let mut cluster = Cluster::new(3, 3, SMALL);
    let mut ways = Vec::new();
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            let way = way(cluster.addresses[&to].clone());
            cluster.detours.insert((from, to), way.addr.clone());
            ways.push(((from, to), way));
        }
    }
    (1..=3).for_each(|id| cluster.start(id));
    (cluster, Net { ways })
}

#[test]
fn a_leader_that_is_cut_off_knows_it_and_comes_back_as_follower() {
    let (cluster, net) = start();
    let old = cluster.leader();
    cluster.node(old).propose(1);
    net.isolate(old, true);
    let cut = Instant::now();
    let node = cluster.node(old);
    eventually("it no longer says that it leads", || node.role() != Role::Leader);
    let silent = cut.elapsed();
    assert!(silent < Duration::from_millis(limits::RAFT_ELECTION_MAX_MS + 500), "{silent:?}");
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    eventually("another one leads", || others.iter().any(|id| cluster.node(*id).role() == Role::Leader));
    println!("cut off: silent after {silent:?}, another one leads after {:?}", cut.elapsed());
    cluster.node(others[0]).propose(2);
    // Neither a write nor a read that claims to be current.
    assert_eq!(node.run(node.consensus().propose(command(3))).unwrap_err().code, "no_quorum");
    assert_eq!(node.run(node.consensus().linearize()).unwrap_err().code, "no_quorum");
    assert!(!node.has(2));
    net.isolate(old, false);
    eventually("it follows again and has all", || node.role() == Role::Follower && node.has(2));
    node.propose(4);
}

/// What the writers were promised so far.
#[derive(Default)]
struct Promises {
    acknowledged: Mutex<Vec<u64>>,
    next: AtomicU64,
    reads: AtomicU64,
    refused: AtomicU64,
}

async fn write(consensus: Consensus, promises: Arc<Promises>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let number = promises.next.fetch_add(1, Ordering::SeqCst);
        if number >= limits::WORKERS as u64 {
            return;
        }
        match consensus.propose(command(number)).await {
            Ok(_) => promises.acknowledged.lock().unwrap().push(number),
            Err(refusal) => {
                assert_eq!(refusal.code, "no_quorum");
                promises.refused.fetch_add(1, Ordering::SeqCst);
            }
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

async fn read(consensus: Consensus, promises: Arc<Promises>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let before = promises.acknowledged.lock().unwrap().clone();
        if consensus.linearize().await.is_ok() {
            let state = consensus.state().borrow().clone();
            for number in before {
                assert!(state.workers.contains_key(&worker(number)), "a current read lacks {number}");
            }
            promises.reads.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_missed_by_a_read_while_the_network_breaks() {
    let (cluster, net) = start();
    cluster.leader();
    let (promises, stop) = (Arc::new(Promises::default()), Arc::new(AtomicBool::new(false)));
    let mut tasks = Vec::new();
    for node in cluster.nodes.values() {
        let spawn = |consensus: &Consensus| {
            let (a, b, c) = (consensus.clone(), promises.clone(), stop.clone());
            (a, b, c)
        };
        let (a, b, c) = spawn(node.consensus());
        tasks.push(node.spawn(write(a, b, c)));
        let (a, b, c) = spawn(node.consensus());
        tasks.push(node.spawn(read(a, b, c)));
    }
    let mut random = Random(0x5eed);
    for _ in 0..6 {
        let victim = match random.below(2) {
            0 => cluster.nodes.iter().find(|(_, node)| node.role() == Role::Leader).map_or(1, |(id, _)| *id),
            _ => 1 + random.below(3),
        };
        net.isolate(victim, true);
        std::thread::sleep(Duration::from_millis(300 + random.below(2_000)));
        net.isolate(victim, false);
        std::thread::sleep(Duration::from_millis(random.below(1_500)));
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        cluster.node(1).run(task).unwrap();
    }
    let acknowledged = promises.acknowledged.lock().unwrap().clone();
    println!(
        "{} acknowledged, {} refused, {} current reads",
        acknowledged.len(),
        promises.refused.load(Ordering::SeqCst),
        promises.reads.load(Ordering::SeqCst)
    );
    assert!(acknowledged.len() > 20);
    assert!(promises.reads.load(Ordering::SeqCst) > 20);
    for node in cluster.nodes.values() {
        node.run(node.consensus().linearize()).unwrap();
        assert!(acknowledged.iter().all(|number| node.has(*number)));
    }
    let states: Vec<_> =
        cluster.nodes.values().map(|node| node.consensus().state().borrow().clone()).collect();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "the states differ");
}
