//! Readiness: poll, ppoll, select, pselect6.

use imbl::Vector;
use kvmlet_abi::linux::{Pollfd, Timespec, Timeval};
use kvmlet_abi::{Errno, Gva};
use zerocopy::IntoBytes;

use crate::clock::{self, NSEC_PER_SEC};
use crate::cx::Cx;
use crate::fd;
use crate::outcome::{CallState, Outcome, Resume, Source, Wait, WaitOn};
use crate::syscalls::args::{Args, Int, Len, Ptr, Uint};
use crate::vfs::epoll::Asked;
use crate::vfs::ready::{
    POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, POLLRDBAND, POLLRDNORM, POLLWRBAND,
    POLLWRNORM, add_sources, poll_ready_among, refresh_among,
};

/// Largest number of descriptors in a select(2) set that is looked at.
const SELECT_MAX: usize = 65_536;

/// The time that a call may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Timeout {
    Never,
    Ns(u64),
}

impl Timeout {
    /// The deadline: the one of the first try, when this is a retry.
    fn deadline_ns(self, cx: &Cx<'_>, state: &CallState) -> Option<u64> {
        match (state.deadline_ns, self) {
            (Some(deadline), _) => Some(deadline),
            (None, Self::Never) => None,
            (None, Self::Ns(ns)) => Some(clock::monotonic_ns(cx.host).saturating_add(ns)),
        }
    }

    fn is_over(self, cx: &Cx<'_>, state: &CallState, deadline_ns: Option<u64>) -> bool {
        state.expired
            || self == Self::Ns(0)
            || deadline_ns.is_some_and(|deadline| deadline <= clock::monotonic_ns(cx.host))
    }
}

/// Parks until one of `sources` may be ready.
fn park(sources: Vector<Source>, deadline_ns: Option<u64>, saved_mask: Option<u64>) -> Outcome {
    let state = CallState {
        deadline_ns,
        saved_mask,
        ..CallState::default()
    };
    let on = if sources.is_empty() {
        WaitOn::Nothing
    } else {
        WaitOn::Sources(sources)
    };
    Outcome::Wait(Wait {
        on,
        deadline_ns,
        resume: Resume::Retry(state),
    })
}

/// poll(2)
pub fn sys_poll(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(fds), Uint(count), Int(timeout_ms)) = args.decode();
    let timeout = match u64::try_from(timeout_ms) {
        Ok(ms) => Timeout::Ns(ms.saturating_mul(NSEC_PER_SEC / 1000)),
        Err(_) => Timeout::Never,
    };
    polling(cx, (fds, count), timeout, None, state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)))
}

/// ppoll(2)
pub fn sys_ppoll(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Ptr(fds), Uint(count), Ptr(timeout_gva), Ptr(mask_gva), Len(mask_size)) = args.decode();
    let (timeout, saved) = match begin(cx, timeout_gva, (mask_gva, mask_size), state) {
        Ok(begun) => begun,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let outcome = polling(cx, (fds, count), timeout, saved, state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)));
    end(cx, outcome, timeout_gva, saved, state, timeout)
}

/// Reads the timeout and sets the temporary mask, unless this is a retry.
fn begin(
    cx: &mut Cx<'_>,
    timeout_gva: Gva,
    (mask_gva, mask_size): (Gva, u64),
    state: &CallState,
) -> Result<(Timeout, Option<u64>), Errno> {
    let timeout = if timeout_gva.0 == 0 {
        Timeout::Never
    } else {
        let timeout: Timespec = cx.read_struct(timeout_gva)?;
        Timeout::Ns(clock::timespec_ns(timeout)?)
    };
    if *state != CallState::default() {
        return Ok((timeout, state.saved_mask));
    }
    let saved = crate::signal::with_mask(cx, mask_gva, mask_size)?;
    Ok((timeout, saved))
}

/// Puts the mask back and writes the time left, when the call is over. A kernel that cannot write the
/// time does not make the call fail (poll_select_finish).
fn end(
    cx: &mut Cx<'_>,
    outcome: Outcome,
    timeout_gva: Gva,
    saved: Option<u64>,
    state: &CallState,
    timeout: Timeout,
) -> Outcome {
    if let Outcome::Done(_) = outcome {
        crate::signal::restore_mask(cx, saved);
        if timeout_gva.0 != 0 {
            let left = left_ns(cx, state, timeout);
            let _ = cx.write_struct(timeout_gva, &clock::timespec(left));
        }
    }
    outcome
}

