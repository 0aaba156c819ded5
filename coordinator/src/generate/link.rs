//! Ways to the drivers: the local ones by a call, the others over long-lived shared connections.
//!
//! Must never try again by itself: whether and where is the generator's to decide.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caravan_core::cluster::ClusterState;
use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, Epoch};
use caravan_core::limits;
use caravan_core::request::{GenerateEvent, RequestRecord};
use caravan_proto::{pack, unpack, wire};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use wire::driver_client::DriverClient;

use crate::driver::{Drivers, NOT_DRIVER, NOT_READY};

/// Events of one submission. Its end without a last event means that the driver was lost.
pub(super) type Events = Pin<Box<dyn Stream<Item = GenerateEvent> + Send>>;

pub(super) enum Submitted {
    Events(Events),
    Refused(Refusal),
    /// The driver is not there, or does not drive the model (any more, or yet). Says why.
    Lost(String),
}

pub(super) trait Link: Send + Sync + 'static {
    /// Hands a record to a driver. Dropping the events cancels the sequence there.
    fn submit(
        &self,
        driver: CoordinatorId,
        epoch: Epoch,
        record: RequestRecord,
    ) -> BoxFuture<'static, Submitted>;
}

pub(super) struct Links {
    me: CoordinatorId,
    state: watch::Receiver<Arc<ClusterState>>,
    drivers: Drivers,
    /// Connections by coordinator, with the address each leads to. As many as there are coordinators.
    channels: Arc<Mutex<BTreeMap<CoordinatorId, (String, Channel)>>>,
}

impl Links {
    pub(super) fn new(
        me: CoordinatorId,
        state: watch::Receiver<Arc<ClusterState>>,
        drivers: Drivers,
    ) -> Links {
        Links { me, state, drivers, channels: Arc::default() }
    }

    /// The connection to a coordinator, made anew if its address changed.
    fn channel(&self, driver: CoordinatorId) -> Result<Channel, String> {
        let state = self.state.borrow();
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|id, _| state.coordinators.contains_key(id));
        let addr = state.coordinators.get(&driver).map(|coordinator| coordinator.grpc.clone());
        let addr = addr.ok_or_else(|| format!("coordinator {driver} has not said where it is"))?;
        if let Some((_, channel)) = channels.get(&driver).filter(|(known, _)| *known == addr) {
            return Ok(channel.clone());
        }
        let channel = endpoint(&addr).map_err(|error| error.to_string())?.connect_lazy();
        channels.insert(driver, (addr, channel.clone()));
        Ok(channel)
    }
}

fn endpoint(addr: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{addr}"))?
        .connect_timeout(Duration::from_millis(limits::CONNECT_MS))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_millis(limits::DRIVER_KEEPALIVE_MS))
        .keep_alive_timeout(Duration::from_millis(limits::DRIVER_KEEPALIVE_TIMEOUT_MS))
        .keep_alive_while_idle(true))
}

impl Link for Links {
    fn submit(
        &self,
        driver: CoordinatorId,
        epoch: Epoch,
        record: RequestRecord,
    ) -> BoxFuture<'static, Submitted> {
        if driver == self.me {
            let drivers = self.drivers.clone();
            return Box::pin(async move { submit_here(&drivers, record).await });
        }
        match self.channel(driver) {
            Ok(channel) => Box::pin(submit_there(channel, epoch, record)),
            Err(why) => Box::pin(async { Submitted::Lost(why) }),
        }
    }
}

async fn submit_here(drivers: &Drivers, record: RequestRecord) -> Submitted {
    match drivers.submit(record).await {
        Ok(events) => Submitted::Events(Box::pin(ReceiverStream::new(events))),
        Err(refusal) if [NOT_DRIVER, NOT_READY].contains(&refusal.code.as_str()) => {
            Submitted::Lost(refusal.message)
        }
        Err(refusal) => Submitted::Refused(refusal),
    }
}

async fn submit_there(channel: Channel, epoch: Epoch, record: RequestRecord) -> Submitted {
    let record = match pack(&record) {
        Ok(record) => record,
        Err(error) => {
            return Submitted::Refused(Refusal::client("invalid_value", "prompt", error.to_string()));
        }
    };
    let mut client = DriverClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES);
    match client.generate(wire::GenerateRequest { record, epoch: epoch.0 }).await {
        Ok(replies) => Submitted::Events(Box::pin(replies.into_inner().scan((), |(), reply| {
            // The stream ends at what is no event: the driver is lost to us.
            let event = reply.ok().and_then(|reply| unpack(&reply.event, "event").ok());
            std::future::ready(event)
        }))),
        Err(status) => refused_or_lost(&status),
    }
}

/// A record that the other side can't read won't be readable for a second try either.
fn refused_or_lost(status: &Status) -> Submitted {
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => {
            Submitted::Refused(Refusal::operator(
                "version_mismatch",
                format!(
                    "another coordinator does not understand this one: run the same build on every node ({status})"
                ),
            ))
        }
        _ => Submitted::Lost(format!("{}: {}", status.code(), status.message())),
    }
}
