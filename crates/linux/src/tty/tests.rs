//! Ends of pseudo-terminals by system calls: what is charged is given back, and a value is a value.

use std::path::Path;

use kvmlet_abi::Errno;
use kvmlet_abi::linux::ioctls::{FIONREAD, TIOCGPTPEER, TIOCSPTLCK};

use super::Lock;
use crate::creds::Creds;
use crate::id::{Pid, Tid};
use crate::task::fork::allocate_tid;
use crate::testing::{Sandbox, call};

const O_RDWR: i64 = 2;
const FLAGS: i64 = O_RDWR | 0o4000 | 0o400;

fn open(s: &mut Sandbox) -> (i64, i64) {
    let master = s.open("/dev/ptmx", FLAGS).unwrap();
    let unlocked = s.put(&0i32.to_le_bytes());
    call!(s, "ioctl", master, i64::from(TIOCSPTLCK), unlocked).unwrap();
    let slave = call!(s, "ioctl", master, i64::from(TIOCGPTPEER), FLAGS).unwrap();
    (master, slave as i64)
}

#[test]
fn what_is_charged_is_given_back() {
    let mut s = Sandbox::new(Path::new("/usr"));
    let (kernel, memory) = (&mut s.kernel, &mut s.machine.memory);
    let root = Creds::of_user(0);
    let before = memory.used_bytes();
    let master = kernel.open_pty(memory).unwrap();
    assert_eq!(memory.used_bytes(), before + super::PTY_COST_BYTES);
    assert_eq!(kernel.open_slave(0, Lock::Heeded, &root), Err(Errno::EIO));
    let slave = kernel.open_slave(0, Lock::Passed, &root).unwrap();
    kernel.close_pty(memory, master);
    assert_eq!(kernel.open_slave(0, Lock::Passed, &root), Err(Errno::EIO));
    // The number is not given again before the slave is closed too.
    let other = kernel.open_pty(memory).unwrap();
    assert_eq!(kernel.ptys.shown().collect::<Vec<_>>(), [1]);
    kernel.close_pty(memory, slave);
    kernel.close_pty(memory, other);
    assert_eq!(memory.used_bytes(), before);
    assert_eq!(*kernel.ptys, super::Ptys::default());
}

#[test]
fn a_copy_of_the_kernel_has_terminals_of_its_own() {
    let mut s = Sandbox::new(Path::new("/usr"));
    let (master, slave) = open(&mut s);
    s.write(master, b"kept\n").unwrap();
    let frozen = s.kernel.clone();
    for _ in 0..2 {
        assert_eq!(s.read(slave, 10), Ok(b"kept\n".to_vec()));
        assert_eq!(s.read(master, 10), Ok(b"kept\r\n".to_vec()));
        assert_eq!(s.read(slave, 10), Err(Errno::EAGAIN));
        s.kernel = frozen.clone();
    }
    let count = s.room(4);
    call!(s, "ioctl", slave, i64::from(FIONREAD), count).unwrap();
    assert_eq!(s.get_struct::<u32>(count), 5);
}

#[test]
fn groups_that_a_terminal_remembers_keep_their_numbers() {
    let mut s = Sandbox::new(Path::new("/usr"));
    open(&mut s);
    let next = s.kernel.next_tid;
    s.kernel.ptys.get_mut(0).unwrap().foreground = Some(Pid(next));
    let main = s.kernel.main;
    let leader = s.kernel.processes.get_mut(&main).unwrap();
    leader.former_foreground = Some(Pid(next + 1));
    assert_eq!(allocate_tid(&mut s.kernel), Ok(Tid(next + 2)));
}

#[test]
fn there_are_only_so_many() {
    let mut s = Sandbox::with_limits(Path::new("/usr"), 1 << 30, 0);
    let opened = (0..=super::PTYS_MAX).map(|_| {
        let memory = &mut s.machine.memory;
        s.kernel.open_pty(memory)
    });
    let last = opened.last().unwrap();
    assert_eq!(last, Err(Errno::ENOSPC));
}
