//! The built vDSO, loaded natively: its data page is written by a `HostClock` and its functions are
//! compared with the host's clocks.
//!
//! `KVMLET_VDSO_SECONDS` sets how long the comparison runs (2 by default). On a host that does not
//! trust its TSC the same tests cover call mode.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvmlet_abi::PAGE_SIZE;
use kvmlet_abi::vdso_data::{VDSO_MODE_TSC, VdsoClock, VdsoData};
use kvmlet_stub::vdso::{self, ClockConfig, GuestTsc, HostClock};

const PAGE: usize = PAGE_SIZE as usize;
const TOLERANCE_NS: i64 = 50_000;

type ClockGettime = unsafe extern "C" fn(i32, *mut libc::timespec) -> i32;
type Gettimeofday = unsafe extern "C" fn(*mut libc::timeval, *mut [i32; 2]) -> i32;
type Time = unsafe extern "C" fn(*mut i64) -> i64;
type Getcpu = unsafe extern "C" fn(*mut u32, *mut u32, *mut u8) -> i64;

/// The data page and the image in executable memory. Never unmapped.
#[derive(Clone, Copy)]
struct Loaded {
    data: usize,
    image: usize,
}

fn load() -> Loaded {
    let image = vdso::image();
    assert!(image.len() <= 2 * PAGE);
    // SAFETY: a new anonymous mapping of three pages; the copy fits, and nothing else refers to it.
    unsafe {
        let base = libc::mmap(
            std::ptr::null_mut(),
            3 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(base, libc::MAP_FAILED);
        let base = base.cast::<u8>();
        std::ptr::copy_nonoverlapping(image.as_ptr(), base.add(PAGE), image.len());
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        assert_eq!(
            libc::mprotect(base.add(PAGE).cast(), 2 * PAGE, protection),
            0
        );
        Loaded {
            data: base as usize,
            image: base as usize + PAGE,
        }
    }
}

impl Loaded {
    /// Stores into the data page, as the engine does into guest memory.
    fn writer(self) -> impl FnMut(usize, &[u8]) {
        move |offset, bytes| {
            assert!(offset + bytes.len() <= PAGE);
            let to = self.data + offset;
            if let Ok(word) = <[u8; 4]>::try_from(bytes) {
                // SAFETY: an aligned word of the data page, which lives for ever.
                let word_at = unsafe { AtomicU32::from_ptr(to as *mut u32) };
                word_at.store(u32::from_ne_bytes(word), Ordering::Release);
            } else {
                // SAFETY: inside the data page; readers in the vDSO discard what they read
                // meanwhile.
                unsafe { std::ptr::copy(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            }
        }
    }

    fn address(self, name: &str) -> usize {
        let symbols = Elf(vdso::image()).symbols();
        self.image + symbols[name].value
    }

    fn clock_gettime(self) -> ClockGettime {
        // SAFETY: the address of that function, by its symbol.
        unsafe { std::mem::transmute(self.address("__vdso_clock_gettime")) }
    }
}

/// Reads little-endian fields of the image.
struct Elf(&'static [u8]);

struct Symbol {
    value: usize,
    weak: bool,
    version: String,
}

impl Elf {
    fn u16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap()))
    }

    fn u32(&self, at: usize) -> usize {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()) as usize
    }

    fn u64(&self, at: usize) -> usize {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap()) as usize
    }

    fn text(&self, at: usize) -> String {
        let text = CStr::from_bytes_until_nul(&self.0[at..]).unwrap();
        text.to_str().unwrap().to_owned()
    }

    /// (type, flags, offset, virtual address, file size, memory size) of each program header.
    fn program_headers(&self) -> Vec<[usize; 6]> {
        let (start, size, count) = (self.u64(32), self.u16(54), self.u16(56));
        (0..count)
            .map(|index| {
                let at = start + index * size;
                [
                    self.u32(at),
                    self.u32(at + 4),
                    self.u64(at + 8),
                    self.u64(at + 16),
                    self.u64(at + 32),
                    self.u64(at + 40),
                ]
            })
            .collect()
    }

    fn dynamic(&self) -> BTreeMap<usize, usize> {
        let headers = self.program_headers();
        let found = headers.iter().find(|header| header[0] == 2).unwrap();
        (0..found[4] / 16)
            .map(|index| found[2] + 16 * index)
            .map(|at| (self.u64(at), self.u64(at + 8)))
            .take_while(|(tag, _)| *tag != 0)
            .collect()
    }

    fn symbols(&self) -> BTreeMap<String, Symbol> {
        const DT_HASH: usize = 4;
        const DT_STRTAB: usize = 5;
        const DT_SYMTAB: usize = 6;
        const DT_VERSYM: usize = 0x6fff_fff0;
        const DT_VERDEF: usize = 0x6fff_fffc;
        let dynamic = self.dynamic();
        let (strings, table) = (dynamic[&DT_STRTAB], dynamic[&DT_SYMTAB]);

        let mut versions = BTreeMap::new();
        let mut at = dynamic[&DT_VERDEF];
        loop {
            let name = self.u32(at + self.u32(at + 12));
            versions.insert(self.u16(at + 4), self.text(strings + name));
            match self.u32(at + 16) {
                0 => break,
                next => at += next,
            }
        }

        let count = self.u32(dynamic[&DT_HASH] + 4);
        (1..count)
            .map(|index| (index, table + 24 * index))
            .filter(|(_, at)| self.u16(at + 6) != 0 && self.0[at + 4] & 15 == 2)
            .map(|(index, at)| {
                let symbol = Symbol {
                    value: self.u64(at + 8),
                    weak: self.0[at + 4] >> 4 == 2,
                    version: versions[&(self.u16(dynamic[&DT_VERSYM] + 2 * index) & 0x7fff)]
                        .clone(),
                };
                (self.text(strings + self.u32(at)), symbol)
            })
            .collect()
    }
}

