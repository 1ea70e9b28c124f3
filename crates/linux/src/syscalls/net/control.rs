//! Ancillary data: descriptions and credentials that come with a message (cmsg(3), unix(7)).

use kvmlet_abi::linux::socket::{
    Cmsghdr, IPPROTO_IP, MSG_CMSG_CLOEXEC, MSG_CTRUNC, SCM_CREDENTIALS, SCM_RIGHTS, SOL_SOCKET,
};
use kvmlet_abi::{Errno, Gva};
use zerocopy::{FromBytes, IntoBytes};

use super::ip_options;
use crate::cx::Cx;
use crate::fd::{self, OnExec};
use crate::id::{FileId, ObjectId};
use crate::net::inet::Transport;
use crate::net::queue::Ancillary;
use crate::net::rights::{self, IN_FLIGHT_MAX, MESSAGE_FILES_MAX};
use crate::net::{Credentials, Family};
use crate::rlimit::{self, Resource};

/// Most ancillary data of one message, in bytes (/proc/sys/net/core/optmem_max).
const CONTROL_MAX: u64 = 128 << 10;
const HEADER: usize = size_of::<Cmsghdr>();
const FD_BYTES: usize = size_of::<i32>();
const OF_UNIX: [i32; 2] = [SCM_RIGHTS, SCM_CREDENTIALS];

/// The size of ancillary data with its header, filled up to where the next begins, in bytes (CMSG_SPACE).
fn space(len: usize) -> usize {
    HEADER
        .saturating_add(len)
        .next_multiple_of(size_of::<u64>())
}

/// Nothing but the sender.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn plain(cx: &mut Cx<'_>) -> Result<Ancillary, Errno> {
    Ok(Ancillary {
        sender: Credentials::of_sender(cx)?,
        ..Ancillary::default()
    })
}

/// Reads what is sent along with a message of a socket. The descriptions gain no reference yet.
///
/// # Errors
/// `ENOBUFS` for too much. `EINVAL` for what is malformed or unknown. `EPERM` for credentials that are not the
/// caller's. `ETOOMANYREFS` with too many descriptions in messages. `EBADF`, `EFAULT`.
pub fn read(cx: &mut Cx<'_>, id: ObjectId, gva: Gva, len: u64) -> Result<Ancillary, Errno> {
    let mut ancillary = plain(cx)?;
    let socket = cx.kernel.objects.sockets.get(id)?;
    let (transport, family) = (socket.transport(), socket.family);
    if len == 0 {
        return Ok(ancillary);
    }
    if len > CONTROL_MAX {
        return Err(Errno::ENOBUFS);
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno::ENOBUFS)?];
    cx.read(gva, &mut bytes)?;
    let mut rest = bytes.as_slice();
    while let Ok((header, _)) = Cmsghdr::read_from_prefix(rest) {
        let len = usize::try_from(header.cmsg_len).map_err(|_| Errno::EINVAL)?;
        let data = rest.get(HEADER..len).ok_or(Errno::EINVAL)?;
        match (header.cmsg_level, transport) {
            (SOL_SOCKET, None) => read_one(cx, header.cmsg_type, data, &mut ancillary)?,
            // Those are of AF_UNIX: they do no harm (__sock_cmsg_send).
            (SOL_SOCKET, Some(_)) if OF_UNIX.contains(&header.cmsg_type) => {}
            (SOL_SOCKET, Some(_)) => return Err(Errno::EINVAL),
            (level, Some(Transport::Udp)) if level == IPPROTO_IP || family == Family::Inet6 => {
                ip_options::read_wish((level, header.cmsg_type), data, &mut ancillary.ip)?;
            }
            _ => {}
        }
        let next = len.checked_next_multiple_of(size_of::<u64>());
        rest = next.and_then(|next| rest.get(next..)).unwrap_or_default();
    }
    if !ancillary.files.is_empty() {
        // Those that are lost do not count.
        rights::collect(cx);
        let most = rlimit::soft(cx, Resource::Nofile)?.min(IN_FLIGHT_MAX);
        if cx.kernel.objects.sockets.in_flight() > most {
            return Err(Errno::ETOOMANYREFS);
        }
    }
    Ok(ancillary)
}

