//! Names of AF_UNIX sockets, and connections between them (unix(7)).

use std::sync::Arc;

use kvmlet_abi::Errno;
use kvmlet_hostfs::attr::{MAY_WRITE, S_IFSOCK};

use super::outside;
use super::{BACKLOG_MAX, Credentials, Family, Link, Listener, Name, Shut, Socket, SocketKind};
use crate::cx::Cx;
use crate::fd::FileKind;
use crate::id::{FileId, InodeId, ObjectId};
use crate::outcome::Source;
use crate::report::Remedy;
use crate::vfs::file::{self, Contents};
use crate::vfs::notify;
use crate::vfs::open::{IsDir, new_attr, writable_directory};
use crate::vfs::path::{self, Found, Intent, Last, Node, Request, Resolve, Walked};
use crate::vfs::ready::{POLLIN, POLLRDNORM};
use crate::vfs::tmpfs::{NewAttr, NewBody};
use crate::vfs::{self, attr_of, hosttree};
use kvmlet_abi::linux::fcntl::AT_FDCWD;

/// Names that a socket may be given by itself: five hexadecimal digits.
const AUTOBIND_NAMES: u32 = 1 << 20;

/// An address as a call gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A path, without its NUL.
    Path(Vec<u8>),
    /// An abstract name, which begins with a NUL.
    Abstract(Arc<[u8]>),
}

impl Address {
    /// sun_path, a path with its NUL.
    fn bytes(&self) -> Arc<[u8]> {
        match self {
            Self::Path(path) => Arc::from([path, b"\0".as_slice()].concat()),
            Self::Abstract(name) => Arc::clone(name),
        }
    }
}

/// A socket's number, and the kind of it that an address must lead to.
type Seeker = (ObjectId, SocketKind);

/// Binds a socket to an address.
///
/// # Errors
/// `EADDRINUSE`; `EINVAL` for one that has a name already; as mknod(2) for a path; `ENOMEM`.
pub fn bind(cx: &mut Cx<'_>, id: ObjectId, address: &Address) -> Result<(), Errno> {
    let socket = cx.kernel.objects.sockets.get(id)?;
    let (is_bound, kind) = (socket.name.is_some(), socket.kind);
    match address {
        Address::Path(path) => bind_path(cx, id, path, is_bound),
        Address::Abstract(_) if is_bound => Err(Errno::EINVAL),
        Address::Abstract(name) => {
            let key = (kind, Arc::clone(name));
            if cx.kernel.objects.sockets.abstract_names.contains_key(&key) {
                return Err(Errno::EADDRINUSE);
            }
            name_socket(cx, (id, kind), name)
        }
    }
}

fn name_socket(cx: &mut Cx<'_>, (id, kind): Seeker, name: &Arc<[u8]>) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    sockets.get_mut(id)?.name = Some(Name::Unix(Arc::clone(name)));
    sockets.abstract_names.insert((kind, Arc::clone(name)), id);
    Ok(())
}

/// Gives a socket a name that nobody has, unless it has one.
///
/// # Errors
/// `ENOSPC` if all are taken.
pub fn autobind(cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get(id)?;
    if socket.name.is_some() {
        return Ok(());
    }
    let kind = socket.kind;
    // One more than there are names in use finds a free one.
    let tries = sockets.abstract_names.len().saturating_add(1);
    for _ in 0..tries.min(AUTOBIND_NAMES as usize) {
        let number = sockets.next_autobind;
        sockets.next_autobind = number.wrapping_add(1) % AUTOBIND_NAMES;
        let name: Arc<[u8]> = Arc::from(format!("\0{number:05x}").into_bytes());
        if !sockets
            .abstract_names
            .contains_key(&(kind, Arc::clone(&name)))
        {
            return name_socket(cx, (id, kind), &name);
        }
    }
    Err(Errno::ENOSPC)
}

