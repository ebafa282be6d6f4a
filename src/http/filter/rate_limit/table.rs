//! Levels by key, no more of them than agreed. Who is forgotten is the one of a few at hand that has used least of its
//! burst: one who is at the limit can't get rid of its level by flooding the table with other keys, which are always
//! emptier than its own.

use std::collections::HashMap;

use super::level::{Level, Quota};

/// How many are looked at for one to forget.
const LOOK: usize = 16;

/// The levels of one shard.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<(u128, Level)>,
    places: HashMap<u128, usize>,
    /// Where the next look begins: all come round.
    hand: usize,
}

impl Table {
    /// Counts a request of `key` at `now`, remembering at most `most` keys.
    pub(super) fn count(
        &mut self,
        key: u128,
        quota: &Quota,
        most: usize,
        now: u64,
    ) -> Result<(), u64> {
        if let Some(place) = self.places.get(&key)
            && let Some((_, level)) = self.entries.get_mut(*place)
        {
            return quota.count(level, now);
        }
        // More than one at a time only after a swap to a smaller table.
        let mut spare = 2;
        while self.entries.len() >= most.max(1) && spare > 0 {
            self.forget_one(quota, now);
            spare -= 1;
        }
        let mut level = Level::default();
        let counted = quota.count(&mut level, now);
        self.places.insert(key, self.entries.len());
        self.entries.push((key, level));
        counted
    }

    /// As if the last request of `key` had not been counted.
    pub(super) fn give_back(&mut self, key: u128) {
        if let Some(place) = self.places.get(&key)
            && let Some((_, level)) = self.entries.get_mut(*place)
        {
            level.give_back();
        }
    }

    fn forget_one(&mut self, quota: &Quota, now: u64) {
        let len = self.entries.len();
        let looked = (0..LOOK.min(len)).map(|step| (self.hand + step) % len);
        let emptiest = looked.min_by_key(|place| {
            let level = self.entries.get(*place).map(|(_, level)| *level);
            level.map_or(u64::MAX, |level| quota.used(level, now))
        });
        let Some(place) = emptiest else { return };
        self.hand = (self.hand + LOOK) % len;
        let (key, _) = self.entries.swap_remove(place);
        self.places.remove(&key);
        if let Some((moved, _)) = self.entries.get(place) {
            self.places.insert(*moved, place);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const QUOTA: Quota = Quota {
        count: 1,
        seconds: 60,
        burst: 3,
    };

    #[test]
    fn two_keys_count_apart() {
        let mut table = Table::default();
        for _ in 0..3 {
            assert!(table.count(1, &QUOTA, 10, 0).is_ok());
        }
        assert!(table.count(1, &QUOTA, 10, 0).is_err());
        assert!(table.count(2, &QUOTA, 10, 0).is_ok());
        table.give_back(1);
        assert!(table.count(1, &QUOTA, 10, 0).is_ok());
    }

    #[test]
    fn who_is_at_the_limit_is_not_forgotten_in_a_flood_of_others() {
        let mut table = Table::default();
        for _ in 0..3 {
            table.count(1, &QUOTA, 100, 0).unwrap();
        }
        for key in 2..10_000 {
            let _ = table.count(key, &QUOTA, 100, key as u64);
            assert!(table.entries.len() <= 100 && table.places.len() == table.entries.len());
        }
        assert!(table.count(1, &QUOTA, 100, 20_000).is_err());
    }

    #[test]
    fn a_smaller_table_gets_there() {
        let mut table = Table::default();
        for key in 0..100 {
            table.count(key, &QUOTA, 100, 0).unwrap();
        }
        for key in 100..300 {
            table.count(key, &QUOTA, 10, 0).unwrap();
        }
        assert_eq!(table.entries.len(), 10);
    }

    proptest! {
        #[test]
        fn a_table_that_is_large_enough_is_one_level_per_key(
            requests in prop::collection::vec((0..20_u128, 0..40_000_000_000_u64), 1..200),
        ) {
            let (mut table, mut apart, mut now) = (Table::default(), HashMap::new(), 0);
            for (key, step) in requests {
                now += step;
                let level = apart.entry(key).or_insert_with(Level::default);
                prop_assert_eq!(table.count(key, &QUOTA, 20, now), QUOTA.count(level, now));
            }
        }
    }
}
