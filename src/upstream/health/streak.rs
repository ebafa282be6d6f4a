//! When the answers of checks are believed: a state machine without clock or I/O.

/// How many answers in a row it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) healthy_after: u32,
    pub(super) unhealthy_after: u32,
}

/// What checks have said so far. A target that was never checked is up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Streak {
    down: bool,
    /// The last answer; none before the first.
    passed: Option<bool>,
    /// How many answers in a row were like the last one.
    run: u32,
}

/// What an answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Up,
    Down,
}

impl Streak {
    /// Takes an answer. The run counts over changes of the rules: only the number it is held against is new.
    pub(super) fn take(&mut self, passed: bool, rules: Rules) -> Option<Change> {
        self.run = match self.passed {
            Some(before) if before == passed => self.run.saturating_add(1),
            _ => 1,
        };
        self.passed = Some(passed);
        if passed && self.down && self.run >= rules.healthy_after {
            self.down = false;
            return Some(Change::Up);
        }
        if !passed && !self.down && self.run >= rules.unhealthy_after {
            self.down = true;
            return Some(Change::Down);
        }
        None
    }

    pub(super) fn is_down(self) -> bool {
        self.down
    }

    /// It is up, and the last check agrees.
    pub(super) fn is_settled(self) -> bool {
        !self.down && self.passed == Some(true)
    }

    /// The last answer, and how many in a row were like it.
    pub(super) fn last(self) -> Option<(bool, u32)> {
        self.passed.map(|passed| (passed, self.run))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by looking back over all answers.
    fn naive(answers: &[bool], rules: Rules) -> bool {
        let mut down = false;
        for end in 1..=answers.len() {
            let tail = |n: u32, passed| {
                let n = n as usize;
                end >= n && answers[end - n..end].iter().all(|a| *a == passed)
            };
            if down && tail(rules.healthy_after, true) {
                down = false;
            } else if !down && tail(rules.unhealthy_after, false) {
                down = true;
            }
        }
        down
    }

    proptest! {
        #[test]
        fn a_state_changes_with_the_nth_equal_answer_in_a_row_and_no_sooner(
            answers in prop::collection::vec(any::<bool>(), 0..60),
            healthy_after in 1_u32..5,
            unhealthy_after in 1_u32..5,
        ) {
            let rules = Rules { healthy_after, unhealthy_after };
            let mut streak = Streak::default();
            for end in 0..answers.len() {
                let before = streak.is_down();
                let change = streak.take(answers[end], rules);
                let down = naive(&answers[..=end], rules);
                prop_assert_eq!(streak.is_down(), down);
                let told = match (before, down) {
                    (false, true) => Some(Change::Down),
                    (true, false) => Some(Change::Up),
                    _ => None,
                };
                prop_assert_eq!(change, told);
                let run = answers[..=end].iter().rev().take_while(|a| **a == answers[end]).count();
                prop_assert_eq!(streak.last(), Some((answers[end], run as u32)));
                prop_assert_eq!(streak.is_settled(), !down && answers[end]);
            }
        }
    }

    #[test]
    fn stricter_rules_take_the_run_as_it_is() {
        let lenient = Rules {
            healthy_after: 1,
            unhealthy_after: 10,
        };
        let strict = Rules {
            healthy_after: 1,
            unhealthy_after: 3,
        };
        let mut streak = Streak::default();
        for _ in 0..5 {
            assert_eq!(streak.take(false, lenient), None);
        }
        assert_eq!(streak.take(false, strict), Some(Change::Down));
        assert_eq!(streak.take(true, strict), Some(Change::Up));
    }
}