/// Gives a socket that is about to send a name, if its receiver is to see who it is (SO_PASSCRED).
///
/// # Errors
/// As [`autobind`].
pub fn autobind_if_asked(cx: &mut Cx<'_>, id: ObjectId) -> Result<(), Errno> {
    let socket = cx.kernel.objects.sockets.get(id)?;
    if socket.family == Family::Unix && socket.options.passes_credentials() {
        autobind(cx, id)?;
    }
    Ok(())
}

fn bind_path(cx: &mut Cx<'_>, id: ObjectId, path: &[u8], is_bound: bool) -> Result<(), Errno> {
    let call = "bind";
    let missing = match walk(cx, call, path, (Last::CreateExclusive, Intent::Write)) {
        Ok(Walked::Missing(missing)) if missing.slash => return Err(Errno::ENOENT),
        Ok(Walked::Missing(missing)) => missing,
        Ok(Walked::Found(_)) | Err(Errno::EEXIST) => return Err(Errno::EADDRINUSE),
        Err(error) => return Err(error),
    };
    let mode = cx.kernel.objects.sockets.get(id)?.mode;
    let name = Name::Unix(Arc::from([path, b"\0"].concat()));
    if hosttree::holds(cx.host, &missing.dir) {
        if is_bound {
            return Err(Errno::EINVAL);
        }
        let made = hosttree::make_socket(cx, call, &missing, (mode, Some(id)));
        let place = made.map_err(|error| match error {
            Errno::EEXIST => Errno::EADDRINUSE,
            other => other,
        })?;
        let socket = cx.kernel.objects.sockets.get_mut(id)?;
        (socket.host_name, socket.name) = (Some(place), Some(name));
        return Ok(());
    }
    let dir = writable_directory(cx, call, &missing.dir, &missing.name)?;
    if is_bound {
        return Err(Errno::EINVAL);
    }
    let attr: NewAttr = new_attr(cx, dir, mode, IsDir::No)?;
    let memory = &mut cx.machine.memory;
    let tmpfs = &mut cx.kernel.tmpfs;
    let inode = tmpfs.create(memory, dir, &missing.name, &NewBody::Socket, attr)?;
    tmpfs.open_ref(inode);
    let sockets = &mut cx.kernel.objects.sockets;
    sockets.by_inode.insert(inode, id);
    let socket = sockets.get_mut(id)?;
    socket.inode = Some(inode);
    socket.name = Some(name);
    notify::created(cx, dir, &missing.name, inode);
    Ok(())
}

fn walk(
    cx: &mut Cx<'_>,
    call: &'static str,
    path: &[u8],
    (last, intent): (Last, Intent),
) -> Result<Walked, Errno> {
    let start = path::start(cx, AT_FDCWD, path)?;
    path::walk(
        cx,
        Request {
            call,
            start,
            path,
            last,
            intent,
            resolve: Resolve::empty(),
        },
    )
}

/// A socket goes: its name leads nowhere any more.
pub(super) fn forget_name(cx: &mut Cx<'_>, id: ObjectId, socket: &Socket) {
    let sockets = &mut cx.kernel.objects.sockets;
    if let Some(Name::Unix(name)) = &socket.name {
        let key = (socket.kind, Arc::clone(name));
        // A connection that was accepted has its listener's name, without leading there.
        if sockets.abstract_names.get(&key) == Some(&id) {
            sockets.abstract_names.remove(&key);
        }
    }
    if let Some(inode) = socket.inode {
        sockets.by_inode.remove(&inode);
        cx.kernel.tmpfs.close_ref(&mut cx.machine.memory, inode);
    }
    if let Some(place) = socket.host_name {
        cx.kernel.objects.sockets.host_names.close(place, id);
    }
}

/// The thing that an address leads to.
enum Target {
    /// A socket of the program's.
    Own(ObjectId),
    /// One of the host's that a rule names: the number of the rule, and the host's path.
    Host(usize, Vec<u8>),
}

