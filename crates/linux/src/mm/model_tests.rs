//! Random sequences of calls and accesses against a model that has one entry per page.

use std::collections::BTreeMap;

use kvmlet_abi::{Errno, PAGE_SIZE};
use proptest::prelude::*;

use kvmlet_mem::PendingFlush;

use super::fixture::{Fixture, MIB};
use super::*;

/// The window that calls work in: three 2 MiB blocks, so that large mappings get huge pages.
const BASE: u64 = 0x4000_0000;
const PAGES: u64 = 1536;
const HEAP: u64 = 0x2000_0000;

/// The place where a page's content lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Home {
    /// Its own byte.
    Private(u8),
    /// A page of a shared object.
    Shared { object: u64, page: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    prot: u32,
    home: Home,
}

/// One entry per mapped page, and the contents and sizes of shared objects.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, Page>,
    objects: BTreeMap<(u64, u64), u8>,
    sizes: BTreeMap<u64, u64>,
    next_object: u64,
}

impl Model {
    fn access(&self, page: u64, write: bool) -> Result<Home, FaultError> {
        let Page { prot, home } = *self.pages.get(&page).ok_or(FaultError::MAPERR)?;
        if prot == 0 || write && prot & 2 == 0 {
            return Err(FaultError::ACCERR);
        }
        match home {
            Home::Shared { object, page } if page >= self.sizes[&object] => Err(FaultError::Bus),
            home => Ok(home),
        }
    }

    fn load(&self, page: u64) -> Result<u8, FaultError> {
        Ok(match self.access(page, false)? {
            Home::Private(byte) => byte,
            Home::Shared { object, page } => *self.objects.get(&(object, page)).unwrap_or(&0),
        })
    }

    fn store(&mut self, page: u64, byte: u8) -> Result<(), FaultError> {
        match self.access(page, true)? {
            Home::Private(_) => self.pages.get_mut(&page).unwrap().home = Home::Private(byte),
            Home::Shared { object, page } => {
                self.objects.insert((object, page), byte);
            }
        }
        Ok(())
    }

    fn unmap(&mut self, start: u64, len: u64) {
        for page in start..start + len {
            self.pages.remove(&page);
        }
    }

    /// True if the pages can only be one VMA: the same rights, and contents that follow each other.
    fn is_one(&self, start: u64, len: u64) -> bool {
        let Some(first) = self.pages.get(&start) else {
            return false;
        };
        (0..len).all(|delta| {
            self.pages.get(&(start + delta)).is_some_and(|page| {
                page.prot == first.prot
                    && match (first.home, page.home) {
                        (Home::Private(_), Home::Private(_)) => true,
                        (
                            Home::Shared {
                                object: a,
                                page: from,
                            },
                            Home::Shared {
                                object: b,
                                page: at,
                            },
                        ) => a == b && at == from + delta,
                        _ => false,
                    }
            })
        })
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        start: u64,
        len: u64,
        prot: u32,
        shared: bool,
    },
    Unmap {
        start: u64,
        len: u64,
    },
    Protect {
        start: u64,
        len: u64,
        prot: u32,
    },
    Remap {
        start: u64,
        old: u64,
        new: u64,
        to: u64,
        keep: bool,
    },
    DontNeed {
        start: u64,
        len: u64,
    },
    Populate {
        start: u64,
        len: u64,
    },
    Store {
        page: u64,
        byte: u8,
    },
    Load {
        page: u64,
    },
    Break {
        pages: u64,
    },
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let small = (0..PAGES - 64, 1..64u64);
    let large = prop_oneof![
        Just((0, PAGES)),
        Just((512, 1024)),
        Just((0, 512)),
        Just((700, 600))
    ];
    prop_oneof![3 => small, 1 => large]
}

fn op() -> impl Strategy<Value = Op> {
    let prot = prop_oneof![6 => Just(3u32), 2 => Just(1), 1 => Just(0), 1 => Just(7)];
    let place = (0..PAGES).prop_map(|page| if page % 3 == 0 { page / 64 * 64 } else { page });
    prop_oneof![
        4 => (range(), prot.clone(), prop::bool::weighted(0.2))
            .prop_map(|((start, len), prot, shared)| Op::Map { start, len, prot, shared }),
        2 => range().prop_map(|(start, len)| Op::Unmap { start, len }),
        3 => (range(), prot).prop_map(|((start, len), prot)| Op::Protect { start, len, prot }),
        2 => (range(), 1..128u64, 0..PAGES, prop::bool::weighted(0.3))
            .prop_map(|((start, old), new, to, keep)| Op::Remap { start, old, new, to, keep }),
        1 => range().prop_map(|(start, len)| Op::DontNeed { start, len }),
        1 => range().prop_map(|(start, len)| Op::Populate { start, len }),
        8 => (place.clone(), any::<u8>()).prop_map(|(page, byte)| Op::Store { page, byte }),
        8 => place.prop_map(|page| Op::Load { page }),
        1 => (0..64u64).prop_map(|pages| Op::Break { pages }),
    ]
}

fn addr(page: u64) -> u64 {
    BASE + page * PAGE_SIZE
}

