//! Headers made by hand, headers made at random, and the machine's own programs.

use std::collections::BTreeMap;

use kvmlet_elf::{
    ElfError, Errno, Image, InterpRef, Kind, LoadAction, Machine, PAGE_SIZE, Prot, StackFlags,
    USER_END, USER_START, parse, read_interp,
};
use proptest::prelude::*;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;
const R: u32 = 4;
const W: u32 = 2;
const X: u32 = 1;

/// A program header before it is bytes.
#[derive(Debug, Clone, Copy)]
struct Ph {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

fn load(flags: u32, offset: u64, vaddr: u64, filesz: u64, memsz: u64) -> Ph {
    Ph {
        kind: PT_LOAD,
        flags,
        offset,
        vaddr,
        filesz,
        memsz,
        align: PAGE_SIZE,
    }
}

fn elf(e_type: u16, entry: u64, table: &[Ph], len: usize) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    out.resize(16, 0);
    out.extend(e_type.to_le_bytes());
    out.extend(62u16.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(entry.to_le_bytes());
    out.extend(64u64.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(64u16.to_le_bytes());
    out.extend(56u16.to_le_bytes());
    out.extend(u16::try_from(table.len()).unwrap().to_le_bytes());
    out.extend([0; 6]);
    assert_eq!(out.len(), 64);
    for ph in table {
        out.extend(ph.kind.to_le_bytes());
        out.extend(ph.flags.to_le_bytes());
        for field in [ph.offset, ph.vaddr, ph.vaddr, ph.filesz, ph.memsz, ph.align] {
            out.extend(field.to_le_bytes());
        }
    }
    let filled = out.len();
    out.extend((filled..len).map(|i| u8::try_from(i % 251).unwrap() | 1));
    out
}

fn parse_all(bytes: &[u8]) -> Result<Image, ElfError> {
    parse(bytes, bytes.len() as u64)
}

/// A static program with code, data with bss, and an executable stack.
fn hello() -> Vec<u8> {
    let stack = Ph {
        kind: PT_GNU_STACK,
        align: 16,
        ..load(R | W | X, 0, 0, 0, 0)
    };
    let table = [
        load(R | X, 0, 0x40_0000, 0x1234, 0x1234),
        Ph {
            align: 0x20_0000,
            ..load(R | W, 0x1234, 0x60_2234, 0x100, 0x3000)
        },
        stack,
    ];
    elf(2, 0x40_0100, &table, 0x1400)
}

#[test]
fn static_program() {
    let image = parse_all(&hello()).unwrap();
    assert_eq!(image.kind, Kind::Static);
    assert_eq!((image.phoff, image.phnum, image.phentsize), (64, 3, 56));
    assert_eq!(image.phdr_vaddr, Some(0x40_0040));
    assert_eq!(image.stack, StackFlags::Executable);
    assert_eq!(image.load_span, 0x40_0000..0x60_6000);
    assert_eq!(image.max_align, 0x20_0000);
    assert_eq!(image.interp, None);
    assert_eq!(image.entry_at(0), Ok(0x40_0100));
    assert_eq!(
        image.plan(0).unwrap(),
        [
            LoadAction::MapFile {
                vaddr: 0x40_0000,
                len: 0x2000,
                file_offset: 0,
                prot: Prot::R | Prot::X
            },
            LoadAction::MapFile {
                vaddr: 0x60_2000,
                len: 0x1000,
                file_offset: 0x1000,
                prot: Prot::R | Prot::W
            },
            LoadAction::ZeroTail {
                vaddr: 0x60_2334,
                len: 0xccc
            },
            LoadAction::MapAnon {
                vaddr: 0x60_3000,
                len: 0x3000,
                prot: Prot::R | Prot::W
            },
        ]
    );
    assert_eq!(image.plan(0x1000), Err(ElfError::BadBias(0x1000)));
}

#[test]
fn position_independent_program_with_interpreter() {
    let interp = Ph {
        kind: PT_INTERP,
        ..load(R, 0x200, 0x200, 28, 28)
    };
    let bytes = elf(
        3,
        0x300,
        &[
            interp,
            load(R | X, 0, 0, 0x1000, 0x1000),
            load(R | W, 0, 0x5000, 0, 0x10),
        ],
        0x1000,
    );
    let image = parse_all(&bytes).unwrap();
    assert_eq!(image.kind, Kind::Dyn);
    assert_eq!(
        image.interp,
        Some(InterpRef {
            offset: 0x200,
            len: 28
        })
    );
    assert_eq!(image.stack, StackFlags::NonExecutable);
    let bias = 0x5555_5555_4000;
    assert_eq!(image.span_at(bias), Ok(bias..bias + 0x6000));
    assert_eq!(image.entry_at(bias), Ok(bias + 0x300));
    assert_eq!(image.phdr_at(bias), bias + 64);
    assert_eq!(
        image.plan(bias).unwrap()[1],
        LoadAction::MapAnon {
            vaddr: bias + 0x5000,
            len: 0x1000,
            prot: Prot::R | Prot::W
        }
    );
    for bad in [0, 0x800, bias + 1, USER_END, USER_END - 0x5000, u64::MAX] {
        assert_eq!(image.plan(bad), Err(ElfError::BadBias(bad)), "{bad:#x}");
    }
    assert!(image.plan(USER_START).is_ok());
    assert!(image.plan(USER_END - 0x6000).is_ok());
}

#[test]
fn an_image_linked_high_can_be_moved_down() {
    let high = 0x7000_0000_0000;
    let image = parse_all(&elf(3, high, &[load(R, 0, high, 64, 64)], 0x200)).unwrap();
    let bias = 0x10_0000u64.wrapping_sub(high);
    assert_eq!(image.span_at(bias), Ok(0x10_0000..0x10_1000));
    assert_eq!(image.entry_at(bias), Ok(0x10_0000));
}

/// Changes bytes of a good file and expects an error.
fn refused(change: impl FnOnce(&mut Vec<u8>)) -> ElfError {
    let mut bytes = hello();
    change(&mut bytes);
    let error = parse_all(&bytes).unwrap_err();
    assert!(!error.to_string().contains('\n'));
    assert_eq!(error.errno(), Errno::Enoexec);
    error
}

#[test]
fn files_that_are_no_x86_64_programs() {
    assert_eq!(parse_all(b""), Err(ElfError::NotElf));
    assert_eq!(parse_all(b"\x7fEL"), Err(ElfError::NotElf));
    assert_eq!(refused(|b| b[1] = b'F'), ElfError::NotElf);
    let error = refused(|b| b[18..20].copy_from_slice(&183u16.to_le_bytes()));
    assert_eq!(error, ElfError::WrongArchitecture(Machine(183)));
    assert_eq!(error.to_string(), "built for aarch64, not for x86_64");
    let error = refused(|b| {
        b[5] = 2;
        b[18..20].copy_from_slice(&22u16.to_be_bytes());
    });
    assert_eq!(error.to_string(), "built for s390, not for x86_64");
    let error = refused(|b| b[18..20].copy_from_slice(&0x1234u16.to_le_bytes()));
    assert_eq!(
        error.to_string(),
        "built for machine number 4660, not for x86_64"
    );
    assert_eq!(refused(|b| b[18] = 3), ElfError::ThirtyTwoBit);
    assert_eq!(refused(|b| b[4] = 1), ElfError::ThirtyTwoBit);
    assert_eq!(
        refused(|b| b[4] = 7),
        ElfError::BadIdent { index: 4, value: 7 }
    );
    assert_eq!(
        refused(|b| b[5] = 0),
        ElfError::BadIdent { index: 5, value: 0 }
    );
    let error = refused(|b| b[16] = 1);
    assert_eq!(
        error.to_string(),
        "an object file (.o), not a linked executable"
    );
    let error = refused(|b| b[16] = 4);
    assert_eq!(error.to_string(), "a core dump, not an executable");
    assert_eq!(refused(|b| b[16] = 9), ElfError::BadType(9));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = hello();
    let needed = 0x1334;
    for len in 4..needed {
        let error = parse_all(&bytes[..len]).unwrap_err();
        assert!(
            matches!(error, ElfError::Truncated { len: l, .. } if l == len as u64),
            "{len}: {error}"
        );
    }
    assert!(parse_all(&bytes[..needed]).is_ok());
    // The rest of the file need not have been read, the headers must have been.
    assert!(parse(&bytes[..64 + 3 * 56], bytes.len() as u64).is_ok());
    let short = parse(&bytes[..64 + 3 * 56 - 1], bytes.len() as u64);
    assert!(matches!(short, Err(ElfError::HeadersTooFar { .. })));
    // Bytes past the given length do not count.
    assert!(matches!(
        parse(&bytes, 100),
        Err(ElfError::Truncated { len: 100, .. })
    ));
}

#[test]
fn bad_header_tables() {
    for (at, value) in [(54, 55u16), (56, 0), (56, 1171), (56, 0xffff)] {
        let error = refused(|b| b[at..at + 2].copy_from_slice(&value.to_le_bytes()));
        assert!(
            matches!(error, ElfError::BadProgramHeaderTable { .. }),
            "{error}"
        );
    }
    for offset in [u64::MAX, u64::MAX - 100, 0x1400] {
        let error = refused(|b| b[32..40].copy_from_slice(&offset.to_le_bytes()));
        assert!(matches!(error, ElfError::Truncated { .. }), "{error}");
    }
    assert_eq!(
        parse_all(&elf(2, 0, &[load(R, 0, 0, 0, 0)], 0)),
        Err(ElfError::NoSegments)
    );
    let entry = elf(3, USER_END, &[load(R, 0, 0, 1, 1)], 0x200);
    assert_eq!(parse_all(&entry), Err(ElfError::BadEntry(USER_END)));
}

#[test]
fn bad_segments() {
    let base = 0x40_0000;
    let interp = |filesz| Ph {
        kind: PT_INTERP,
        ..load(R, 0, 0, filesz, filesz)
    };
    let bad: &[&[Ph]] = &[
        &[load(R, 0, base, 2, 1)],
        &[load(R, 1, base, 1, 1)],
        &[load(R, 0, u64::MAX - 0xfff, 1, 0x1000)],
        &[load(R, 0, base, 1, u64::MAX)],
        &[load(R, 0, USER_END, 0, 1)],
        &[load(R, 0, USER_END - 0x1000, 0, 0x1001)],
        &[load(R, 0, 0xf000, 1, 1)],
        &[load(R, 0, base, 0, 0x1001), load(R, 0, base + 0x1000, 0, 1)],
        &[load(R, 0, base + 0x1000, 0, 1), load(R, 0, base, 0, 1)],
        &[Ph {
            align: 1 << 63,
            ..load(R, 0, base, 1, 1)
        }],
        &[interp(0), load(R, 0, base, 1, 1)],
        &[interp(1), load(R, 0, base, 1, 1)],
        &[interp(4097), load(R, 0, base, 1, 1)],
    ];
    for table in bad {
        let error = parse_all(&elf(2, base, table, 0x2000)).unwrap_err();
        let index = u16::try_from(table.len() - 1).unwrap();
        assert!(
            matches!(error, ElfError::BadProgramHeader { index: i, .. } if i == index || table[0].kind == PT_INTERP),
            "{table:x?}: {error}"
        );
    }
    for cut in [
        load(R, 0x1000, base, 0x1001, 0x1001),
        load(R, u64::MAX - 0xfff, base, 0x1000, 0x1000),
        Ph {
            kind: PT_INTERP,
            ..load(R, 0x1fff, 0, 2, 2)
        },
    ] {
        let error = parse_all(&elf(2, base, &[cut], 0x2000)).unwrap_err();
        assert!(matches!(error, ElfError::Truncated { .. }), "{error}");
    }
}

#[test]
fn interpreter_paths() {
    assert_eq!(read_interp(b"/lib/ld.so\0"), Ok(&b"/lib/ld.so"[..]));
    assert_eq!(read_interp(b"/lib\0junk\0"), Ok(&b"/lib"[..]));
    let mut long = vec![b'a'; 4095];
    long.push(0);
    assert_eq!(read_interp(&long).map(<[u8]>::len), Ok(4095));
    long.insert(0, b'a');
    for bad in [&b""[..], b"/lib", b"\0", b"\0x\0", &long] {
        assert_eq!(read_interp(bad).unwrap_err().errno(), Errno::Enoexec);
    }
}

/// What the plan leaves in memory, page by page.
fn run(plan: &[LoadAction], file: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let page = usize::try_from(PAGE_SIZE).unwrap();
    let mut memory = BTreeMap::new();
    for &action in plan {
        match action {
            LoadAction::MapFile {
                vaddr,
                len,
                file_offset,
                ..
            } => {
                for at in (0..len).step_by(page) {
                    let from = usize::try_from(file_offset + at).unwrap();
                    let mut content = file[from..file.len().min(from + page)].to_vec();
                    content.resize(page, 0);
                    memory.insert(vaddr + at, content);
                }
            }
            LoadAction::ZeroTail { vaddr, len } => {
                let into = usize::try_from(vaddr % PAGE_SIZE).unwrap();
                let content = memory.get_mut(&(vaddr - vaddr % PAGE_SIZE)).unwrap();
                content[into..into + usize::try_from(len).unwrap()].fill(0);
            }
            LoadAction::MapAnon { vaddr, len, .. } => {
                for at in (0..len).step_by(page) {
                    memory.insert(vaddr + at, vec![0; page]);
                }
            }
        }
    }
    memory
}

/// Every byte of every segment is the file's or zero.
fn check_loaded(image: &Image, file: &[u8], bias: u64) {
    let memory = run(&image.plan(bias).unwrap(), file);
    let byte = |address: u64| {
        memory[&(address - address % PAGE_SIZE)][usize::try_from(address % PAGE_SIZE).unwrap()]
    };
    for segment in &image.segments {
        for at in 0..segment.mem_len {
            let want = if at < segment.file_len {
                file[usize::try_from(segment.file_offset + at).unwrap()]
            } else if segment.prot.contains(Prot::W) {
                0
            } else {
                continue;
            };
            assert_eq!(
                byte(segment.vaddr + bias + at),
                want,
                "{segment:x?} + {at:#x}"
            );
        }
    }
}

#[test]
fn loads_the_hand_made_program() {
    let bytes = hello();
    check_loaded(&parse_all(&bytes).unwrap(), &bytes, 0);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the test reads host programs")]
fn loads_the_programs_of_this_machine() {
    let own = std::env::current_exe().unwrap();
    let mut seen = 0;
    for path in [
        own.to_str().unwrap(),
        "/bin/true",
        "/usr/bin/python3",
        "/lib64/ld-linux-x86-64.so.2",
    ] {
        let Ok(bytes) = std::fs::read(path) else {
            continue;
        };
        let head = &bytes[..bytes.len().min(65536)];
        let image = parse(head, bytes.len() as u64).unwrap_or_else(|e| panic!("{path}: {e}"));
        let bias = match image.kind {
            Kind::Static => 0,
            Kind::Dyn => 0x5555_5555_4000,
        };
        assert!(image.phdr_vaddr.is_some(), "{path}");
        assert_eq!(image.stack, StackFlags::NonExecutable, "{path}");
        if let Some(interp) = image.interp {
            let from = usize::try_from(interp.offset).unwrap();
            let to = usize::try_from(interp.offset + interp.len).unwrap();
            assert!(read_interp(&bytes[from..to]).unwrap().starts_with(b"/lib"));
        }
        if bytes.len() < 16 << 20 {
            check_loaded(&image, &bytes, bias);
        }
        seen += 1;
    }
    assert!(seen >= 1);
}

/// What must hold for whatever `parse` accepts.
fn check_accepted(image: &Image, file_len: u64, bias: u64) {
    let span = &image.load_span;
    assert!(span.start < span.end && span.end <= USER_END);
    assert!(image.max_align.is_power_of_two() && image.max_align >= PAGE_SIZE);
    let mut last = 0;
    for segment in &image.segments {
        assert!(segment.vaddr >= last && segment.mem_len > 0);
        assert!(segment.file_len <= segment.mem_len);
        assert!(segment.file_len == 0 || segment.file_offset + segment.file_len <= file_len);
        last = segment.vaddr + segment.mem_len;
        assert!(span.start <= segment.vaddr && last <= span.end);
    }
    let Ok(plan) = image.plan(bias) else { return };
    let at = image.span_at(bias).unwrap();
    assert!(USER_START <= at.start && at.end <= USER_END);
    for action in plan {
        let (vaddr, len, aligned) = match action {
            LoadAction::MapFile {
                vaddr,
                len,
                file_offset,
                ..
            } => {
                assert_eq!(file_offset % PAGE_SIZE, 0);
                assert!(file_offset < file_len);
                assert!(len - PAGE_SIZE <= file_len - file_offset);
                (vaddr, len, true)
            }
            LoadAction::ZeroTail { vaddr, len } => {
                assert!(len < PAGE_SIZE && (vaddr + len) % PAGE_SIZE == 0);
                (vaddr, len, false)
            }
            LoadAction::MapAnon { vaddr, len, .. } => (vaddr, len, true),
        };
        assert!(len > 0 && at.start <= vaddr && vaddr + len <= at.end);
        assert!(!aligned || (vaddr % PAGE_SIZE == 0 && len % PAGE_SIZE == 0));
    }
}

/// Numbers where mistakes live: small ones, around the limits, and anything.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..0x3000,
        (USER_END - 0x2000)..(USER_END + 0x2000),
        (u64::MAX - 0x2000)..=u64::MAX,
        any::<u64>(),
    ]
}

fn any_header() -> impl Strategy<Value = Ph> {
    (
        prop_oneof![
            4 => Just(PT_LOAD),
            1 => Just(PT_INTERP),
            1 => Just(PT_GNU_STACK),
            1 => any::<u32>()
        ],
        0u32..8,
        number(),
        number(),
        number(),
        number(),
        number(),
    )
        .prop_map(|(kind, flags, offset, vaddr, filesz, memsz, align)| Ph {
            kind,
            flags,
            offset,
            vaddr,
            filesz,
            memsz,
            align,
        })
}

/// Segments that are well-formed: gap, offset within the page, and both lengths of each.
fn good_segments() -> impl Strategy<Value = Vec<Ph>> {
    proptest::collection::vec((0u64..3, 0u64..4096, 0u64..6000, 0u64..9000, 0u32..8), 1..6)
        .prop_map(|list| {
            let mut next = 0x10_0000;
            let mut out = Vec::new();
            for (gap, into, filesz, extra, flags) in list {
                let vaddr = next + gap * PAGE_SIZE + into;
                let memsz = (filesz + extra).max(1);
                out.push(load(flags, PAGE_SIZE + into, vaddr, filesz, memsz));
                next = (vaddr + memsz).next_multiple_of(PAGE_SIZE);
            }
            out
        })
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), file_len: u64) {
        let _ = parse(&bytes, file_len);
        let _ = read_interp(&bytes);
    }

    #[test]
    fn any_headers(
        e_type in 2u16..4,
        entry in number(),
        table in proptest::collection::vec(any_header(), 0..6),
        file_len in number(),
        bias in number(),
    ) {
        let bytes = elf(e_type, entry, &table, 0);
        if let Ok(image) = parse(&bytes, file_len) {
            check_accepted(&image, file_len, bias);
            check_accepted(&image, file_len, bias & !(PAGE_SIZE - 1));
            check_accepted(&image, file_len, 0);
        }
    }

    #[test]
    fn good_files_load_exactly(table in good_segments(), e_type in 2u16..4, pages in 0u64..1 << 30) {
        let bytes = elf(e_type, 0x10_0000, &table, 4 * 4096);
        let image = parse_all(&bytes).unwrap();
        let bias = if e_type == 3 { pages * PAGE_SIZE } else { 0 };
        check_accepted(&image, bytes.len() as u64, bias);
        check_loaded(&image, &bytes, bias);
    }
}
