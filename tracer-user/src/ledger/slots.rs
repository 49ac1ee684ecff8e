//! What is known about each row of the table, by the row's number.

/// Values by the number of their row. A plain array: every look at the table goes through all of them in this order,
/// and the programs take the lowest free rows first, so it has few holes.
#[derive(Debug)]
pub(super) struct Slots<T> {
    values: Vec<Option<T>>,
    used: usize,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self {
            values: Vec::new(),
            used: 0,
        }
    }

    /// How many rows there is something known about.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// The value of this row, made if there is none.
    pub(super) fn entry(&mut self, slot: u32, make: impl FnOnce() -> T) -> &mut T {
        let at = slot as usize;
        if at >= self.values.len() {
            self.values.resize_with(at + 1, || None);
        }
        let value = &mut self.values[at];
        if value.is_none() {
            self.used += 1;
        }
        value.get_or_insert_with(make)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.values.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let gone = self.values.get_mut(slot as usize)?.take();
        self.used -= usize::from(gone.is_some());
        gone
    }

    /// Forgets what `keep` says no to.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for value in &mut self.values {
            if value.as_ref().is_some_and(|value| !keep(value)) {
                *value = None;
                self.used -= 1;
            }
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_not_counted() {
        let mut slots = Slots::new();
        assert_eq!(*slots.entry(5, || 50), 50);
        assert_eq!(*slots.entry(2, || 20), 20);
        assert_eq!(*slots.entry(5, || 51), 50);
        assert_eq!((slots.len(), slots.get_mut(3)), (2, None));
        assert_eq!(slots.get_mut(9), None);
        assert_eq!(slots.values().copied().collect::<Vec<_>>(), [20, 50]);
        slots.retain(|&value| value != 20);
        assert_eq!(
            (slots.len(), slots.remove(5), slots.remove(5)),
            (1, Some(50), None)
        );
        assert_eq!((slots.len(), slots.remove(77)), (0, None));
    }
}
