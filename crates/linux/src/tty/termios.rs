//! The kernel's struct termios2, and line speeds.

use kvmlet_abi::linux::termios::{B38400, BOTHER, CBAUD, IBSHIFT};
use kvmlet_hostfs::terminal::KernelTermios;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// struct termios2 (TCGETS2)
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Termios2 {
    /// struct termios
    pub termios: KernelTermios,
    /// Speeds in bits per second.
    pub speeds: Speeds,
}

/// Line speeds in bits per second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Speeds {
    /// c_ispeed
    pub input: u32,
    /// c_ospeed
    pub output: u32,
}

impl Default for Speeds {
    fn default() -> Self {
        Self {
            input: 38_400,
            output: 38_400,
        }
    }
}

/// Speeds by their code in CBAUD: B0 to B38400, and from BOTHER + 1 on B57600 to B4000000.
const SLOW: [u32; B38400 as usize + 1] = [
    0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19_200, 38_400,
];
const FAST: [u32; 15] = [
    57_600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000, 1_500_000,
    2_000_000, 2_500_000, 3_000_000, 3_500_000, 4_000_000,
];

/// The speed of a code; that of BOTHER is `named`.
fn speed(code: u32, named: u32) -> u32 {
    let at = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
    match code.checked_sub(BOTHER) {
        None => SLOW.get(at(code)).copied().unwrap_or(0),
        Some(0) => named,
        Some(fast) => FAST.get(at(fast.saturating_sub(1))).copied().unwrap_or(0),
    }
}

impl Speeds {
    /// The speeds that attributes name; `self` has those that have no code.
    #[must_use]
    pub fn of(self, termios: &KernelTermios) -> Self {
        let output = speed(termios.c_cflag & CBAUD, self.output);
        let input = match termios.c_cflag >> IBSHIFT & CBAUD {
            0 => output,
            code => speed(code, self.input),
        };
        Self { input, output }
    }
}