/// Does the operation to both, and compares what they answer.
fn step(f: &mut Fixture, model: &mut Model, op: &Op) {
    match *op {
        Op::Map {
            start,
            len,
            prot,
            shared,
        } => {
            let kind = if shared { 1 } else { 2 };
            f.map(addr(start), len * PAGE_SIZE, prot, kind | 0x10)
                .unwrap();
            let object = model.next_object;
            if shared {
                model.next_object += 1;
                model.sizes.insert(object, len);
            }
            for delta in 0..len {
                let home = if shared {
                    Home::Shared {
                        object,
                        page: delta,
                    }
                } else {
                    Home::Private(0)
                };
                model.pages.insert(start + delta, Page { prot, home });
            }
        }
        Op::Unmap { start, len } => {
            f.space().munmap(addr(start), len * PAGE_SIZE).unwrap();
            model.unmap(start, len);
        }
        Op::Protect { start, len, prot } => {
            let result = f.space().mprotect(addr(start), len * PAGE_SIZE, prot);
            let mapped = (start..start + len).take_while(|page| model.pages.contains_key(page));
            let mapped = mapped.count() as u64;
            let expected = if mapped == len {
                Ok(())
            } else {
                Err(Errno::ENOMEM)
            };
            assert_eq!(result, expected);
            for page in start..start + mapped {
                model.pages.get_mut(&page).unwrap().prot = prot;
            }
        }
        Op::Remap {
            start,
            old,
            new,
            to,
            keep,
        } => remap(f, model, (start, old), new, to, keep),
        Op::DontNeed { start, len } => {
            let whole = (start..start + len).all(|page| model.pages.contains_key(&page));
            let result = f
                .space()
                .advise(addr(start), len * PAGE_SIZE, Advice::DontNeed);
            assert_eq!(result.is_ok(), whole);
            for page in start..start + len {
                if let Some(Page {
                    home: Home::Private(byte),
                    ..
                }) = model.pages.get_mut(&page)
                {
                    *byte = 0;
                }
            }
        }
        Op::Populate { start, len } => {
            let result = f
                .space()
                .advise(addr(start), len * PAGE_SIZE, Advice::PopulateRead);
            let readable = (start..start + len).all(|page| model.load(page).is_ok());
            assert_eq!(result.is_ok(), readable);
        }
        Op::Store { page, byte } => {
            assert_eq!(f.store(addr(page), byte), model.store(page, byte));
        }
        Op::Load { page } => assert_eq!(f.load(addr(page)), model.load(page)),
        Op::Break { pages } => {
            let end = HEAP + pages * PAGE_SIZE;
            assert_eq!(f.space().brk(end), end);
            let result = f.load(end.wrapping_sub(1));
            assert_eq!(result.is_ok(), pages > 0);
            assert_eq!(f.load(end), Err(FaultError::MAPERR));
        }
    }
}

/// MREMAP_FIXED, with and without MREMAP_DONTUNMAP.
fn remap(f: &mut Fixture, model: &mut Model, from: (u64, u64), new: u64, to: u64, keep: bool) {
    let (start, old) = from;
    let new = if keep { old } else { new };
    let to = to.min(PAGES - new.min(PAGES));
    let apart = start + old <= to || to + new <= start;
    if !apart || new > PAGES || !model.is_one(start, old) {
        return;
    }
    let result = f.space().remap(&RemapRequest {
        addr: addr(start),
        old_len_bytes: old * PAGE_SIZE,
        new_len_bytes: new * PAGE_SIZE,
        flags: if keep { 7 } else { 3 },
        new_addr: addr(to),
    });
    assert_eq!(result, Ok(addr(to)));
    let first = model.pages[&start];
    let moved: Vec<Page> = (0..new)
        .map(|delta| match model.pages.get(&(start + delta)) {
            Some(page) if delta < old => *page,
            _ => Page {
                prot: first.prot,
                home: match first.home {
                    Home::Private(_) => Home::Private(0),
                    Home::Shared { object, page } => Home::Shared {
                        object,
                        page: page + delta,
                    },
                },
            },
        })
        .collect();
    if !keep {
        model.unmap(start, old);
    }
    for page in start..start + old {
        if let Some(Page {
            home: Home::Private(byte),
            ..
        }) = model.pages.get_mut(&page)
        {
            *byte = 0;
        }
    }
    for (delta, page) in moved.into_iter().enumerate() {
        model.pages.insert(to + delta as u64, page);
    }
}

proptest! {
    // By default 16: each case is long. PROPTEST_CASES is what the default is counted from.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 16))]

    #[test]
    fn the_address_space_agrees_with_one_entry_per_page(ops in prop::collection::vec(op(), 1..60)) {
        let mut f = Fixture::new(64 * MIB);
        let mut model = Model::default();
        f.mm.set_brk_start(HEAP);
        for op in &ops {
            step(&mut f, &mut model, op);
            f.check();
            if let PendingFlush::All = f.tables().pending() {
                let pending = f.take_pending();
                f.mem.flush_discharged(&pending);
            }
        }
        for page in 0..PAGES {
            prop_assert_eq!(f.load(addr(page)), model.load(page), "page {}", page);
        }
        f.check();
        f.check_no_leak();
        prop_assert_eq!(f.mem.used_bytes(), f.empty_bytes);
    }
}
