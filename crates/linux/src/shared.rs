//! Values that several threads have together, of one process or of several (clone(2)).

use imbl::OrdMap;

/// Values by their names, each with the number of threads that have it. A name is never used again.
#[derive(Clone, Debug)]
pub struct Shared<K: Copy + Ord, T> {
    values: OrdMap<K, Counted<T>>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Counted<T> {
    value: T,
    threads: u32,
    charged_bytes: u64,
}

/// A value that nobody has any more.
#[derive(Debug)]
pub struct Left<T> {
    /// The value.
    pub value: T,
    /// Host memory that is charged to the program for it, in bytes.
    pub charged_bytes: u64,
}

impl<K: Copy + Ord, T> Default for Shared<K, T> {
    fn default() -> Self {
        Self {
            values: OrdMap::new(),
            next: 0,
        }
    }
}

impl<K: Copy + Ord + From<u64>, T: Clone> Shared<K, T> {
    /// Adds a value that one thread has. `charged_bytes` of host memory are charged to the program for it.
    pub fn add(&mut self, value: T, charged_bytes: u64) -> K {
        let name = K::from(self.next);
        self.next = self.next.saturating_add(1);
        let counted = Counted {
            value,
            threads: 1,
            charged_bytes,
        };
        self.values.insert(name, counted);
        name
    }

    /// One more thread has it.
    pub fn join(&mut self, name: K) {
        if let Some(counted) = self.values.get_mut(&name) {
            counted.threads = counted.threads.saturating_add(1);
        }
    }

    /// A thread has it no more. The value, if no other has it.
    pub fn leave(&mut self, name: K) -> Option<Left<T>> {
        let counted = self.values.get_mut(&name)?;
        counted.threads = counted.threads.saturating_sub(1);
        if counted.threads > 0 {
            return None;
        }
        let counted = self.values.remove(&name)?;
        Some(Left {
            value: counted.value,
            charged_bytes: counted.charged_bytes,
        })
    }

    /// The number of values that the program is charged for.
    #[must_use]
    pub fn charged(&self) -> usize {
        let counted = self.values.values();
        counted.filter(|counted| counted.charged_bytes > 0).count()
    }

    /// The number of threads that have it.
    #[must_use]
    pub fn threads(&self, name: K) -> u32 {
        self.values.get(&name).map_or(0, |counted| counted.threads)
    }

    /// The value.
    #[must_use]
    pub fn get(&self, name: K) -> Option<&T> {
        self.values.get(&name).map(|counted| &counted.value)
    }

    /// The value, to be changed.
    pub fn get_mut(&mut self, name: K) -> Option<&mut T> {
        self.values.get_mut(&name).map(|counted| &mut counted.value)
    }

    /// All values with their names.
    pub fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.values
            .iter()
            .map(|(name, counted)| (*name, &counted.value))
    }
}