fn left_ns(cx: &Cx<'_>, state: &CallState, timeout: Timeout) -> u64 {
    match (state.deadline_ns, timeout) {
        (Some(deadline), _) => deadline.saturating_sub(clock::monotonic_ns(cx.host)),
        (None, Timeout::Ns(ns)) => ns,
        (None, Timeout::Never) => 0,
    }
}

fn polling(
    cx: &mut Cx<'_>,
    (fds_gva, count): (Gva, u32),
    timeout: Timeout,
    saved_mask: Option<u64>,
    state: &CallState,
) -> Result<Outcome, Errno> {
    if i64::from(count) > i64::from(fd::limit(cx)?) {
        return Err(Errno::EINVAL);
    }
    let size = (count as usize).saturating_mul(size_of::<Pollfd>());
    let mut bytes = vec![0u8; size];
    cx.read(fds_gva, &mut bytes)?;
    let mut polled: Vec<Pollfd> = bytes
        .chunks_exact(size_of::<Pollfd>())
        .filter_map(|raw| zerocopy::FromBytes::read_from_bytes(raw).ok())
        .collect();
    let mut sources = Vector::new();
    let mut ready = 0u64;
    let mut asked = Asked::default();
    for entry in polled.iter().filter(|entry| entry.fd >= 0) {
        if let Ok((_, file)) = fd::get(cx, entry.fd) {
            refresh_among(cx, &file, &mut asked);
        }
    }
    for entry in &mut polled {
        entry.revents = 0;
        if entry.fd < 0 {
            continue;
        }
        match fd::get(cx, entry.fd) {
            Err(_) => entry.revents = POLLNVAL,
            Ok((_, file)) => {
                entry.revents = poll_ready_among(cx, &file, entry.events, &mut asked);
                add_sources(cx, &file, entry.events, &mut sources, &mut asked);
            }
        }
        if entry.revents != 0 {
            ready = ready.saturating_add(1);
        }
    }
    let deadline_ns = timeout.deadline_ns(cx, state);
    if ready == 0 && !timeout.is_over(cx, state, deadline_ns) {
        return Ok(park(sources, deadline_ns, saved_mask));
    }
    // Only revents is written, as Linux does: another thread may be changing the rest.
    for (index, entry) in (0u64..).zip(&polled) {
        let at = fds_gva
            .0
            .saturating_add(index.saturating_mul(8))
            .saturating_add(6);
        cx.write_struct(Gva(at), &entry.revents)?;
    }
    Ok(Outcome::Done(Ok(ready)))
}

/// select(2)
pub fn sys_select(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(count), Ptr(read), Ptr(write), Ptr(except), Ptr(timeout_gva)) = args.decode();
    let timeout = if timeout_gva.0 == 0 {
        Ok(Timeout::Never)
    } else {
        cx.read_struct::<Timeval>(timeout_gva)
            .and_then(timeval_ns)
            .map(Timeout::Ns)
    };
    let timeout = match timeout {
        Ok(timeout) => timeout,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let outcome = selecting(cx, count, [read, write, except], timeout, None, state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)));
    if matches!(outcome, Outcome::Done(_)) && timeout_gva.0 != 0 {
        let left = left_ns(cx, state, timeout);
        let left = Timeval {
            tv_sec: (left / NSEC_PER_SEC).cast_signed(),
            tv_usec: (left % NSEC_PER_SEC / 1000).cast_signed(),
        };
        let _ = cx.write_struct(timeout_gva, &left);
    }
    outcome
}

/// select(2) takes microseconds beyond a second too.
fn timeval_ns(time: Timeval) -> Result<u64, Errno> {
    let sec = u64::try_from(time.tv_sec).map_err(|_| Errno::EINVAL)?;
    let usec = u64::try_from(time.tv_usec).map_err(|_| Errno::EINVAL)?;
    Ok(sec
        .saturating_mul(NSEC_PER_SEC)
        .saturating_add(usec.saturating_mul(1000)))
}

