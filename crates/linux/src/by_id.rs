//! Values by their ids, which clones of the map share one by one.

use std::fmt;
use std::iter::Map;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::{Iter, Keys, Values};
use imbl::shared_ptr::DefaultSharedPtr;

/// A persistent map from ids to values.
///
/// A change in a clone copies that one value. A plain [`OrdMap`] has its values in nodes of sixteen, and copies a whole
/// node with its empty room. Of processes or threads that is 15 KB.
#[derive(Clone)]
pub struct ById<K, T>(OrdMap<K, Arc<T>>);

// Types with names: a borrow by one without is as long as its scope.
type EachValue<'a, K, T> = Map<Values<'a, K, Arc<T>, DefaultSharedPtr>, fn(&'a Arc<T>) -> &'a T>;
type Each<'a, K, T> =
    Map<Iter<'a, K, Arc<T>, DefaultSharedPtr>, fn((&'a K, &'a Arc<T>)) -> (&'a K, &'a T)>;

impl<K, T> Default for ById<K, T> {
    fn default() -> Self {
        Self(OrdMap::default())
    }
}

impl<K: Ord + Clone, T: Clone> ById<K, T> {
    /// A map of one value.
    #[must_use]
    pub fn unit(id: K, value: T) -> Self {
        Self(OrdMap::unit(id, Arc::new(value)))
    }

    /// The value with an id.
    #[must_use]
    pub fn get(&self, id: &K) -> Option<&T> {
        self.0.get(id).map(|value| &**value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: &K) -> Option<&mut T> {
        self.0.get_mut(id).map(Arc::make_mut)
    }

    /// Puts a value in; the one that had the id before.
    pub fn insert(&mut self, id: K, value: T) -> Option<T> {
        let before = self.0.insert(id, Arc::new(value));
        before.map(Arc::unwrap_or_clone)
    }

    /// Takes a value out.
    pub fn remove(&mut self, id: &K) -> Option<T> {
        self.0.remove(id).map(Arc::unwrap_or_clone)
    }

    /// True if there is a value with this id.
    #[must_use]
    pub fn contains_key(&self, id: &K) -> bool {
        self.0.contains_key(id)
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ids in order.
    pub fn keys(&self) -> Keys<'_, K, Arc<T>, DefaultSharedPtr> {
        self.0.keys()
    }

    /// Values in the order of their ids.
    pub fn values(&self) -> EachValue<'_, K, T> {
        self.0.values().map(Arc::as_ref)
    }

    /// Ids and values in order.
    pub fn iter(&self) -> Each<'_, K, T> {
        self.0.iter().map(|(id, value)| (id, value.as_ref()))
    }
}

impl<K: Ord + PartialEq, T: PartialEq> PartialEq for ById<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<K: Ord + Eq, T: Eq> Eq for ById<K, T> {}

impl<K: Ord + fmt::Debug, T: fmt::Debug> fmt::Debug for ById<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
impl<K: Ord + Clone, T: Clone> core::ops::Index<&K> for ById<K, T> {
    type Output = T;

    fn index(&self, id: &K) -> &T {
        self.get(id).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_changes_alone_and_copies_what_it_changes() {
        let mut one: ById<u32, Vec<u8>> = ById::default();
        for id in 0..40 {
            assert_eq!(one.insert(id, vec![0; 4]), None);
        }
        let mut other = one.clone();
        other.get_mut(&7).unwrap().push(1);
        assert_eq!((one[&7].len(), other[&7].len()), (4, 5));
        assert_ne!(one, other);
        let shared = |id: u32| Arc::ptr_eq(&one.0[&id], &other.0[&id]);
        assert!((0..40).all(|id| shared(id) == (id != 7)));
        assert_eq!(other.remove(&7), Some(vec![0, 0, 0, 0, 1]));
        assert_eq!(other.insert(7, vec![0; 4]), None);
        assert_eq!(one, other);
        assert_eq!(other.insert(7, Vec::new()), Some(vec![0; 4]));
        assert!(other.keys().eq(one.keys()) && other.values().count() == other.len());
    }
}
