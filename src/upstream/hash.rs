//! Consistent hashing by rendezvous: every target draws a number for the key, the highest wins. Taking a target away moves
//! only what it had, a new one takes only its share, each from all others alike, and weights are exact; no ring has to be
//! built or kept. A pick costs one logarithm for each target.
//!
//! The functions are fixed, so that several processes agree on where a key belongs.

use std::net::IpAddr;

/// A target may have this much of its share of all requests in flight, in percent, before a key goes to its next one.
const BOUND: u64 = 125;

/// FNV-1a, then mixed: its own last bytes hardly reach the upper bits.
pub fn of_bytes(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Of a client's address; IPv4 in IPv6 is IPv4.
pub fn of_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => of_bytes(&ip.octets()),
        IpAddr::V6(ip) => of_bytes(&ip.octets()),
    }
}

/// The finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a target draws for a key: exponential with its weight for rate, so that the shares are as the weights.
fn draw(key: u64, seed: u64, weight: u32) -> f64 {
    // 53 bits, as many as a float holds; never 0.
    let uniform = ((mix(key ^ seed) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    f64::from(weight) / -uniform.ln()
}

/// The target of `key`, by the targets' `seeds` (the hash of each address). Given `in_flight`, one that has its bounded
/// share of the load already is passed over.
pub(super) fn pick(
    key: u64,
    seeds: &[u64],
    weights: &[u32],
    in_flight: Option<&dyn Fn(usize) -> usize>,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let candidates = || (0..seeds.len()).filter(|&index| weights[index] > 0 && usable(index));
    let (mut load, mut weight) = (0, 0);
    if let Some(in_flight) = in_flight {
        for index in candidates() {
            load += in_flight(index) as u64;
            weight += u64::from(weights[index]);
        }
    }
    let room = |index: usize| {
        in_flight.is_none_or(|in_flight| {
            // ceil(1.25 * (load + 1) * share): always room for one more somewhere.
            let share = BOUND.saturating_mul(load + 1) * u64::from(weights[index]);
            (in_flight(index) as u64) < share.div_ceil(weight.max(1) * 100)
        })
    };
    let best = |fits: &dyn Fn(usize) -> bool| {
        let draws = candidates()
            .filter(|&index| fits(index))
            .map(|index| (index, draw(key, seeds[index], weights[index])));
        draws.max_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0)
    };
    // Counts change meanwhile; affinity is then better than nothing.
    best(&room).or_else(|| best(&|_| true))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seeds(count: usize) -> Vec<u64> {
        (0..count)
            .map(|i| of_bytes(format!("10.0.0.{i}:80").as_bytes()))
            .collect()
    }

    fn key(number: u64) -> u64 {
        of_bytes(&number.to_be_bytes())
    }

    proptest! {
        #[test]
        fn only_the_keys_of_a_removed_target_move(
            weights in prop::collection::vec(1_u32..1000, 2..12),
            gone in 0_usize..12,
            keys in prop::collection::vec(any::<u64>(), 50),
        ) {
            let gone = gone % weights.len();
            let seeds = seeds(weights.len());
            for key in keys {
                let before = pick(key, &seeds, &weights, None, |_| true);
                let after = pick(key, &seeds, &weights, None, |i| i != gone);
                prop_assert_ne!(after, Some(gone));
                prop_assert!(before == Some(gone) || before == after);
            }
        }

        #[test]
        fn nobody_gets_more_than_the_bound(
            weights in prop::collection::vec(1_u32..10, 1..8),
            requests in 1_usize..400,
            distinct in 1_u64..5,
        ) {
            let seeds = seeds(weights.len());
            let mut load = vec![0_usize; weights.len()];
            for number in 0..requests as u64 {
                let in_flight = |i: usize| load[i];
                let picked = pick(key(number % distinct), &seeds, &weights, Some(&in_flight), |_| true);
                load[picked.unwrap_or_default()] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (load, weight) in load.iter().zip(&weights) {
                let share = requests as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!(*load as f64 <= (share * 1.25).ceil());
            }
        }
    }

    #[test]
    fn shares_are_as_the_weights() {
        let (seeds, weights) = (seeds(4), [1, 2, 3, 4]);
        let mut got = [0_u32; 4];
        for number in 0..20_000 {
            if let Some(index) = pick(key(number), &seeds, &weights, None, |_| true) {
                got[index] += 1;
            }
        }
        for (got, weight) in got.iter().zip(weights) {
            assert!(got.abs_diff(weight * 2_000) < 250, "{got} of {weight}/10");
        }
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let (v4, v6) = (
            "192.0.2.1".parse().map(of_ip),
            "::ffff:192.0.2.1".parse().map(of_ip),
        );
        assert_eq!(v4, v6);
        assert_eq!(pick(1, &[], &[], None, |_| true), None);
    }
}
