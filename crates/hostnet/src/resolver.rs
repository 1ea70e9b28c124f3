//! Names looked up by the host's resolver, getaddrinfo(3), which may take its time: not in the thread that asks.
//!
//! Questions and answers go through a pair of sockets. At its other end is [`serve`], in a thread of this process or in
//! a process of its own.

use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvmlet_abi::Errno;
use kvmlet_budget::{Held, Resource};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::socket::errno_of;

/// Names that are looked up at the same time.
const LOOK_UPS_MAX: usize = 16;
/// Addresses of one name that are taken.
const ADDRESSES_MAX: usize = 64;
/// Longest question, in bytes.
const QUESTION_MAX: usize = 512;
const ID_BYTES: usize = size_of::<u32>();
const ADDRESS_BYTES: usize = 16;
/// Stack of the threads, in bytes. Modules of the name service may need some.
const STACK_BYTES: usize = 512 << 10;

/// The end of a look-up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// The name has these addresses; it may exist without any.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// Nobody could be asked, or too many are.
    Failed,
}

/// An answer, with the number of its question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The number.
    pub id: u32,
    /// The answer.
    pub found: Found,
}

/// The end of who asks.
#[derive(Debug)]
pub struct Resolver {
    fd: OwnedFd,
    _held: Held,
}

impl AsFd for Resolver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The two ends: who asks, and who looks up.
///
/// # Errors
/// The host's.
pub fn pair() -> Result<(Resolver, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (fd, other) = pair.map_err(errno_of)?;
    let held = Held::promised(Resource::Descriptors, 1);
    Ok((Resolver { fd, _held: held }, other))
}

impl Resolver {
    /// One whose names are looked up in threads of this process.
    ///
    /// # Errors
    /// The host's.
    pub fn with_threads() -> Result<Self, Errno> {
        let (resolver, other) = pair()?;
        let serve = move || serve(&Arc::new(other), look_up);
        spawn(serve).map_err(|_| Errno::EAGAIN)?;
        Ok(resolver)
    }

    /// Asks for a name. Refused with `EAGAIN` while too many questions wait.
    ///
    /// # Errors
    /// The host's.
    pub fn ask(&self, id: u32, name: &str) -> Result<(), Errno> {
        let question = [&id.to_le_bytes(), name.as_bytes()].concat();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(&self.fd, &question, flags)
            .map(drop)
            .map_err(errno_of)
    }

