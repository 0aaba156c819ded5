//! A fake coordinator: Fleet, Driver and Blobs on one loopback server, all scripted by the test.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caravan_core::limits;
use caravan_core::model::TensorSpec;
use caravan_proto::wire;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use wire::directive::Directive as Order;
use wire::worker_report::Report;

/// What the fake does with a worker that attaches.
#[derive(Clone, Debug)]
pub enum Mode {
    Lead,
    Redirect(String),
    Refuse(String),
}

/// How the fake serves blobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Serve {
    Right,
    /// Breaks off after this many bytes.
    BreakAfter(usize),
    /// Right length, one bit wrong.
    Damaged,
}

pub struct Shared {
    mode: Mutex<Mode>,
    reports: mpsc::UnboundedSender<(String, Report)>,
    directives: Mutex<BTreeMap<String, mpsc::Sender<Result<wire::Directive, Status>>>>,
    results: mpsc::UnboundedSender<Option<wire::StepResult>>,
    blobs: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    serve: Mutex<Serve>,
    /// (offset asked for) of each fetch.
    pub fetches: Mutex<Vec<u64>>,
    pub sessions: AtomicUsize,
}

pub struct Coordinator {
    pub addr: String,
    pub shared: Arc<Shared>,
    pub reports: mpsc::UnboundedReceiver<(String, Report)>,
    /// Results in order; `None` when an edge to the driver ends.
    pub results: mpsc::UnboundedReceiver<Option<wire::StepResult>>,
    /// Of its own, so that its end closes every socket at once, as the death of a process does.
    runtime: Option<Runtime>,
}

#[derive(Clone)]
struct Service(Arc<Shared>);

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A killed fake's address is free as soon as its runtime has wound down.
async fn bind(addr: &str) -> std::net::TcpListener {
    for _ in 0..100 {
        match std::net::TcpListener::bind(addr) {
            Ok(listener) => {
                listener.set_nonblocking(true).unwrap();
                return listener;
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{addr} stays in use");
}

impl Coordinator {
    pub async fn start(mode: Mode) -> Coordinator {
        Coordinator::start_at("127.0.0.1:0", mode).await
    }

    pub async fn start_at(addr: &str, mode: Mode) -> Coordinator {
        let listener = bind(addr).await;
        let addr = listener.local_addr().unwrap().to_string();
        let (reports_in, reports) = mpsc::unbounded_channel();
        let (results_in, results) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            mode: Mutex::new(mode),
            reports: reports_in,
            directives: Mutex::default(),
            results: results_in,
            blobs: Mutex::default(),
            serve: Mutex::new(Serve::Right),
            fetches: Mutex::default(),
            sessions: AtomicUsize::new(0),
        });
        let service = Service(shared.clone());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            Server::builder()
                .add_service(wire::fleet_server::FleetServer::new(service.clone()))
                .add_service(wire::driver_server::DriverServer::new(service.clone()))
                .add_service(wire::blobs_server::BlobsServer::new(service))
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        });
        Coordinator { addr, shared, reports, results, runtime: Some(runtime) }
    }

    /// As `kill -9` does; the address it had.
    pub fn kill(self) -> String {
        self.addr.clone()
    }

    pub fn serve(&self, serve: Serve) {
        *self.shared.serve.lock().unwrap() = serve;
    }

    pub fn put_blob(&self, bytes: &[u8]) {
        let digest = blake3::hash(bytes).as_bytes().to_vec();
        self.shared.blobs.lock().unwrap().insert(digest, bytes.to_vec());
    }

    pub async fn direct(&self, worker: &str, order: Order) {
        let sender = self.shared.directives.lock().unwrap().get(worker).cloned();
        let message = wire::Directive { directive: Some(order) };
        sender.expect("the worker is attached").send(Ok(message)).await.unwrap();
    }

    /// The next report that `pick` wants.
    pub async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&str, Report) -> Option<T>) -> T {
        let search = async {
            loop {
                let (worker, report) = self.reports.recv().await.expect("the fake lives");
                if let Some(found) = pick(&worker, report) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search)
            .await
            .unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    pub async fn hello(&mut self) -> wire::WorkerHello {
        self.wait("a hello", |_, report| match report {
            Report::Hello(hello) => Some(hello),
            _ => None,
        })
        .await
    }

    /// Waits until `worker` reports all its stages of `epoch` to be in `state`.
    pub async fn stage_state(&mut self, worker: &str, epoch: u64, state: &str) -> wire::Heartbeat {
        self.wait(&format!("{worker} {state}"), |from, report| match report {
            Report::Heartbeat(beat)
                if from == worker
                    && beat.epoch == epoch
                    && beat.stages.iter().all(|stage| stage.state == state) =>
            {
                Some(beat)
            }
            _ => None,
        })
        .await
    }

    /// Waits until `worker` says why its stage of `epoch` has no edges any more.
    pub async fn broken(&mut self, worker: &str, epoch: u64) -> (wire::Heartbeat, String) {
        self.wait(&format!("{worker} broken"), |from, report| match report {
            Report::Heartbeat(beat) if from == worker && beat.epoch == epoch => {
                let stage = beat.stages.iter().find(|stage| !stage.error.is_empty())?;
                assert_eq!(stage.state, "connecting", "a broken edge is no failure of this worker");
                let why = stage.error.clone();
                Some((beat, why))
            }
            _ => None,
        })
        .await
    }

    pub async fn result(&mut self) -> Option<wire::StepResult> {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, self.results.recv()).await.expect("a result in time").unwrap()
    }
}

