//! Operations on [`Vector`] that the library gets wrong.

use imbl::Vector;

/// Keeps the elements for which `keep` holds, in their order.
///
/// `Vector::retain` of imbl 7.0.2 loses and duplicates elements once they lie in several chunks.
pub fn retain<T: Clone>(elements: &mut Vector<T>, mut keep: impl FnMut(&T) -> bool) {
    let mut gone = elements.iter().enumerate().filter(|(_, one)| !keep(one));
    let Some((first, _)) = gone.next() else {
        return;
    };
    let rest: Vec<usize> = gone.map(|(at, _)| at).collect();
    if rest.is_empty() {
        elements.remove(first);
        return;
    }
    let mut gone = core::iter::once(first).chain(rest).peekable();
    let all = core::mem::take(elements).into_iter().enumerate();
    *elements = all
        .filter(|(at, _)| gone.next_if_eq(at).is_none())
        .map(|(_, one)| one)
        .collect();
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Back,
        Front,
        Rotate,
        Without(prop::sample::Index),
        WithoutMultiplesOf(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Back),
            4 => Just(Step::Front),
            2 => Just(Step::Rotate),
            2 => any::<prop::sample::Index>().prop_map(Step::Without),
            1 => (5u32..9).prop_map(Step::WithoutMultiplesOf),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn retain_is_that_of_a_deque(steps in prop::collection::vec(step(), 0..600)) {
            let (mut ours, mut model) = (Vector::new(), VecDeque::new());
            for (number, step) in (0u32..).zip(steps) {
                match step {
                    Step::Back => {
                        ours.push_back(number);
                        model.push_back(number);
                    }
                    Step::Front => {
                        ours.push_front(number);
                        model.push_front(number);
                    }
                    Step::Rotate => {
                        ours.pop_front().into_iter().for_each(|one| ours.push_back(one));
                        model.pop_front().into_iter().for_each(|one| model.push_back(one));
                    }
                    Step::Without(at) if !model.is_empty() => {
                        let one = model[at.index(model.len())];
                        retain(&mut ours, |other| *other != one);
                        model.retain(|other| *other != one);
                    }
                    Step::Without(_) => {}
                    Step::WithoutMultiplesOf(of) => {
                        retain(&mut ours, |other| !other.is_multiple_of(of));
                        model.retain(|other| !other.is_multiple_of(of));
                    }
                }
                prop_assert!(ours.iter().eq(&model));
            }
        }
    }
}
