//! The ids of requests.

use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids: 32 hexadecimal digits that no other process makes and that do not come twice.
#[derive(Debug)]
pub(crate) struct Ids {
    of_process: u64,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        let mut random = [0; 16];
        // Without random bytes ids are told apart by their numbers only.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        let (first, second) = random.split_at(8);
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
        };
        Self {
            of_process: number(first),
            next: AtomicU64::new(number(second)),
        }
    }

    pub(crate) fn make(&self) -> String {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{next:016x}", self.of_process)
    }
}

/// True if an id that a proxy has given can stand in a log as it is.
pub(crate) fn is_usable(id: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        let (first, second) = (Ids::new(), Ids::new());
        assert_ne!(first.make(), first.make());
        assert_ne!(first.make(), second.make());
        assert!(is_usable(first.make().as_bytes()));
        assert!(!is_usable(b""));
        assert!(!is_usable(b"a\nb"));
        assert!(!is_usable(&[b'a'; 129]));
    }
}
