//! The workers' door: one stream each, reports in and directives out.
//!
//! Must never act on a report: it goes to the machine, in order, and the queue makes streams wait.

use std::time::Duration;

use caravan_core::limits;
use caravan_proto::wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Fleet;
use super::machine::{Connection, Event};
use super::run::Link;
use crate::consensus::Role;

type Directives = ReceiverStream<Result<wire::Directive, Status>>;

#[tonic::async_trait]
impl wire::fleet_server::Fleet for Fleet {
    type AttachStream = Directives;

    async fn attach(
        &self,
        request: Request<Streaming<wire::WorkerReport>>,
    ) -> Result<Response<Directives>, Status> {
        let reports = request.into_inner();
        let (directives, answers) = mpsc::channel(limits::FLEET_DIRECTIVES);
        if !self.leads_soon().await {
            let redirect = wire::Redirect { grpc: self.shared.leader_grpc() };
            let directive = Some(wire::directive::Directive::Redirect(redirect));
            // The channel is new and has room.
            let _ = directives.try_send(Ok(wire::Directive { directive }));
            return Ok(Response::new(ReceiverStream::new(answers)));
        }
        let (reader, stop) = oneshot::channel();
        let link = Link { directives: directives.clone(), _reader: reader };
        let Some(connection) = self.shared.links().add(link) else {
            return Err(Status::resource_exhausted("too many workers are connected; try again later"));
        };
        let fleet = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                // The link was dropped: the machine wants this stream closed.
                _ = stop => {}
                ended = fleet.read(connection, reports) => {
                    if let Err(why) = ended {
                        let refused = wire::directive::Directive::Refused(wire::Refused { why });
                        // A worker that does not read gets no reason.
                        let _ = directives.try_send(Ok(wire::Directive { directive: Some(refused) }));
                    }
                }
            }
            fleet.shared.links().remove(connection);
            // The receiver is gone only when the process ends.
            let _ = fleet.events.send(Event::Detached { connection }).await;
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

impl Fleet {
    /// Whether this coordinator leads; a leader that is still catching up with the log is waited for.
    async fn leads_soon(&self) -> bool {
        if self.shared.status().role != Role::Leader {
            return false;
        }
        let mut leading = self.shared.leading.subscribe();
        let limit = Duration::from_millis(limits::CONNECT_MS);
        matches!(timeout(limit, leading.wait_for(|leading| *leading)).await, Ok(Ok(_)))
    }

    /// Passes on what a worker reports, until its stream ends. An error is what it did wrong.
    async fn read(
        &self,
        connection: Connection,
        mut reports: Streaming<wire::WorkerReport>,
    ) -> Result<(), String> {
        use wire::worker_report::Report;
        let limit = Duration::from_millis(limits::HELLO_MS);
        let Ok(first) = timeout(limit, reports.message()).await else {
            // A paused or starved process, most likely: it may try again.
            return Ok(());
        };
        match first.ok().flatten() {
            Some(wire::WorkerReport { report: Some(Report::Hello(hello)) }) => {
                self.tell(Event::Hello { connection, hello }).await;
            }
            Some(_) => return Err("the first report has to be a hello; run the same build".to_owned()),
            None => return Ok(()),
        }
        while let Ok(Some(report)) = reports.message().await {
            match report.report {
                Some(Report::Heartbeat(heartbeat)) => {
                    self.tell(Event::Heartbeat { connection, heartbeat }).await;
                }
                Some(Report::Measured(measured)) => self.tell(Event::Measured { connection, measured }).await,
                Some(Report::Hello(_)) => return Err("a second hello on one stream".to_owned()),
                // A kind of report that this build does not know.
                None => {}
            }
        }
        Ok(())
    }

    async fn tell(&self, event: Event) {
        // The receiver is gone only when the process ends.
        let _ = self.events.send(event).await;
    }
}
