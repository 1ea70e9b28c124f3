//! The data segment selectors of this host thread. Software KVM runs the guest on them: it neither loads the
//! guest's before ring 3 runs nor puts the host's back. A guest would find those of any guest that the
//! thread ran before, and threads made later would start with them.

use std::arch::asm;
use std::mem::MaybeUninit;
use std::ptr;

use kvmlet_abi::regs::Selectors;

/// Loads a selector into a register whose base is kept.
macro_rules! load_with_base {
    ($register:literal, $read_base:literal, $write_base:literal, $selector:expr) => {
        asm!(
            concat!($read_base, " {base}"),
            concat!("mov ", $register, ", {selector:e}"),
            concat!($write_base, " {base}"),
            base = out(reg) _,
            selector = in(reg) u32::from($selector),
            options(nomem, nostack, preserves_flags),
        )
    };
}

/// The selectors that this thread has.
pub fn read() -> Selectors {
    let (ds, es, fs, gs): (u32, u32, u32, u32);
    // SAFETY: reads four registers.
    unsafe {
        asm!(
            "mov {ds:e}, ds",
            "mov {es:e}, es",
            "mov {fs:e}, fs",
            "mov {gs:e}, gs",
            ds = out(reg) ds,
            es = out(reg) es,
            fs = out(reg) fs,
            gs = out(reg) gs,
            options(nomem, nostack, preserves_flags),
        );
    }
    Selectors {
        ds: ds as u16,
        es: es as u16,
        fs: fs as u16,
        gs: gs as u16,
    }
}

/// Loads what differs from `now`, which this thread has. `wanted` is sanitised, or was read from a thread of
/// this process.
pub fn write(wanted: Selectors, now: Selectors) {
    // SAFETY: Linux's table has user data and code where ours has them, so that no load faults. In 64-bit
    // mode DS and ES are not looked at. The base of GS is kept; software KVM needs a host with FSGSBASE.
    unsafe {
        if wanted.ds != now.ds {
            asm!("mov ds, {0:e}", in(reg) u32::from(wanted.ds), options(nomem, nostack, preserves_flags));
        }
        if wanted.es != now.es {
            asm!("mov es, {0:e}", in(reg) u32::from(wanted.es), options(nomem, nostack, preserves_flags));
        }
        if wanted.gs != now.gs {
            load_with_base!("gs", "rdgsbase", "wrgsbase", wanted.gs);
        }
    }
    if wanted.fs != now.fs {
        write_fs(wanted.fs);
    }
}

/// The base of FS is that of this thread's own variables: no signal handler may run while it is gone.
#[cold]
fn write_fs(selector: u16) {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets live across the calls, which fill them before they are read; as above, and no
    // memory is accessed while the base is another.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        if libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) != 0 {
            return;
        }
        load_with_base!("fs", "rdfsbase", "wrfsbase", selector);
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_what_was_written() {
        if has_fsgsbase() {
            let own = read();
            let wanted = Selectors {
                ds: 0x2b,
                es: 0x33,
                fs: 0x2b,
                gs: 0x33,
            };
            write(wanted, own);
            let found = read();
            // Its own variables are still there.
            assert_ne!(std::thread::current().name(), None);
            write(own, found);
            assert_eq!((found, read()), (wanted, own));
        }
    }

    /// FSGSBASE of AT_HWCAP2.
    fn has_fsgsbase() -> bool {
        // SAFETY: no memory is involved.
        unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
    }
}
