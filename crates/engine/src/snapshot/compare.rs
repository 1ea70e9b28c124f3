//! All that a request could change, compared with what was there before it: for tests.

use std::collections::BTreeMap;

use kvmlet_abi::layout::{USER_END, USER_START};
use kvmlet_abi::{Gva, PAGE_SIZE};
use kvmlet_mem::PteFlags;

use crate::sandbox::Sandbox;

/// A page as the program sees it: its rights but for writing, and a hash of its content. The right
/// to write is left out because copies have it and frozen pages have not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    rights: PteFlags,
    contents: u64,
}

/// All that a request could change.
#[derive(Debug)]
pub(crate) struct State {
    pub kernel: String,
    host: String,
    pages: BTreeMap<u64, Page>,
    pub writable: BTreeMap<u64, bool>,
    used_bytes: (u64, u64),
}

fn hash(bytes: &[u8]) -> u64 {
    bytes
        .chunks_exact(8)
        .fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            (hash ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(23)
        })
}

pub(crate) fn state(sandbox: &Sandbox) -> State {
    let personality = &sandbox.personality;
    let machine = &personality.machine;
    let mut kernel = personality.kernel.clone();
    // Meant to differ.
    kernel.channel.generation = 0;
    let mut pages = BTreeMap::new();
    let mut writable = BTreeMap::new();
    let mut bytes = vec![0; PAGE_SIZE as usize];
    let (_, tables) = machine.spaces.iter().next().unwrap();
    tables
        .for_each_leaf(
            &machine.memory,
            USER_START,
            USER_END.0 - USER_START.0,
            |start, leaf| {
                for at in (start.0..start.0 + leaf.size.bytes()).step_by(PAGE_SIZE as usize) {
                    let gpa = leaf.gpa_of(Gva(at));
                    // The time is in there.
                    if gpa == sandbox.setup.vdso.data {
                        continue;
                    }
                    machine.memory.read(gpa, &mut bytes).unwrap();
                    let page = Page {
                        rights: leaf.flags & !PteFlags::WRITE,
                        contents: hash(&bytes),
                    };
                    pages.insert(at, page);
                    writable.insert(at, leaf.flags.contains(PteFlags::WRITE));
                }
            },
        )
        .unwrap();
    let host = &personality.host;
    State {
        kernel: format!("{kernel:#?}"),
        host: format!(
            "{:#?} {} {:?} {:?}",
            host.files, host.next_id, host.captured, host.report
        ),
        pages,
        writable,
        used_bytes: (
            machine.memory.resident_bytes(),
            machine.memory.limit_bytes(),
        ),
    }
}

/// The first lines that differ.
pub(crate) fn first_difference(one: &str, two: &str) -> Option<String> {
    let differs = |(_, (one, two)): &(usize, (&str, &str))| one != two;
    let pairs = one.lines().zip(two.lines()).enumerate();
    let lines = pairs.filter(differs).take(5);
    let lines: Vec<String> = lines
        .map(|(number, (one, two))| format!("line {number}: {one} -> {two}"))
        .collect();
    let same = lines.is_empty() && one.lines().count() == two.lines().count();
    (!same).then(|| lines.join("\n"))
}

pub(crate) fn differing_pages(one: &State, two: &State) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = one.pages.keys().chain(two.pages.keys()).collect();
    keys.into_iter()
        .filter(|at| one.pages.get(at) != two.pages.get(at))
        .map(|at| {
            format!(
                "{at:#x}: {:?} -> {:?}",
                one.pages.get(at),
                two.pages.get(at)
            )
        })
        .take(20)
        .collect()
}

pub(crate) fn check_equal(clean: &State, found: &State, after: &str) {
    assert_eq!(
        first_difference(&clean.kernel, &found.kernel),
        None,
        "kernel, after {after}"
    );
    assert_eq!(
        first_difference(&clean.host, &found.host),
        None,
        "host, after {after}"
    );
    assert_eq!(
        differing_pages(clean, found),
        Vec::<String>::new(),
        "pages, after {after}"
    );
    assert_eq!(
        clean.used_bytes, found.used_bytes,
        "memory used, after {after}"
    );
}
