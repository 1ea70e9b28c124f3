//! Isolation by connection: a stream of any protocol, with a fork of its own until it ends.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::access_log::{Record, Work};
use crate::answer::Failure;
use crate::arrival::Arrived;
use crate::fork::Ending;
use crate::log::To;
use crate::metrics::{Counted, Outcome};
use crate::peer::Peer;
use crate::pool::{Lease, NotTaken};
use crate::server::{Front, Phase};
use crate::service::Service;
use crate::upgrade::{Moved, relay};
use crate::wire::{FrontEnd, Handle, wire};

/// Time for a fork to say how it ended.
const GRACE: Duration = Duration::from_secs(5);

/// Serves a client with a fork of its own. One for whom there is none is let go without a word: no answer
/// fits all protocols.
pub(crate) async fn serve(
    front: Arc<Front>,
    service: Arc<Service>,
    arrived: Arrived,
    mut phase: watch::Receiver<Phase>,
) {
    let Arrived {
        mut stream, peer, ..
    } = arrived;
    let _counted = Counted::new(&front.metrics.connections);
    let id = front.ids.make();
    let begun = SystemTime::now();
    let record = |outcome, moved: Moved, work| Record {
        program: service.settings.name.clone(),
        peer: peer.to_string(),
        method: "-".to_owned(),
        target: "-".to_owned(),
        version: "-",
        begun,
        status: 0,
        bytes: moved.to_client,
        id: id.clone(),
        outcome,
        work,
    };
    let (outcome, moved, work) = match begin(&front, &service, peer, &id).await {
        None => {
            let _ = stream.shutdown().await;
            (Outcome::Full, Moved::default(), None)
        }
        Some(mut begun) => {
            // A client that is slow to take the end is not waited for.
            let ended = phase.wait_for(|phase| *phase == Phase::Ended);
            let moved = tokio::select! {
                moved = relay(&mut stream, begun.front_end, service.settings.idle_timeout) => moved,
                _ = ended => Moved::default(),
            };
            begun.handle.finish();
            let outcome = match tokio::time::timeout(GRACE, begun.lease.ended).await {
                Ok(Ok(ended)) => {
                    begun.work.ran = ended.ran;
                    match ended.ending {
                        Ending::Done => Outcome::Ok,
                        ending => Failure::of_ending(&ending).outcome,
                    }
                }
                _ => Outcome::Error,
            };
            let _ = tokio::time::timeout(GRACE, stream.shutdown()).await;
            if let Ok(Ok(reset)) = tokio::time::timeout(GRACE, begun.lease.reset).await {
                begun.work.reset = Some(reset);
            }
            (outcome, moved, Some(begun.work))
        }
    };
    service.metrics.count(outcome);
    if let Some(line) = front
        .settings
        .access_log
        .line(&record(outcome, moved, work))
    {
        front.log.line(To::Stdout, line);
    }
}

struct Begun {
    front_end: FrontEnd,
    handle: Handle,
    lease: Rest,
    work: Work,
}

struct Rest {
    ended: tokio::sync::oneshot::Receiver<crate::pool::Ended>,
    reset: tokio::sync::oneshot::Receiver<(Duration, u64)>,
}

/// Waits for a fork; `None` if there is none in time.
async fn begin(front: &Front, service: &Service, peer: Peer, id: &str) -> Option<Begun> {
    let (front_end, handle, mut program_end) = wire(None, peer.address());
    let lease = loop {
        match service.pool()?.submit(program_end, id) {
            Ok(lease) => break lease,
            Err((NotTaken::Full, _)) => return None,
            // Another pool takes the place of one that is closed, before that is.
            Err((NotTaken::Closed, wire)) if !front.is_ending() => program_end = wire,
            Err((NotTaken::Closed, _)) => return None,
        }
    };
    let Lease {
        started,
        ended,
        reset,
    } = lease;
    // One that has no fork by then is given up.
    let patience = service.settings.timeout;
    let started = tokio::time::timeout(patience, started).await.ok()?.ok()?;
    if let Some(timeout) = service.settings.connection_timeout {
        handle.set_deadline(Instant::now().checked_add(timeout));
    }
    Some(Begun {
        front_end,
        handle,
        lease: Rest { ended, reset },
        work: Work {
            fork: started.fork,
            queued: started.queued,
            ..Work::default()
        },
    })
}