fn host_ns(clock: i32) -> i64 {
    call(libc::clock_gettime, clock)
}

fn call(function: ClockGettime, clock: i32) -> i64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a function with the signature of clock_gettime and a writable timespec.
    let status = unsafe { function(clock, &mut ts) };
    assert_eq!(status, 0, "clock {clock}");
    assert!((0..1_000_000_000).contains(&ts.tv_nsec));
    ts.tv_sec * 1_000_000_000 + ts.tv_nsec
}

/// How far the guest's clock is outside two readings of the host's around it, and how far from their
/// middle. The tightest of a few tries, for the thread may be
/// descheduled between them.
fn error_ns(guest: ClockGettime, clock: i32) -> (i64, i64) {
    let mut best = (i64::MAX, i64::MAX);
    for _ in 0..20 {
        let before = host_ns(clock);
        let ns = call(guest, clock);
        let after = host_ns(clock);
        let half = (after - before) / 2;
        best = best.min((half, (ns - before - half).abs()));
        if half < 500 {
            break;
        }
    }
    ((best.1 - best.0).max(0), best.1)
}

#[test]
fn the_image_is_one_read_only_segment_without_relocations() {
    const PT_LOAD: usize = 1;
    const FORBIDDEN: [usize; 5] = [7, 9, 17, 22, 23]; // RELA, RELAENT, REL, TEXTREL, JMPREL
    let elf = Elf(vdso::image());
    assert_eq!(&elf.0[..4], b"\x7fELF");
    assert_eq!((elf.u16(16), elf.u16(18)), (3, 62), "ET_DYN for x86-64");
    let headers = elf.program_headers();
    let loads: Vec<_> = headers
        .iter()
        .filter(|header| header[0] == PT_LOAD)
        .collect();
    let [_, flags, offset, address, file_len, mem_len] = *loads[0];
    assert_eq!((loads.len(), flags, offset, address), (1, 5, 0, 0));
    assert_eq!(file_len, mem_len);
    assert!(file_len <= elf.0.len());
    let dynamic = elf.dynamic();
    for tag in FORBIDDEN {
        assert!(!dynamic.contains_key(&tag), "dynamic tag {tag}");
    }
    assert!(!dynamic.contains_key(&1), "no DT_NEEDED");
    assert_eq!(elf.text(dynamic[&5] + dynamic[&14]), "linux-vdso.so.1");
    assert!(dynamic.contains_key(&0x6fff_fef5), "DT_GNU_HASH");
}

