//! A client that has connected, up to the first byte of its protocol: who it is, and its handshake.

use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

use crate::metrics::{Counted, Handshake};
use crate::peer::{Peer, TrustedProxies};
use crate::proxy_header::{self, NoHeader};
use crate::server::Front;
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

/// Has the client say who it is, and do its handshake; `None` for one that does not in time.
pub(crate) async fn arrive(front: &Front, stream: Stream, peer: Peer) -> Option<Arrived> {
    let settings = &front.settings;
    let until = Instant::now() + settings.header_timeout;
    // Streams of other protocols have a limit of their own.
    let stall_max = (front.of_streams().is_none()).then_some(settings.header_timeout);
    let mut socket = Socket::new(stream, stall_max);
    let mut caller = Caller {
        peer,
        is_trusted: settings.trusted_proxies.contains(peer),
    };
    if settings.proxy_protocol && caller.is_trusted {
        match timeout_at(until, told(&mut socket)).await {
            Ok(Ok(client)) => caller = caller.of(client, &settings.trusted_proxies),
            // A look if somebody listens.
            Ok(Err(Untold::Silent)) => return None,
            Ok(Err(Untold::NoHeader)) | Err(_) => {
                let refused = &front.metrics.proxy_headers_refused;
                refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        }
    }
    let (stream, scheme) = match &settings.tls {
        None => (Either::Left(socket), "http"),
        Some(tls) => {
            let _counted = Counted::new(&front.metrics.handshakes_open);
            let (outcome, secured) = match timeout_at(until, tls.accept(socket)).await {
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
        peer: caller.peer,
        is_trusted: caller.is_trusted,
        scheme,
    })
}

/// Who asks, and if it may say for whom.
#[derive(Clone, Copy)]
struct Caller {
    peer: Peer,
    is_trusted: bool,
}

impl Caller {
    /// The client that a proxy of streams names. The bytes are the client's and not the proxy's, which has not read
    /// them: a client that it does not name is trusted in nothing.
    fn of(self, client: Option<Peer>, trusted: &TrustedProxies) -> Self {
        match client {
            Some(peer @ Peer::Inet(_)) => Self {
                peer,
                is_trusted: trusted.contains(peer),
            },
            Some(Peer::Unix) => Self {
                peer: Peer::Unix,
                is_trusted: false,
            },
            None => Self {
                is_trusted: false,
                ..self
            },
        }
    }
}

/// The reason that a proxy has named nobody.
enum Untold {
    Silent,
    NoHeader,
}

/// The client that a proxy of streams names in its header, which is taken away.
async fn told(socket: &mut Socket<Stream>) -> Result<Option<Peer>, Untold> {
    loop {
        match proxy_header::parse(socket.ahead()) {
            Ok(Some(header)) => {
                socket.skip(header.length_bytes);
                return Ok(header.client);
            }
            Ok(None) => {}
            Err(NoHeader) => return Err(Untold::NoHeader),
        }
        match socket.look(proxy_header::BYTES_MAX).await {
            Ok(1..) => {}
            _ if socket.ahead().is_empty() => return Err(Untold::Silent),
            _ => return Err(Untold::NoHeader),
        }
    }
}