#[tonic::async_trait]
impl wire::fleet_server::Fleet for Service {
    type AttachStream = ReceiverStream<Result<wire::Directive, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::WorkerReport>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut reports = request.into_inner();
        let (sender, stream) = mpsc::channel(16);
        let mode = self.0.mode.lock().unwrap().clone();
        let shared = self.0.clone();
        shared.sessions.fetch_add(1, Ordering::SeqCst);
        let answer = match mode {
            Mode::Lead => None,
            Mode::Redirect(grpc) => Some(Order::Redirect(wire::Redirect { grpc })),
            Mode::Refuse(why) => Some(Order::Refused(wire::Refused { why })),
        };
        if let Some(order) = answer {
            sender.send(Ok(wire::Directive { directive: Some(order) })).await.unwrap();
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        tokio::spawn(async move {
            let mut name = String::new();
            while let Ok(Some(wire::WorkerReport { report: Some(report) })) = reports.message().await {
                if let Report::Hello(hello) = &report {
                    name = hello.worker.clone();
                    shared.directives.lock().unwrap().insert(name.clone(), sender.clone());
                }
                let _ = shared.reports.send((name.clone(), report));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl wire::driver_server::Driver for Service {
    type ResultsStream = ReceiverStream<Result<wire::EdgeReady, Status>>;
    type GenerateStream = ReceiverStream<Result<wire::GenerateReply, Status>>;

    async fn results(
        &self,
        request: Request<Streaming<wire::ResultFrame>>,
    ) -> Result<Response<Self::ResultsStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.frame);
        let Some(wire::result_frame::Frame::Hello(hello)) = first else { panic!("no hello") };
        assert_eq!(hello.protocol_version, limits::PROTOCOL_VERSION);
        let (sender, stream) = mpsc::channel(1);
        sender.send(Ok(wire::EdgeReady { epoch: hello.epoch })).await.unwrap();
        let results = self.0.results.clone();
        tokio::spawn(async move {
            while let Ok(Some(wire::ResultFrame { frame: Some(frame) })) = frames.message().await {
                let wire::result_frame::Frame::Result(result) = frame else { panic!("a second hello") };
                let _ = results.send(Some(result));
            }
            let _ = results.send(None);
            drop(sender);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn generate(
        &self,
        _request: Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }
}

#[tonic::async_trait]
impl wire::blobs_server::Blobs for Service {
    type FetchStream = ReceiverStream<Result<wire::BlobChunk, Status>>;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let blob = self.0.blobs.lock().unwrap().get(&request.digest.to_vec()).cloned();
        let mut blob = blob.ok_or_else(|| Status::not_found("no such blob"))?;
        self.0.fetches.lock().unwrap().push(request.offset);
        let serve = *self.0.serve.lock().unwrap();
        if serve == Serve::Damaged {
            *blob.last_mut().unwrap() ^= 1;
        }
        let (sender, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut sent = 0;
            for chunk in blob[request.offset as usize..].chunks(1000) {
                if matches!(serve, Serve::BreakAfter(bytes) if sent >= bytes) {
                    let _ = sender.send(Err(Status::unavailable("the fake breaks off"))).await;
                    return;
                }
                sent += chunk.len();
                let chunk = wire::BlobChunk { data: chunk.to_vec().into() };
                if sender.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The assignment of one stage of the model `m` with one layer a stage.
pub fn assignment(
    stage: u32,
    stages: u32,
    next: &str,
    driver: &str,
    tensors: &[TensorSpec],
) -> wire::Assignment {
    wire::Assignment {
        pipeline: "m/0".to_owned(),
        model: "m".to_owned(),
        config: caravan_proto::pack(&crate::fake::config(stages)).unwrap(),
        tensors: caravan_proto::pack(&tensors.to_vec()).unwrap(),
        first: stage,
        end: stage + 1,
        kv_pages: 8,
        page_tokens: 32,
        stage,
        stages,
        next: next.to_owned(),
        driver: driver.to_owned(),
        sources: vec![driver.to_owned()],
        header: Vec::new().into(),
        header_bytes: 0,
    }
}
