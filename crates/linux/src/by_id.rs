//! Values by their ids, which clones of the map share one by one.

use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::Iter;
use imbl::shared_ptr::DefaultSharedPtr;

/// A persistent map from ids to values.
///
/// A change in a clone copies that one value. A plain [`OrdMap`] has its values in nodes of sixteen, and copies a whole
/// node with its empty room. Of processes or threads that is 15 KB. Most programs have one of each, and one is held
/// without a node.
#[derive(Clone)]
pub struct ById<K, T>(Held<K, T>);

#[derive(Clone)]
enum Held<K, T> {
    /// One at most.
    One(Option<(K, Arc<T>)>),
    /// Two or more.
    Many(OrdMap<K, Arc<T>>),
}

/// Ids and values in the order of the ids.
pub struct Each<'a, K, T>(EachHeld<'a, K, T>);

enum EachHeld<'a, K, T> {
    One(Option<(&'a K, &'a T)>),
    Many(Iter<'a, K, Arc<T>, DefaultSharedPtr>),
}

impl<'a, K: Ord, T> Iterator for Each<'a, K, T> {
    type Item = (&'a K, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            EachHeld::One(one) => one.take(),
            EachHeld::Many(many) => many.next().map(|(id, value)| (id, &**value)),
        }
    }
}

impl<K: Ord, T> DoubleEndedIterator for Each<'_, K, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            EachHeld::One(one) => one.take(),
            EachHeld::Many(many) => many.next_back().map(|(id, value)| (id, &**value)),
        }
    }
}

/// Ids in order.
pub struct Keys<'a, K, T>(Each<'a, K, T>);

impl<'a, K: Ord, T> Iterator for Keys<'a, K, T> {
    type Item = &'a K;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(id, _)| id)
    }
}

impl<K: Ord, T> DoubleEndedIterator for Keys<'_, K, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|(id, _)| id)
    }
}

/// Values in the order of their ids.
pub struct Values<'a, K, T>(Each<'a, K, T>);

impl<'a, K: Ord, T> Iterator for Values<'a, K, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(_, value)| value)
    }
}

impl<K: Ord, T> DoubleEndedIterator for Values<'_, K, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|(_, value)| value)
    }
}

impl<K, T> Default for ById<K, T> {
    fn default() -> Self {
        Self(Held::One(None))
    }
}

impl<K: Ord + Clone, T: Clone> ById<K, T> {
    /// A map of one value.
    #[must_use]
    pub fn unit(id: K, value: T) -> Self {
        Self(Held::One(Some((id, Arc::new(value)))))
    }

    /// The value with an id.
    #[must_use]
    pub fn get(&self, id: &K) -> Option<&T> {
        match &self.0 {
            Held::One(Some((own, value))) if own == id => Some(value),
            Held::One(_) => None,
            Held::Many(many) => many.get(id).map(|value| &**value),
        }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: &K) -> Option<&mut T> {
        match &mut self.0 {
            Held::One(Some((own, value))) if own == id => Some(Arc::make_mut(value)),
            Held::One(_) => None,
            Held::Many(many) => many.get_mut(id).map(Arc::make_mut),
        }
    }

    /// Puts a value in; the one that had the id before.
    pub fn insert(&mut self, id: K, value: T) -> Option<T> {
        let value = Arc::new(value);
        let before = match &mut self.0 {
            Held::One(one) => match one.take() {
                None => {
                    *one = Some((id, value));
                    None
                }
                Some((own, before)) if own == id => {
                    *one = Some((id, value));
                    Some(before)
                }
                Some(other) => {
                    self.0 = Held::Many([other, (id, value)].into_iter().collect());
                    None
                }
            },
            Held::Many(many) => many.insert(id, value),
        };
        before.map(Arc::unwrap_or_clone)
    }

    /// Takes a value out.
    pub fn remove(&mut self, id: &K) -> Option<T> {
        let removed = match &mut self.0 {
            Held::One(one) => {
                let (_, value) = one.take_if(|(own, _)| own == id)?;
                Some(value)
            }
            Held::Many(many) => {
                let removed = many.remove(id);
                if many.len() < 2 {
                    let left = many.get_min().cloned();
                    self.0 = Held::One(left);
                }
                removed
            }
        };
        removed.map(Arc::unwrap_or_clone)
    }

    /// True if there is a value with this id.
    #[must_use]
    pub fn contains_key(&self, id: &K) -> bool {
        self.get(id).is_some()
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::One(one) => usize::from(one.is_some()),
            Held::Many(many) => many.len(),
        }
    }

    /// True if there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Ord, T> ById<K, T> {
    /// Ids in order.
    pub fn keys(&self) -> Keys<'_, K, T> {
        Keys(self.iter())
    }

    /// Values in the order of their ids.
    pub fn values(&self) -> Values<'_, K, T> {
        Values(self.iter())
    }

    /// Ids and values in order.
    pub fn iter(&self) -> Each<'_, K, T> {
        Each(match &self.0 {
            Held::One(one) => EachHeld::One(one.as_ref().map(|(id, value)| (id, &**value))),
            Held::Many(many) => EachHeld::Many(many.iter()),
        })
    }
}

impl<K: Ord, T: PartialEq> PartialEq for ById<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<K: Ord, T: Eq> Eq for ById<K, T> {}

impl<K: Ord + fmt::Debug, T: fmt::Debug> fmt::Debug for ById<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_clone_changes_alone_and_copies_what_it_changes() {
        for count in [1, 2, 40] {
            let mut one: ById<u32, Vec<u8>> = ById::default();
            for id in 0..count {
                assert_eq!(one.insert(id, vec![0; 4]), None);
            }
            let mut other = one.clone();
            other.get_mut(&0).unwrap().push(1);
            assert_eq!((one[&0].len(), other[&0].len()), (4, 5));
            assert_ne!(one, other);
            let shared = |id: u32| core::ptr::eq(&one[&id], &other[&id]);
            assert!((0..count).all(|id| shared(id) == (id != 0)));
            assert_eq!(other.remove(&0), Some(vec![0, 0, 0, 0, 1]));
            assert_eq!(other.insert(0, vec![0; 4]), None);
            assert_eq!(one, other);
            assert_eq!(other.insert(0, Vec::new()), Some(vec![0; 4]));
            assert!(other.keys().eq(one.keys()) && other.values().count() == other.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u8..4, 0u32..4), 0..60)) {
            let (mut ours, mut model) = (ById::default(), BTreeMap::new());
            for (number, (step, id)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => prop_assert_eq!(ours.insert(id, number), model.insert(id, number)),
                    2 => prop_assert_eq!(ours.remove(&id), model.remove(&id)),
                    _ => prop_assert_eq!(ours.get_mut(&id), model.get_mut(&id)),
                }
                prop_assert!(ours.iter().eq(&model) && ours.iter().rev().eq(model.iter().rev()));
                prop_assert!(ours.values().eq(model.values()) && ours.keys().eq(model.keys()));
                prop_assert_eq!((ours.len(), ours.is_empty()), (model.len(), model.is_empty()));
                let known = (0..4).all(|id| ours.get(&id) == model.get(&id));
                prop_assert!(known && ours.contains_key(&id) == model.contains_key(&id));
            }
        }
    }
}