    /// An answer that has come. `Ok(None)` if there is none.
    ///
    /// # Errors
    /// `EPIPE` if who looks up is gone, and the host's.
    pub fn answer(&self) -> Result<Option<Answer>, Errno> {
        let mut bytes = [0; ID_BYTES + 1 + ADDRESSES_MAX * ADDRESS_BYTES];
        match rustix::net::recv(&self.fd, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(Errno::EPIPE),
            Ok((count, _)) => Ok(decode(bytes.get(..count).unwrap_or_default())),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(errno) => Err(errno_of(errno)),
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name("kvmlet-names".to_owned());
    builder.stack_size(STACK_BYTES).spawn(work).map(drop)
}

fn encode(answer: &Answer) -> Vec<u8> {
    let mut bytes = answer.id.to_le_bytes().to_vec();
    match &answer.found {
        Found::Failed => bytes.push(2),
        Found::NoSuchName => bytes.push(1),
        Found::Addresses(addresses) => {
            bytes.push(0);
            for address in addresses.iter().take(ADDRESSES_MAX) {
                let six = match address {
                    IpAddr::V4(four) => four.to_ipv6_mapped(),
                    IpAddr::V6(six) => *six,
                };
                bytes.extend(six.octets());
            }
        }
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Answer> {
    let (id, rest) = bytes.split_first_chunk::<ID_BYTES>()?;
    let (kind, rest) = rest.split_first()?;
    let found = match kind {
        0 => {
            let addresses = rest.as_chunks::<ADDRESS_BYTES>().0.iter();
            let addresses = addresses.map(|six| Ipv6Addr::from(*six).to_canonical());
            Found::Addresses(addresses.collect())
        }
        1 => Found::NoSuchName,
        _ => Found::Failed,
    };
    Some(Answer {
        id: u32::from_le_bytes(*id),
        found,
    })
}

/// Looks names up with getaddrinfo(3).
#[must_use]
pub fn look_up(name: &str) -> Found {
    match (name, 0u16).to_socket_addrs() {
        Ok(found) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|found| found.ip().to_canonical()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Found::Addresses(addresses)
        }
        // The library says it in words only (gai_strerror(3)).
        Err(error) if error.to_string().contains("emporary failure") => Found::Failed,
        Err(error) if error.to_string().contains("No address") => Found::Addresses(Vec::new()),
        Err(_) => Found::NoSuchName,
    }
}

/// Looks up what is asked at this end, until the other one is closed.
pub fn serve(end: &Arc<OwnedFd>, look_up: fn(&str) -> Found) {
    let busy = Arc::new(AtomicUsize::new(0));
    let say = |end: &OwnedFd, answer: &Answer| {
        // Who has gone needs no answer; one that does not fit is asked for again.
        let _ = rustix::net::send(end, &encode(answer), SendFlags::NOSIGNAL);
    };
    let mut question = [0; QUESTION_MAX];
    loop {
        let mut ready = [rustix::event::PollFd::new(
            &**end,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let count = match rustix::net::recv(&**end, &mut question[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return,
            Ok((count, _)) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let Some((id, name)) = question
            .get(..count)
            .and_then(|question| question.split_first_chunk::<ID_BYTES>())
        else {
            continue;
        };
        let id = u32::from_le_bytes(*id);
        let failed = Answer {
            id,
            found: Found::Failed,
        };
        let Ok(name) = String::from_utf8(name.to_vec()) else {
            say(end, &failed);
            continue;
        };
        if busy.load(Ordering::Relaxed) >= LOOK_UPS_MAX {
            say(end, &failed);
            continue;
        }
        busy.fetch_add(1, Ordering::Relaxed);
        let (other, own_busy) = (Arc::clone(end), Arc::clone(&busy));
        let work = move || {
            let found = look_up(&name);
            own_busy.fetch_sub(1, Ordering::Relaxed);
            say(&other, &Answer { id, found });
        };
        if spawn(work).is_err() {
            busy.fetch_sub(1, Ordering::Relaxed);
            say(end, &failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn wait(resolver: &Resolver) -> Answer {
        let start = Instant::now();
        loop {
            if let Some(answer) = resolver.answer().unwrap() {
                return answer;
            }
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn answers_come_with_the_number_of_their_question() {
        let resolver = Resolver::with_threads().unwrap();
        resolver.ask(7, "localhost").unwrap();
        let answer = wait(&resolver);
        assert_eq!(answer.id, 7);
        let Found::Addresses(addresses) = answer.found else {
            panic!("{answer:?}");
        };
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty());
    }

    #[test]
    fn too_many_questions_fail_at_once() {
        let (resolver, other) = pair().unwrap();
        fn slow(_: &str) -> Found {
            std::thread::sleep(Duration::from_millis(300));
            Found::NoSuchName
        }
        std::thread::spawn(move || serve(&Arc::new(other), slow));
        let count = u32::try_from(LOOK_UPS_MAX).unwrap() + 1;
        for id in 0..count {
            while resolver.ask(id, "name") == Err(Errno::EAGAIN) {}
        }
        let answers: Vec<Answer> = (0..count).map(|_| wait(&resolver)).collect();
        let failed = answers
            .iter()
            .filter(|answer| answer.found == Found::Failed);
        assert_eq!(failed.count(), 1, "{answers:?}");
    }

    #[test]
    fn answers_go_through_whole() {
        for found in [
            Found::Failed,
            Found::NoSuchName,
            Found::Addresses(Vec::new()),
            Found::Addresses(vec!["1.2.3.4".parse().unwrap(), "2606::1".parse().unwrap()]),
        ] {
            let answer = Answer { id: 9, found };
            assert_eq!(decode(&encode(&answer)), Some(answer));
        }
        assert_eq!(decode(b"abc"), None);
    }

    #[test]
    fn names_that_are_answered_make_room_for_others() {
        let (resolver, other) = pair().unwrap();
        fn quick(_: &str) -> Found {
            Found::NoSuchName
        }
        std::thread::spawn(move || serve(&Arc::new(other), quick));
        for id in 0..3 * u32::try_from(LOOK_UPS_MAX).unwrap() {
            resolver.ask(id, "name").unwrap();
            let found = Found::NoSuchName;
            assert_eq!(wait(&resolver), Answer { id, found });
        }
    }
}