/// The socket that takes datagrams of the program's socket `id` for an address. Of one of the host's it is the end that
/// stands for it.
///
/// # Errors
/// `ECONNREFUSED` if there is none, `EPROTOTYPE` if it carries other traffic. For a path `EACCES` without permission
/// to write, and as stat(2). A socket of the host's that no rule names gives `EACCES`, recorded.
pub fn find(
    cx: &mut Cx<'_>,
    call: &'static str,
    id: ObjectId,
    address: &Address,
) -> Result<ObjectId, Errno> {
    match seek(cx, call, SocketKind::Datagram, address)? {
        Target::Own(id) => Ok(id),
        Target::Host(index, path) => {
            let name = Name::Unix(address.bytes());
            outside::datagram_end(cx, id, (index, &path), name)
        }
    }
}

/// The thing that an address leads to.
fn seek(
    cx: &mut Cx<'_>,
    call: &'static str,
    kind: SocketKind,
    address: &Address,
) -> Result<Target, Errno> {
    let path = match address {
        Address::Abstract(name) => {
            let names = &cx.kernel.objects.sockets.abstract_names;
            let found = names.get(&(kind, Arc::clone(name)));
            return found.copied().map(Target::Own).ok_or(Errno::ECONNREFUSED);
        }
        Address::Path(path) => path,
    };
    let found = match walk(cx, call, path, (Last::Follow, Intent::Read))? {
        Walked::Found(found) => found,
        Walked::Missing(_) => return Err(Errno::ENOENT),
    };
    let attr = attr_of(cx, &found)?;
    let own = match hosttree::place_of_socket(cx, &found, &attr) {
        Some(place) => cx.kernel.objects.sockets.host_names.socket(place),
        None => None,
    };
    if attr.kind() == S_IFSOCK
        && own.is_none()
        && let Some(path) = path_on_host(cx, &found)
    {
        if let Some((index, host)) = cx.host.policy.socket_at(&path) {
            return Ok(Target::Host(index, host.to_vec()));
        }
        let what = format!("{call} {}", vfs::printable(&path));
        let remedy = match hosttree::is_writable(cx.host, &path) {
            true => Remedy::ReplaceableSocket,
            false => Remedy::HostSocket,
        };
        cx.host.report.deny(what, Errno::EACCES, remedy);
        return Err(Errno::EACCES);
    }
    if !vfs::privilege::permits_found(cx, &found, &attr, MAY_WRITE)? {
        return Err(Errno::EACCES);
    }
    let inode = match found.node {
        Node::Tmp(inode) => Some(inode),
        Node::Open(file) => inode_of(cx, file),
        Node::Host(..) | Node::Synth(_) => None,
    };
    let sockets = &cx.kernel.objects.sockets;
    let of_inode = inode.and_then(|inode| sockets.by_inode.get(&inode).copied());
    let id = own.flatten().or(of_inode).ok_or(Errno::ECONNREFUSED)?;
    if sockets.get(id)?.kind != kind {
        return Err(Errno::EPROTOTYPE);
    }
    Ok(Target::Own(id))
}

/// The path of what was found if the host has it, also through a description opened with O_PATH.
fn path_on_host(cx: &Cx<'_>, found: &Found) -> Option<Vec<u8>> {
    match &found.node {
        Node::Host(..) => Some(found.path.clone()),
        Node::Open(file) => {
            let file = cx.kernel.files.get(file)?;
            matches!(file.kind, FileKind::HostLocation(_)).then(|| file.path.to_vec())
        }
        Node::Tmp(_) | Node::Synth(_) => None,
    }
}

/// The inode of the memory file system that a description opened with O_PATH is on.
fn inode_of(cx: &Cx<'_>, file: FileId) -> Option<InodeId> {
    let kind: &FileKind = &cx.kernel.files.get(&file)?.kind;
    match file::contents(cx, kind) {
        Contents::Tmp(inode) => Some(inode),
        _ => None,
    }
}