/// pselect6(2): its sixth argument points to the mask's address and size.
pub fn sys_pselect6(cx: &mut Cx<'_>, args: &Args, state: &CallState) -> Outcome {
    let (Int(count), Ptr(read), Ptr(write), Ptr(except), Ptr(timeout_gva), Ptr(mask)) =
        args.decode();
    let mask = if mask.0 == 0 {
        Ok([0, 0])
    } else {
        cx.read_struct::<[u64; 2]>(mask)
    };
    let begun = mask.and_then(|[gva, size]| begin(cx, timeout_gva, (Gva(gva), size), state));
    let (timeout, saved) = match begun {
        Ok(begun) => begun,
        Err(error) => return Outcome::Done(Err(error)),
    };
    let outcome = selecting(cx, count, [read, write, except], timeout, saved, state)
        .unwrap_or_else(|error| Outcome::Done(Err(error)));
    end(cx, outcome, timeout_gva, saved, state, timeout)
}

/// The events that select(2) asks of poll for each set: read, write, except (fs/select.c POLLIN_SET and
/// so on).
const SETS: [i16; 3] = [
    POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR,
    POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR,
    POLLPRI,
];

fn selecting(
    cx: &mut Cx<'_>,
    count: i32,
    sets: [Gva; 3],
    timeout: Timeout,
    saved_mask: Option<u64>,
    state: &CallState,
) -> Result<Outcome, Errno> {
    let count = usize::try_from(count)
        .map_err(|_| Errno::EINVAL)?
        .min(SELECT_MAX);
    let highest = cx.fds()?.fds.keys().next_back().copied().unwrap_or(-1);
    // Linux looks at no descriptor beyond the table, whose size is a multiple of 64.
    let table = usize::try_from(highest)
        .map_or(64, |highest| highest.saturating_add(1).next_multiple_of(64));
    let count = count.min(table);
    let words = count.div_ceil(64);
    let mut wanted: [Vec<u64>; 3] = [const { Vec::new() }; 3];
    for (set, gva) in wanted.iter_mut().zip(sets) {
        set.resize(words, 0);
        if gva.0 != 0 {
            cx.read(gva, set.as_mut_bytes())?;
        }
    }
    let mut found: [Vec<u64>; 3] = [vec![0; words], vec![0; words], vec![0; words]];
    let mut sources = Vector::new();
    let mut ready = 0u64;
    let mut asked = Asked::default();
    let mut files = Vec::new();
    for number in 0..count {
        let (word, bit) = (number / 64, 1u64 << (number % 64));
        let in_sets: [bool; 3] = [0, 1, 2].map(|set: usize| {
            wanted
                .get(set)
                .and_then(|set| set.get(word))
                .is_some_and(|word| word & bit != 0)
        });
        if in_sets.contains(&true) {
            let fd = i32::try_from(number).map_err(|_| Errno::EBADF)?;
            let (_, file) = fd::get(cx, fd)?;
            refresh_among(cx, &file, &mut asked);
            files.push(((word, bit), in_sets, file));
        }
    }
    for ((word, bit), in_sets, file) in files {
        let events = SETS
            .iter()
            .zip(in_sets)
            .filter(|(_, in_set)| *in_set)
            .fold(0, |all, (events, _)| all | events);
        let state = poll_ready_among(cx, &file, events, &mut asked);
        if state == POLLNVAL {
            return Err(Errno::EBADF);
        }
        for ((set, events), in_set) in found.iter_mut().zip(SETS).zip(in_sets) {
            if in_set
                && state & events != 0
                && let Some(word) = set.get_mut(word)
            {
                *word |= bit;
                ready = ready.saturating_add(1);
            }
        }
        add_sources(cx, &file, events, &mut sources, &mut asked);
    }
    let deadline_ns = timeout.deadline_ns(cx, state);
    if ready == 0 && !timeout.is_over(cx, state, deadline_ns) {
        return Ok(park(sources, deadline_ns, saved_mask));
    }
    for (set, gva) in found.iter().zip(sets) {
        if gva.0 != 0 {
            cx.write(gva, set.as_bytes())?;
        }
    }
    Ok(Outcome::Done(Ok(ready)))
}
