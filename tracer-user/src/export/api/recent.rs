//! The newest incidents, kept in memory for the API.

use std::collections::{HashMap, VecDeque};

use crate::detectors::{Evidence, Incident};

/// Incidents that are kept by default; some 10 KiB each at most.
pub const KEPT: usize = 1024;

/// What names an incident: docs/incidents.md.
type Key = (u64, u32, String, Evidence);

fn key(incident: &Incident) -> Key {
    let Incident {
        birth,
        epoch,
        cause,
        evidence,
        ..
    } = incident;
    (*birth, *epoch, cause.clone(), *evidence)
}

/// A bounded ring of incidents, each once, as it was told last.
#[derive(Debug)]
pub struct Recent {
    most: usize,
    /// Places count from 1 and are never used again.
    next: u64,
    kept: VecDeque<(u64, Incident)>,
    places: HashMap<Key, u64>,
    forgotten: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Self::new(KEPT)
    }
}

impl Recent {
    /// Room for `most` incidents.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            next: 1,
            kept: VecDeque::new(),
            places: HashMap::new(),
            forgotten: 0,
        }
    }

    /// Takes in an incident that was told: a new one, or one whose numbers are final now.
    pub fn note(&mut self, incident: Incident) {
        let key = key(&incident);
        if let Some(place) = self.places.get(&key) {
            let at = self.kept.partition_point(|(other, _)| other < place);
            if let Some((_, kept)) = self.kept.get_mut(at) {
                *kept = incident;
                return;
            }
        }
        if self.kept.len() == self.most
            && let Some((_, oldest)) = self.kept.pop_front()
        {
            self.places.remove(&self::key(&oldest));
            self.forgotten += 1;
        }
        self.places.insert(key, self.next);
        self.kept.push_back((self.next, incident));
        self.next += 1;
    }

    /// Incidents with their places, newest first; with a place, only those before it.
    pub fn newest_before(&self, place: Option<u64>) -> impl Iterator<Item = (u64, &Incident)> {
        let until = place.map_or(self.kept.len(), |place| {
            self.kept.partition_point(|&(other, _)| other < place)
        });
        self.kept
            .range(..until)
            .rev()
            .map(|(place, incident)| (*place, incident))
    }

    /// How many are not kept any more.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detectors::{State, example};

    fn of_epoch(epoch: u32, state: State) -> Incident {
        Incident {
            state,
            epoch,
            ..example()
        }
    }

    #[test]
    fn the_oldest_fall_out_and_are_counted() {
        let mut recent = Recent::new(3);
        for epoch in 1..=5 {
            recent.note(of_epoch(epoch, State::Open));
        }
        let epochs: Vec<_> = recent
            .newest_before(None)
            .map(|(_, incident)| incident.epoch)
            .collect();
        assert_eq!((epochs, recent.forgotten()), (vec![5, 4, 3], 2));
        // The last word about one that fell out is as good as new.
        recent.note(of_epoch(1, State::Closed));
        assert_eq!((recent.kept.len(), recent.places.len()), (3, 3));
        assert_eq!(recent.forgotten(), 3);
    }

    #[test]
    fn the_last_word_takes_the_place_of_the_first() {
        let mut recent = Recent::new(3);
        recent.note(of_epoch(1, State::Open));
        recent.note(of_epoch(2, State::Open));
        recent.note(of_epoch(1, State::Closed));
        let states: Vec<_> = recent
            .newest_before(None)
            .map(|(place, incident)| (place, incident.state))
            .collect();
        assert_eq!(states, [(2, State::Open), (1, State::Closed)]);
        let older: Vec<_> = recent.newest_before(Some(2)).map(|(place, _)| place).collect();
        assert_eq!((older, recent.forgotten()), (vec![1], 0));
    }
}
