//! When a node must stop: SIGINT, SIGTERM, or the end of its standard input.
//!
//! Must never kill other processes: whoever started them stops them by handle.

use std::future::Future;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How long a node may take to stop once it was asked to.
const STOP_MS: u64 = 10_000;
/// How long blocking work that outlives the node may hold up the end of the process.
const LINGER_MS: u64 = 500;

/// SIGINT and SIGTERM, caught from the moment this is made.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Needs a running tokio runtime.
    pub fn catch() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Resolves at the next of the two, with its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Runs a node until it ends by itself or is asked to stop. `stdin` says that the end of standard
/// input asks too: `caravan up` holds the other end of that pipe, so its children stop even if it is
/// killed with no chance to stop them.
pub fn run_node<Start, Node>(threads: usize, stdin: bool, start: Start) -> anyhow::Result<()>
where
    Start: FnOnce(oneshot::Receiver<()>) -> Node,
    Node: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("can't start the async runtime")?;
    let result = runtime.block_on(async {
        let signals = Signals::catch()?;
        let (ask, asked) = oneshot::channel();
        tokio::select! {
            result = start(asked) => result,
            late = stop_after(signals, stdin, ask) => late,
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(LINGER_MS));
    result
}

/// Waits for a reason to stop, passes it on, and fails if the node is still there much later.
async fn stop_after(mut signals: Signals, stdin: bool, ask: oneshot::Sender<()>) -> anyhow::Result<()> {
    let reason = if stdin {
        tokio::select! {
            name = signals.next() => name,
            () = stdin_ended() => "the end of standard input",
        }
    } else {
        signals.next().await
    };
    tracing::info!(reason, "stopping");
    // The node may have dropped its end, and then ends by itself.
    let _ = ask.send(());
    tokio::time::sleep(Duration::from_millis(STOP_MS)).await;
    bail!("asked to stop by {reason}, but not done after {} s", STOP_MS / 1000);
}

/// Resolves when standard input ends. A thread of its own: a blocked read can't be cancelled, and
/// must not hold up the runtime's end.
async fn stdin_ended() {
    let (done, ended) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut scrap = [0u8; 256];
        let mut input = std::io::stdin().lock();
        while matches!(input.read(&mut scrap), Ok(count) if count > 0) {}
        drop(done);
    });
    let _ = ended.await;
}
