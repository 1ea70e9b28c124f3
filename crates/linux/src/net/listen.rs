//! Connections that come in: taking them, and making room for others.

use kvmlet_abi::Errno;

use super::{Link, Shut, inet};
use crate::cx::Cx;
use crate::id::ObjectId;
use crate::outcome::Source;

/// The effect of an attempt to accept a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// This one.
    Now(ObjectId),
    /// There is none yet.
    NotYet,
    /// There is none, and none will come.
    Never,
}

/// Takes the oldest connection that nobody has accepted.
///
/// # Errors
/// `EOPNOTSUPP` for datagrams; `EINVAL` if it does not listen.
pub fn accept(cx: &mut Cx<'_>, id: ObjectId) -> Result<Accepted, Errno> {
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    if !socket.kind.is_connection() {
        return Err(Errno::EOPNOTSUPP);
    }
    let Link::Listening(listener) = &mut socket.link else {
        return Err(Errno::EINVAL);
    };
    let Some(accepted) = listener.pending.pop_front() else {
        return Ok(match socket.shut.contains(Shut::RECEIVE) {
            true => Accepted::Never,
            false => Accepted::NotYet,
        });
    };
    let waiting = listener.waiting.pop_front();
    cx.kernel.objects.sockets.get_mut(accepted)?.is_pending = false;
    if let Some(waiting) = waiting {
        inet::admit(cx, waiting, id);
    }
    // Those that wait for room on it.
    cx.kernel.sched.wake_source(Source::Object(id));
    Ok(Accepted::Now(accepted))
}