/// Lets connections come in (listen(2)).
///
/// # Errors
/// `EOPNOTSUPP` for datagrams; `EINVAL` without a name, or of one that is connected.
pub fn listen(cx: &mut Cx<'_>, id: ObjectId, backlog: i32) -> Result<(), Errno> {
    let credentials = Credentials::of_peer(cx)?;
    let socket = cx.kernel.objects.sockets.get_mut(id)?;
    if !socket.kind.is_connection() {
        return Err(Errno::EOPNOTSUPP);
    }
    if socket.name.is_none() {
        return Err(Errno::EINVAL);
    }
    let backlog = backlog.cast_unsigned().min(BACKLOG_MAX);
    match &mut socket.link {
        Link::Listening(listener) => {
            listener.backlog = backlog;
        }
        Link::None => {
            socket.link = Link::Listening(Listener {
                backlog,
                pending: imbl::Vector::new(),
                waiting: imbl::Vector::new(),
            });
        }
        Link::Connecting(_) | Link::Open(_) | Link::Closed => return Err(Errno::EINVAL),
    }
    socket.credentials = credentials;
    socket.peer_credentials = credentials;
    // It is no hang-up any more, and those that found its queue full may find room.
    cx.kernel.sched.wake_source(Source::Object(id));
    Ok(())
}

/// The effect of an attempt to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connected {
    /// It is connected.
    Now,
    /// The listener has no room before this source is ready.
    NoRoom(Source),
}

/// Connects a stream or sequenced packets to a listener (unix_stream_connect).
///
/// # Errors
/// As [`find`]; `ECONNREFUSED` if nobody listens, `EISCONN`, `EINVAL` for a listener, `ENOMEM`; of the host's, what the
/// host says.
pub fn connect(cx: &mut Cx<'_>, id: ObjectId, address: &Address) -> Result<Connected, Errno> {
    autobind_if_asked(cx, id)?;
    let kind = cx.kernel.objects.sockets.get(id)?.kind;
    let to = match seek(cx, "connect", kind, address)? {
        Target::Own(to) => to,
        Target::Host(index, path) => {
            return connect_to_host(cx, (id, address), (index, &path)).map(|()| Connected::Now);
        }
    };
    let credentials = Credentials::of_peer(cx)?;
    join(cx, id, to, credentials)
}

/// Connects a socket to one that listens, which is shown `credentials` as the client's.
pub(super) fn join(
    cx: &mut Cx<'_>,
    id: ObjectId,
    to: ObjectId,
    credentials: Credentials,
) -> Result<Connected, Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let kind = sockets.get(id)?.kind;
    let listening = sockets.get(to)?;
    let Link::Listening(listener) = &listening.link else {
        return Err(Errno::ECONNREFUSED);
    };
    if listening.shut.contains(Shut::RECEIVE) {
        return Err(Errno::ECONNREFUSED);
    }
    match sockets.get(id)?.link {
        Link::None => {}
        Link::Listening(_) => return Err(Errno::EINVAL),
        Link::Connecting(_) | Link::Open(_) | Link::Closed => return Err(Errno::EISCONN),
    }
    if listener.is_full() {
        return Ok(Connected::NoRoom(Source::Object(to)));
    }
    let (name, theirs) = (listening.name.clone(), listening.credentials);
    let flags = listening.options.flags.clone();
    let memory = &mut cx.machine.memory;
    let accepted = super::create(cx.kernel, memory, Family::Unix, kind)?;
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(accepted)?;
    socket.name = name;
    socket.link = Link::Open(id);
    socket.is_pending = true;
    socket.peer_credentials = credentials;
    if flags.contains_key(&PASS_CREDENTIALS) {
        socket.options.flags.insert(PASS_CREDENTIALS, 1);
    }
    let socket = sockets.get_mut(id)?;
    socket.link = Link::Open(accepted);
    socket.peer_credentials = theirs;
    if let Link::Listening(listener) = &mut sockets.get_mut(to)?.link {
        listener.pending.push_back(accepted);
    }
    cx.kernel.wake(Source::Object(to), POLLIN | POLLRDNORM);
    // It is no hang-up any more.
    cx.kernel.wake(Source::Object(id), super::SPACE);
    Ok(Connected::Now)
}

