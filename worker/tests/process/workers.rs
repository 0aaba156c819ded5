//! Workers that can be killed: each has a runtime of its own, whose end closes every socket at once.

use std::path::Path;
use std::time::Duration;

use caravan_worker::node::{WorkerConfig, run_with};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::Fake;

pub struct Worker {
    runtime: Option<Runtime>,
    shutdown: Option<oneshot::Sender<()>>,
    outcome: JoinHandle<anyhow::Result<()>>,
}

pub fn config(id: &str, join: &[&str], data_dir: &Path) -> WorkerConfig {
    WorkerConfig {
        id: id.to_owned(),
        join: join.iter().map(|addr| (*addr).to_owned()).collect(),
        listen: "127.0.0.1:0".to_owned(),
        advertise: None,
        data_dir: data_dir.to_owned(),
        threads: 1,
        kv_bytes: 1 << 20,
        throttle: 1.0,
    }
}

impl Worker {
    pub fn start(config: WorkerConfig) -> Worker {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (shutdown, stopped) = oneshot::channel::<()>();
        let outcome = runtime.spawn(run_with(config, || Fake, async {
            let _ = stopped.await;
        }));
        Worker { runtime: Some(runtime), shutdown: Some(shutdown), outcome }
    }

    /// As `kill -9` does: when this returns, its sockets and the lock on its folder are gone.
    pub fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        let end = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5)));
        end.join().unwrap();
    }

    /// Asks it to leave, and gives what `run` returned.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.shutdown.take());
        self.outcome().await
    }

    /// What `run` returned, by itself.
    pub async fn outcome(&mut self) -> anyhow::Result<()> {
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, &mut self.outcome).await.expect("the worker ends in time").unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
