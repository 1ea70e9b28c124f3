//! Host work that may sleep, done to its end.

use std::os::fd::AsFd;

use kvmlet_abi::{Errno, Gva};

use crate::cx::Cx;
use crate::host::HostId;
use crate::outcome::{Job, Outcome, SysResult};
use crate::sched::Call;

/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// Runs a job and gives the call's result.
pub fn run(cx: &mut Cx<'_>, _call: &Call, job: Job) -> Outcome {
    match job {
        Job::Write {
            host,
            bytes,
            already,
        } => write(cx, host, &bytes, already).into(),
        Job::Read { host, buffers } => {
            let first = buffers.iter().find(|(_, len)| *len > 0).copied();
            first
                .map_or(Ok(0), |(gva, len)| read(cx, host, gva, len))
                .into()
        }
    }
}

fn write(cx: &mut Cx<'_>, host: HostId, bytes: &[u8], already: u64) -> SysResult {
    let fd = cx.host.fd(host)?;
    let mut done = already;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(fd.as_fd(), rest) {
            Ok(count) => {
                done = done.saturating_add(count as u64);
                rest = rest.get(count..).unwrap_or_default();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let error = super::hostfs::errno(error);
                if error == Errno::EPIPE {
                    crate::signal::send_to_self(cx, crate::signal::signo::SIGPIPE);
                }
                return if done > 0 { Ok(done) } else { Err(error) };
            }
        }
    }
    Ok(done)
}

fn read(cx: &mut Cx<'_>, host: HostId, gva: u64, len_bytes: u64) -> SysResult {
    let fd = cx.host.fd(host)?;
    let len = usize::try_from(len_bytes).unwrap_or(CHUNK).min(CHUNK);
    let mut buf = vec![0u8; len];
    loop {
        match rustix::io::read(fd.as_fd(), &mut buf) {
            Ok(count) => {
                cx.write(Gva(gva), buf.get(..count).unwrap_or_default())?;
                return Ok(count as u64);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(super::hostfs::errno(error)),
        }
    }
}