fn read_one(
    cx: &mut Cx<'_>,
    kind: i32,
    data: &[u8],
    ancillary: &mut Ancillary,
) -> Result<(), Errno> {
    match kind {
        SCM_RIGHTS => {
            let numbers = data.chunks_exact(FD_BYTES);
            if ancillary.files.len().saturating_add(numbers.len()) > MESSAGE_FILES_MAX {
                return Err(Errno::EINVAL);
            }
            for number in numbers {
                let number = i32::read_from_bytes(number).map_err(|_| Errno::EINVAL)?;
                ancillary.files.push(fd::id(cx, number)?);
            }
        }
        SCM_CREDENTIALS => {
            let [pid, uid, gid] = <[u32; 3]>::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
            let given = Credentials { pid, uid, gid };
            if !given.may_be_sent(cx)? {
                return Err(Errno::EPERM);
            }
            if given.uid == u32::MAX || given.gid == u32::MAX {
                return Err(Errno::EINVAL);
            }
            ancillary.given = Some(given);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// The room for ancillary data in a struct msghdr.
#[derive(Debug)]
pub struct Room {
    gva: Gva,
    left: u64,
    used: u64,
    /// MSG_CTRUNC if something did not fit.
    pub flags: u32,
}

impl Room {
    /// Room of this length there.
    #[must_use]
    pub fn new(gva: Gva, len: u64) -> Self {
        Self {
            gva,
            left: if gva.0 == 0 { 0 } else { len },
            used: 0,
            flags: 0,
        }
    }

    /// The part that has been used, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used
    }

    /// Adds data, cut if there is less room (put_cmsg in net/core/scm.c).
    ///
    /// # Errors
    /// `EFAULT`
    pub fn put(
        &mut self,
        cx: &mut Cx<'_>,
        level: i32,
        kind: i32,
        data: &[u8],
    ) -> Result<(), Errno> {
        let len = HEADER.saturating_add(data.len()) as u64;
        if self.left < HEADER as u64 {
            self.flags |= MSG_CTRUNC;
            return Ok(());
        }
        if self.left < len {
            self.flags |= MSG_CTRUNC;
        }
        let header = Cmsghdr {
            cmsg_len: len.min(self.left),
            cmsg_level: level,
            cmsg_type: kind,
        };
        let bytes = [header.as_bytes(), data].concat();
        let kept = usize::try_from(header.cmsg_len).unwrap_or(usize::MAX);
        cx.write(self.gva, bytes.get(..kept).unwrap_or(&bytes))?;
        self.advance(space(data.len()) as u64);
        Ok(())
    }

    fn advance(&mut self, len: u64) {
        let len = len.min(self.left);
        self.gva = Gva(self.gva.0.saturating_add(len));
        self.left = self.left.saturating_sub(len);
        self.used = self.used.saturating_add(len);
    }

    /// Gives descriptions to the calling process, as many as have room here and in its table (scm_detach_fds).
    ///
    /// # Errors
    /// `ESRCH` if the process is gone.
    pub fn put_files(
        &mut self,
        cx: &mut Cx<'_>,
        files: &[FileId],
        flags: u32,
    ) -> Result<(), Errno> {
        if files.is_empty() {
            return Ok(());
        }
        let on_exec = if flags & MSG_CMSG_CLOEXEC == 0 {
            OnExec::Keep
        } else {
            OnExec::Close
        };
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = room.saturating_sub(HEADER) / FD_BYTES;
        let mut numbers = 0usize;
        for file in files.iter().take(most) {
            let Ok(number) = fd::install(cx, *file, 0, on_exec) else {
                break;
            };
            let at = HEADER.saturating_add(numbers.saturating_mul(FD_BYTES)) as u64;
            if cx
                .write_struct(Gva(self.gva.0.saturating_add(at)), &number)
                .is_err()
            {
                fd::close(cx, number)?;
                break;
            }
            numbers = numbers.saturating_add(1);
        }
        if numbers < files.len() {
            self.flags |= MSG_CTRUNC;
        }
        if numbers == 0 {
            return Ok(());
        }
        let len = numbers.saturating_mul(FD_BYTES);
        let header = Cmsghdr {
            cmsg_len: HEADER.saturating_add(len) as u64,
            cmsg_level: SOL_SOCKET,
            cmsg_type: SCM_RIGHTS,
        };
        // As on Linux, a fault does not take them back.
        let _ = cx.write_struct(self.gva, &header);
        self.advance(space(len) as u64);
        Ok(())
    }
}