#[test]
fn it_exports_what_linux_exports() {
    let symbols = Elf(vdso::image()).symbols();
    let names = [
        "clock_gettime",
        "gettimeofday",
        "time",
        "clock_getres",
        "getcpu",
    ];
    assert_eq!(symbols.len(), 2 * names.len());
    for name in names {
        let (strong, weak) = (&symbols[&format!("__vdso_{name}")], &symbols[name]);
        assert_eq!(strong.value, weak.value);
        assert!(weak.weak && !strong.weak);
        assert_eq!(
            (strong.version.as_str(), weak.version.as_str()),
            ("LINUX_2.6", "LINUX_2.6")
        );
    }
}

#[test]
fn call_mode_and_foreign_clocks_reach_the_kernel() {
    let loaded = load();
    loaded.writer()(0, VdsoData::new().bytes());
    let guest = loaded.clock_gettime();
    for clock in VdsoClock::ALL {
        assert!(error_ns(guest, clock.id()).0 < TOLERANCE_NS, "{clock:?}");
    }
    HostClock::new(ClockConfig::default()).publish(&mut loaded.writer());
    let before = host_ns(libc::CLOCK_THREAD_CPUTIME_ID);
    assert!(call(guest, libc::CLOCK_THREAD_CPUTIME_ID) >= before);
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    for clock in [10, 12, 31, 33, i32::MAX] {
        // SAFETY: the vDSO's clock_gettime and a writable timespec.
        let status = unsafe { guest(clock, &mut ts) };
        assert_eq!(status, -libc::EINVAL, "clock {clock}");
    }
}

#[test]
fn the_other_functions_answer_like_the_host() {
    let loaded = load();
    let mut clock = HostClock::new(ClockConfig::default());
    clock.publish(&mut loaded.writer());
    // SAFETY: the addresses of these functions, by their symbols.
    let (gettimeofday, time, getres, getcpu) = unsafe {
        (
            std::mem::transmute::<usize, Gettimeofday>(loaded.address("gettimeofday")),
            std::mem::transmute::<usize, Time>(loaded.address("time")),
            std::mem::transmute::<usize, ClockGettime>(loaded.address("clock_getres")),
            std::mem::transmute::<usize, Getcpu>(loaded.address("getcpu")),
        )
    };
    let mut tv = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let (mut tz, mut stored) = ([7, 7], 0);
    let (mut cpu, mut node) = (9, 9);
    let mut res = libc::timespec {
        tv_sec: 7,
        tv_nsec: 7,
    };
    let mut host_res = res;
    let tolerance_us = TOLERANCE_NS / 1_000;
    let before_us = host_ns(libc::CLOCK_REALTIME) / 1_000;
    // SAFETY: every pointer is null or to a writable value of its type.
    unsafe {
        assert_eq!(gettimeofday(&mut tv, &mut tz), 0);
        assert_eq!(gettimeofday(std::ptr::null_mut(), std::ptr::null_mut()), 0);
        let now = time(&mut stored);
        assert_eq!(now, stored);
        assert!(time(std::ptr::null_mut()) >= now);
        assert_eq!(getcpu(&mut cpu, &mut node, std::ptr::null_mut()), 0);
        assert_eq!(
            getcpu(
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut()
            ),
            0
        );
        for clock in VdsoClock::ALL {
            assert_eq!(getres(clock.id(), &mut res), 0);
            assert_eq!(libc::clock_getres(clock.id(), &mut host_res), 0);
            assert_eq!(
                (res.tv_sec, res.tv_nsec),
                (host_res.tv_sec, host_res.tv_nsec),
                "{clock:?}"
            );
            assert_eq!(getres(clock.id(), std::ptr::null_mut()), 0);
        }
        assert_eq!(getres(12, &mut res), -libc::EINVAL);
    }
    let after_us = host_ns(libc::CLOCK_REALTIME) / 1_000;
    let us = tv.tv_sec * 1_000_000 + tv.tv_usec;
    assert!((before_us - tolerance_us..=after_us + tolerance_us).contains(&us));
    assert!((us / 1_000_000..=after_us / 1_000_000 + 1).contains(&stored));
    assert_eq!((tz, cpu, node), ([0, 0], 0, 0));
}

