//! A value that notes when it was lent to be changed, so that its owner need not look at it after a
//! turn that left it alone.

use std::ops::{Deref, DerefMut};

/// Notes each mutable borrow of the value inside.
///
/// ```
/// use aivtuber_gateway::base::touched::Touched;
///
/// let mut list = Touched::new(vec![1]);
/// list.clear_touched();
/// assert_eq!((list.len(), list.is_touched()), (1, false));
/// list.push(2);
/// assert!(list.is_touched());
/// ```
#[derive(Debug)]
pub struct Touched<T> {
    value: T,
    is_touched: bool,
}

impl<T> Touched<T> {
    /// Counts as touched at first.
    pub fn new(value: T) -> Touched<T> {
        Touched { value, is_touched: true }
    }

    /// Whether the value may have changed since [`Touched::clear_touched`].
    #[inline]
    pub fn is_touched(&self) -> bool {
        self.is_touched
    }

    /// Forgets all borrows so far.
    pub fn clear_touched(&mut self) {
        self.is_touched = false;
    }
}

impl<T> Deref for Touched<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Touched<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.is_touched = true;
        &mut self.value
    }
}