/// Connects to a socket of the host's that a rule names.
///
/// Linux differs: who finds its backlog full gets `EAGAIN`, and does not wait for room. SO_PEERCRED shows nobody.
fn connect_to_host(
    cx: &mut Cx<'_>,
    (id, address): (ObjectId, &Address),
    at: (usize, &[u8]),
) -> Result<(), Errno> {
    let socket = cx.kernel.objects.sockets.get(id)?;
    match socket.link {
        Link::None => {}
        Link::Listening(_) => return Err(Errno::EINVAL),
        Link::Connecting(_) | Link::Open(_) | Link::Closed => return Err(Errno::EISCONN),
    }
    let end = match socket.kind {
        SocketKind::SeqPacket => outside::connect_packets(cx, id, at)?,
        SocketKind::Stream | SocketKind::Datagram => outside::connect_unix(cx, id, at)?,
    };
    let sockets = &mut cx.kernel.objects.sockets;
    sockets.get_mut(end)?.name = Some(Name::Unix(address.bytes()));
    sockets.get_mut(id)?.peer_credentials = Credentials::UNKNOWN;
    Ok(())
}

const PASS_CREDENTIALS: (i32, i32) = (
    kvmlet_abi::linux::socket::SOL_SOCKET,
    kvmlet_abi::linux::socket::SO_PASSCRED,
);

/// Connects a datagram socket: what it sends goes there, and it receives from there only (unix_dgram_connect). Without
/// an address it is connected to nothing.
///
/// # Errors
/// As [`find`]; `EPERM` if the receiver is connected to another.
pub fn connect_datagrams(
    cx: &mut Cx<'_>,
    id: ObjectId,
    address: Option<&Address>,
) -> Result<(), Errno> {
    let to = match address {
        Some(address) => {
            autobind_if_asked(cx, id)?;
            let to = find(cx, "connect", id, address)?;
            let theirs = &cx.kernel.objects.sockets.get(to)?.link;
            if matches!(theirs, Link::Open(other) if *other != id) {
                return Err(Errno::EPERM);
            }
            Some(to)
        }
        None => None,
    };
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(id)?;
    let link = to.map_or(Link::None, Link::Open);
    let old = core::mem::replace(&mut socket.link, link);
    if let Some(to) = to {
        sockets.get_mut(to)?.connected.insert(id);
    }
    if let Link::Open(old) = old
        && Some(old) != to
    {
        leave(cx, id, old)?;
    }
    Ok(())
}

/// A datagram socket is no longer connected to `old`: what that one has sent is dropped (unix_dgram_disconnected).
fn leave(cx: &mut Cx<'_>, id: ObjectId, old: ObjectId) -> Result<(), Errno> {
    let sockets = &mut cx.kernel.objects.sockets;
    let socket = sockets.get_mut(id)?;
    let was_crowded = socket.is_crowded();
    let queue = core::mem::take(&mut socket.queue);
    if let Ok(peer) = sockets.get_mut(old) {
        peer.connected.remove(&id);
        if !queue.is_empty() && peer.link == Link::Open(id) {
            peer.error = Some(Errno::ECONNRESET);
            cx.kernel.wake(Source::Object(old), 0);
        }
    }
    cx.kernel.objects.sockets.dead.add(queue);
    cx.kernel.wake(Source::Object(id), super::SPACE);
    if was_crowded {
        super::queue::has_room(cx.kernel, id);
    }
    Ok(())
}