/// A guest whose TSC is unlike the host's: the page says so, and the clamp keeps the base.
#[test]
fn the_page_is_in_guest_ticks_and_a_tsc_behind_it_reads_the_base() {
    let loaded = load();
    let mut clock = HostClock::new(ClockConfig {
        guest_tsc: GuestTsc::Offset(i64::MAX / 2),
        ..ClockConfig::default()
    });
    clock.publish(&mut loaded.writer());
    if clock.data().mode != VDSO_MODE_TSC {
        println!("skipped: this host does not trust its TSC");
        return;
    }
    let base = clock.data().base[VdsoClock::Monotonic as usize].as_ns();
    let now = clock.read(VdsoClock::Monotonic).as_ns();
    assert!(now >= base && now - base < 1_000_000_000);
    assert_eq!(call(loaded.clock_gettime(), libc::CLOCK_MONOTONIC), base);
}

#[test]
fn never_backwards_and_near_the_host_while_it_is_updated() {
    let seconds = std::env::var("KVMLET_VDSO_SECONDS").ok();
    let seconds: u64 = seconds.map_or(2, |text| text.parse().unwrap());
    let loaded = load();
    let guest = loaded.clock_gettime();
    let mut clock = HostClock::new(ClockConfig::default());
    clock.publish(&mut loaded.writer());
    let stop = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(seconds);

    std::thread::scope(|scope| {
        let updates = scope.spawn(|| {
            let mut count = 0u32;
            let mut write = loaded.writer();
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(clock.due_in().min(Duration::from_millis(100)));
                // The call's clock and the vDSO's are one.
                let by_vdso = call(guest, libc::CLOCK_MONOTONIC);
                let by_call = clock.read(VdsoClock::Monotonic).as_ns();
                assert!(by_call >= by_vdso, "{by_call} {by_vdso}");
                count += u32::from(clock.update(&mut write));
                let after = call(guest, libc::CLOCK_MONOTONIC);
                assert!(after >= by_call, "{after} {by_call}");
            }
            count
        });

        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        let mut worst: BTreeMap<i32, i64> = BTreeMap::new();
        while Instant::now() < end && !updates.is_finished() {
            for clock in VdsoClock::ALL {
                let id = clock.id();
                let previous = last.entry(id).or_insert(i64::MIN);
                for _ in 0..20_000 {
                    let ns = call(guest, id);
                    assert!(ns >= *previous, "{clock:?}: {ns} after {previous}");
                    *previous = ns;
                }
                if clock.is_coarse() {
                    let fine = if clock == VdsoClock::RealtimeCoarse {
                        VdsoClock::Realtime
                    } else {
                        VdsoClock::Monotonic
                    };
                    assert!(call(guest, fine.id()) >= *previous);
                } else {
                    let (error, from_middle) = error_ns(guest, id);
                    let worst = worst.entry(id).or_insert(0);
                    *worst = from_middle.max(*worst);
                    assert!(error <= TOLERANCE_NS, "{clock:?} is {error} ns off");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        let count = updates.join().unwrap();
        println!("{seconds} s, {count} updates, worst distance in ns by clock id: {worst:?}");
    });
}

/// Prints the cost of a call beside the native vDSO's; compares nothing.
#[test]
fn cost_beside_the_native_vdso() {
    const CALLS: u32 = 1_000_000;
    let loaded = load();
    let mut host = HostClock::new(ClockConfig::default());
    host.publish(&mut loaded.writer());
    for clock in [
        VdsoClock::Monotonic,
        VdsoClock::Realtime,
        VdsoClock::MonotonicCoarse,
    ] {
        let functions: [(&str, ClockGettime); 2] = [
            ("native", libc::clock_gettime),
            ("vdso", loaded.clock_gettime()),
        ];
        for (name, function) in functions {
            let mut ts = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let start = Instant::now();
            for _ in 0..CALLS {
                // SAFETY: clock_gettime with a writable timespec.
                assert_eq!(unsafe { function(clock.id(), &mut ts) }, 0);
            }
            println!(
                "{clock:?} {name}: {:.1} ns",
                start.elapsed().as_nanos() as f64 / f64::from(CALLS)
            );
        }
    }
    let start = Instant::now();
    for _ in 0..1_000 {
        host.publish(&mut loaded.writer());
    }
    println!("publish: {:.2} us", start.elapsed().as_nanos() as f64 / 1e6);
    let start = Instant::now();
    let _clock = HostClock::new(ClockConfig::default());
    println!(
        "new, not the first: {:.1} us",
        start.elapsed().as_nanos() as f64 / 1e3
    );
}
