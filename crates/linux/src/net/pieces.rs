//! Bytes that a receiver finds, in the pieces that they were sent in.

use std::borrow::Cow;

use kvmlet_mem::Bytes;

/// Shorter pieces are joined to one, in bytes: a copy costs less than a way of its own into the guest.
const SHARED_LEAST_BYTES: usize = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Joined(Vec<u8>),
    /// This part of what is still queued.
    Shared(Bytes, core::ops::Range<usize>),
}

/// Bytes of one or more messages, in order. Long ones are shared with the queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pieces {
    pieces: Vec<Piece>,
    len_bytes: usize,
}

impl Pieces {
    /// Length, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    /// Adds what `range` names of `bytes`, as far as it is there.
    pub(super) fn push(&mut self, bytes: &Bytes, range: core::ops::Range<usize>) {
        let end = range.end.min(bytes.len());
        let range = range.start.min(end)..end;
        let part = bytes.get(range.clone()).unwrap_or_default();
        self.len_bytes = self.len_bytes.saturating_add(part.len());
        match self.pieces.last_mut() {
            _ if part.is_empty() => {}
            _ if part.len() >= SHARED_LEAST_BYTES => {
                self.pieces.push(Piece::Shared(bytes.clone(), range));
            }
            Some(Piece::Joined(joined)) => joined.extend_from_slice(part),
            _ => self.pieces.push(Piece::Joined(part.to_vec())),
        }
    }

    /// The bytes, piece by piece.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|piece| match piece {
            Piece::Joined(bytes) => bytes.as_slice(),
            Piece::Shared(bytes, range) => bytes.get(range.clone()).unwrap_or_default(),
        })
    }

    /// All bytes, copied only if they are in several pieces.
    #[must_use]
    pub fn joined(&self) -> Cow<'_, [u8]> {
        let mut pieces = self.iter();
        match (pieces.next(), pieces.next()) {
            (None, _) => Cow::Borrowed(&[]),
            (Some(only), None) => Cow::Borrowed(only),
            _ => Cow::Owned(self.iter().collect::<Vec<_>>().concat()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_bytes_in_order() {
        let long = Bytes::copied(&[7; 2 * SHARED_LEAST_BYTES]);
        let short = Bytes::copied(b"abc");
        let mut pieces = Pieces::default();
        pieces.push(&short, 1..usize::MAX);
        pieces.push(&short, 0..1);
        pieces.push(&short, 3..9);
        pieces.push(&short, 9..9);
        assert_eq!((pieces.iter().count(), &*pieces.joined()), (1, &b"bca"[..]));
        pieces.push(&long, 5..usize::MAX);
        pieces.push(&short, 0..3);
        assert_eq!(pieces.iter().count(), 3);
        let expected = [&b"bca"[..], &[7; 2 * SHARED_LEAST_BYTES - 5], b"abc"].concat();
        assert_eq!(*pieces.joined(), expected);
        assert_eq!(pieces.len(), expected.len());
    }

    #[test]
    fn nothing_is_no_piece() {
        let nothing = Pieces::default();
        assert_eq!((nothing.len(), &*nothing.joined()), (0, &b""[..]));
    }
}
