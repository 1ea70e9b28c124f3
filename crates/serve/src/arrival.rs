//! A client that has connected, up to the first byte of its protocol: its handshake.

use tokio_util::either::Either;

use crate::metrics::{Counted, Handshake};
use crate::peer::Peer;
use crate::server::{Front, Isolate};
use crate::socket::{Socket, Stream};
use crate::tls::Secured;

/// The stream of a client, as its protocol sees it.
pub(crate) type ClientStream = Either<Socket<Stream>, Box<Secured>>;

/// A client whose protocol begins.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) stream: ClientStream,
    pub(crate) peer: Peer,
    /// It may say for whom it asks.
    pub(crate) is_trusted: bool,
    /// The scheme by which it asks: `http` or `https`.
    pub(crate) scheme: &'static str,
}

/// Has the client do its handshake; `None` for one that does not in time.
pub(crate) async fn arrive(front: &Front, stream: Stream, peer: Peer) -> Option<Arrived> {
    let settings = &front.settings;
    // Streams of other protocols have a limit of their own.
    let stall_max = (settings.isolate != Isolate::Connection).then_some(settings.header_timeout);
    let socket = Socket::new(stream, stall_max);
    let is_trusted = settings.trusted_proxies.contains(peer);
    let (stream, scheme) = match &settings.tls {
        None => (Either::Left(socket), "http"),
        Some(tls) => {
            let _counted = Counted::new(&front.metrics.handshakes_open);
            let handshake = tokio::time::timeout(settings.header_timeout, tls.accept(socket));
            let (outcome, secured) = match handshake.await {
                Ok(Ok(secured)) => (Handshake::Ok, Some(secured)),
                Ok(Err(outcome)) => (outcome, None),
                Err(_) => (Handshake::TimedOut, None),
            };
            front.metrics.count_handshake(outcome);
            (Either::Right(Box::new(secured?)), "https")
        }
    };
    Some(Arrived {
        stream,
        peer,
        is_trusted,
        scheme,
    })
}
