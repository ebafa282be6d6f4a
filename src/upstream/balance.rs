//! Which target gets a request: policies as pure functions over slices of weights. Who is usable (up, not tried yet) is
//! the caller's knowledge; a weight of 0 is never picked.

/// Smooth weighted round robin (nginx's way): every usable target gains its weight, the richest is picked and pays the
/// sum. Over one cycle (the sum of weights) each gets exactly its weight, and the picks of a heavy one are spread out.
///
/// `current` holds the state between picks and is as long as `weights`; it starts as zeros.
pub(super) fn smooth(
    current: &mut [i64],
    weights: &[u32],
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut total = 0_i64;
    let mut best: Option<(usize, i64)> = None;
    for (index, (credit, &weight)) in current.iter_mut().zip(weights).enumerate() {
        if weight == 0 || !usable(index) {
            continue;
        }
        *credit += i64::from(weight);
        total += i64::from(weight);
        if best.is_none_or(|(_, most)| *credit > most) {
            best = Some((index, *credit));
        }
    }
    let (index, _) = best?;
    current[index] -= total;
    Some(index)
}

/// The target with the fewest requests in flight for its weight. Equal ones take turns: the search begins at `start`,
/// which the caller moves on by one per pick.
pub(super) fn least_requests(
    weights: &[u32],
    in_flight: impl Fn(usize) -> usize,
    start: usize,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let mut best: Option<(usize, u64, u64)> = None;
    let count = weights.len();
    let start = start.checked_rem(count)?;
    for index in (start..count).chain(0..start) {
        let weight = u64::from(weights[index]);
        if weight == 0 || !usable(index) {
            continue;
        }
        let load = in_flight(index) as u64;
        // load / weight < least / of, without division.
        if best.is_none_or(|(_, least, of)| load.saturating_mul(of) < least.saturating_mul(weight))
        {
            best = Some((index, load, weight));
        }
    }
    best.map(|(index, _, _)| index)
}

/// By weight and chance; `chance(n)` is a number below `n`.
pub(super) fn random(
    weights: &[u32],
    mut chance: impl FnMut(u64) -> u64,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let fits = |(index, weight): &(usize, &u32)| **weight > 0 && usable(*index);
    let total: u64 = weights
        .iter()
        .enumerate()
        .filter(fits)
        .map(|(_, w)| u64::from(*w))
        .sum();
    if total == 0 {
        return None;
    }
    let mut left = chance(total);
    let mut last = None;
    // Who is usable may change between the two looks: then the last one takes what is left.
    for (index, weight) in weights.iter().enumerate().filter(fits) {
        last = Some(index);
        match left.checked_sub(u64::from(*weight)) {
            Some(rest) => left = rest,
            None => break,
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_heavy_target_is_interleaved_not_bunched() {
        let mut current = [0; 3];
        let picks: Vec<_> = (0..7)
            .filter_map(|_| smooth(&mut current, &[5, 1, 1], |_| true))
            .collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(current, [0; 3]);
    }

    #[test]
    fn nothing_usable_is_nothing() {
        assert_eq!(smooth(&mut [0; 2], &[0, 0], |_| true), None);
        assert_eq!(smooth(&mut [0; 2], &[1, 1], |_| false), None);
        assert_eq!(least_requests(&[], |_| 0, 3, |_| true), None);
        assert_eq!(least_requests(&[0, 4], |_| 0, 0, |i| i == 0), None);
    }

    #[test]
    fn equal_loads_take_turns_and_weights_scale_the_load() {
        let picks: Vec<_> = (0..4)
            .filter_map(|start| least_requests(&[1, 1], |_| 2, start, |_| true))
            .collect();
        assert_eq!(picks, [0, 1, 0, 1]);
        // 5/10 is less than 1/1.
        assert_eq!(
            least_requests(&[1, 10], |i| [1, 5][i], 0, |_| true),
            Some(1)
        );
    }

    proptest! {
        #[test]
        fn every_chance_of_a_random_pick_belongs_to_one_by_its_weight(
            targets in prop::collection::vec((0_u32..9, prop::bool::weighted(0.8)), 0..8),
        ) {
            let weights: Vec<u32> = targets.iter().map(|t| t.0).collect();
            let total: u32 = targets.iter().filter(|t| t.1).map(|t| t.0).sum();
            let mut got = vec![0; weights.len()];
            for chance in 0..u64::from(total) {
                match random(&weights, |_| chance, |i| targets[i].1) {
                    Some(index) => got[index] += 1,
                    None => prop_assert!(false, "nothing picked although the total is {total}"),
                }
            }
            for (got, (weight, usable)) in got.iter().zip(&targets) {
                prop_assert_eq!(*got, if *usable { *weight } else { 0 });
            }
        }

        #[test]
        fn shares_match_weights_over_a_cycle_from_any_offset(
            weights in prop::collection::vec(0_u32..20, 1..8),
            down in prop::collection::vec(prop::bool::weighted(0.2), 8),
            offset in 0_usize..50,
        ) {
            let usable = |i: usize| !down[i];
            let mut current = vec![0; weights.len()];
            for _ in 0..offset {
                smooth(&mut current, &weights, usable);
            }
            let total: u32 = (0..weights.len()).filter(|&i| usable(i)).map(|i| weights[i]).sum();
            let mut got = vec![0_u32; weights.len()];
            for _ in 0..total {
                match smooth(&mut current, &weights, usable) {
                    Some(i) => got[i] += 1,
                    None => prop_assert!(false, "nothing picked although the total is {total}"),
                }
            }
            for i in 0..weights.len() {
                prop_assert_eq!(got[i], if usable(i) { weights[i] } else { 0 });
            }
        }

        #[test]
        fn the_pick_has_the_least_load_for_its_weight(
            targets in prop::collection::vec((0_u32..5, 0_usize..10, prop::bool::weighted(0.8)), 1..8),
            start in 0_usize..20,
        ) {
            let weights: Vec<u32> = targets.iter().map(|t| t.0).collect();
            let picked = least_requests(&weights, |i| targets[i].1, start, |i| targets[i].2);
            let usable: Vec<usize> = (0..targets.len()).filter(|&i| weights[i] > 0 && targets[i].2).collect();
            prop_assert_eq!(picked.is_none(), usable.is_empty());
            if let Some(p) = picked {
                prop_assert!(usable.contains(&p));
                for i in usable {
                    prop_assert!(targets[p].1 * weights[i] as usize <= targets[i].1 * weights[p] as usize);
                }
            }
        }
    }
}
