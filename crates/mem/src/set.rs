//! A set of the 512 things that fit under one table or in one 2 MiB block.

const WORDS: usize = 8;

/// A set of numbers below 512.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexSet([u64; WORDS]);

impl IndexSet {
    pub(crate) const EMPTY: Self = Self([0; WORDS]);
    pub(crate) const FULL: Self = Self([u64::MAX; WORDS]);
    const LEN: usize = WORDS * 64;

    /// The set that the first words of a longer one are.
    #[inline]
    pub(crate) fn of_words(words: &[u64]) -> Self {
        let mut set = Self::EMPTY;
        for (word, from) in set.0.iter_mut().zip(words) {
            *word = *from;
        }
        set
    }

    #[inline]
    pub(crate) fn has(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    #[inline]
    pub(crate) fn add(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    #[inline]
    pub(crate) fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |all, word| all | word) == 0
    }

    #[inline]
    pub(crate) fn first(&self) -> Option<usize> {
        self.0
            .iter()
            .position(|&word| word != 0)
            .map(|at| at * 64 + self.0[at].trailing_zeros() as usize)
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        let words = self.0.iter().filter(|word| **word != 0);
        words.map(|word| word.count_ones() as usize).sum()
    }

    #[inline]
    pub(crate) fn complement(&self) -> Self {
        Self::FULL.without(self)
    }

    #[inline]
    pub(crate) fn without(mut self, other: &Self) -> Self {
        for (at, word) in self.0.iter_mut().enumerate() {
            *word &= !other.0[at];
        }
        self
    }

    #[inline]
    pub(crate) fn with(mut self, other: &Self) -> Self {
        for (at, word) in self.0.iter_mut().enumerate() {
            *word |= other.0[at];
        }
        self
    }

    /// Start of the first `count` neighbours.
    #[inline]
    pub(crate) fn run_of(&self, count: usize) -> Option<usize> {
        let mut len = 0;
        (0..Self::LEN)
            .find(|&index| {
                len = if self.has(index) { len + 1 } else { 0 };
                len == count
            })
            .map(|last| last + 1 - count)
    }

    /// The numbers, smallest first.
    #[inline]
    pub(crate) fn iter(self) -> Indices {
        Indices {
            left: self.0,
            at: 0,
        }
    }
}

/// The numbers of a set that have not been told yet.
#[derive(Clone, Debug)]
pub(crate) struct Indices {
    left: [u64; WORDS],
    /// The first word that may have some.
    at: usize,
}

impl Iterator for Indices {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        loop {
            let word = self.left.get_mut(self.at)?;
            if *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                return Some(self.at * 64 + bit);
            }
            self.at += 1;
        }
    }
}
