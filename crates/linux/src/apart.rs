//! Parts of the kernel value that clones share until one of them changes theirs.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A part with many maps. Most requests change none of them: a clone of the kernel value, and its end, count one
/// reference in place of one for each map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Apart<T>(Arc<T>);

impl<T> From<T> for Apart<T> {
    fn from(part: T) -> Self {
        Self(Arc::new(part))
    }
}

impl<T: Clone> Apart<T> {
    /// The part alone.
    #[must_use]
    pub fn into_inner(self) -> T {
        Arc::unwrap_or_clone(self.0)
    }
}

impl<T> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Apart<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_changes_alone() {
        let one = Apart::from(vec![1]);
        let mut other = one.clone();
        assert!(core::ptr::eq(&*one, &*other));
        other.push(2);
        assert_eq!((&*one, other.into_inner()), (&vec![1], vec![1, 2]));
    }
}
