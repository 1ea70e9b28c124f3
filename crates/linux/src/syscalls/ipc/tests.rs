//! System V IPC by its calls: what a program cannot see of it from outside.

use kvmlet_abi::Errno;
use kvmlet_abi::linux::ipc::{IPC_CREAT, IPC_NOWAIT, IPC_RMID, SEM_UNDO, SETVAL, Sembuf};
use zerocopy::IntoBytes;

use crate::ipc::sem;
use crate::outcome::{CallState, Outcome, WaitOn};
use crate::sched::Call;
use crate::testing::{PID, Sandbox, TID, call};

const CREATE: i64 = IPC_CREAT as i64 | 0o600;
const REMOVE: i64 = IPC_RMID as i64;

fn sandbox() -> Sandbox {
    let mut s = Sandbox::new(std::path::Path::new("/usr"));
    s.touch_all();
    s
}

/// struct sembuf in user memory.
fn ops(s: &mut Sandbox, ops: &[(u16, i16, i16)]) -> i64 {
    let bytes: Vec<u8> = ops
        .iter()
        .flat_map(|(sem_num, sem_op, sem_flg)| {
            Sembuf {
                sem_num: *sem_num,
                sem_op: *sem_op,
                sem_flg: *sem_flg,
            }
            .as_bytes()
            .to_vec()
        })
        .collect();
    s.put(&bytes)
}

#[test]
fn what_is_removed_is_no_longer_charged() {
    let mut s = sandbox();
    let before = s.machine.memory.used_bytes();
    let id = call!(s, "shmget", 5, 9000, CREATE).unwrap() as i64;
    let at = call!(s, "shmat", id, 0, 0).unwrap() as i64;
    s.cx()
        .write(kvmlet_abi::Gva(at as u64), &[1; 9000])
        .unwrap();
    call!(s, "shmctl", id, REMOVE, 0).unwrap();
    assert!(s.machine.memory.used_bytes() >= before + 9000);
    call!(s, "shmdt", at).unwrap();
    assert_eq!(call!(s, "shmctl", id, REMOVE, 0), Err(Errno::EINVAL));

    let id = call!(s, "semget", 5, 900, CREATE).unwrap() as i64;
    let undone = ops(&mut s, &[(1, 1, SEM_UNDO), (899, 1, SEM_UNDO)]);
    call!(s, "semop", id, undone, 2).unwrap();
    call!(s, "semctl", id, 0, REMOVE, 0).unwrap();

    let id = call!(s, "msgget", 5, CREATE).unwrap() as i64;
    let text = s.put_struct(&[1u64, 2, 3]);
    for _ in 0..5 {
        call!(s, "msgsnd", id, text, 16, 0).unwrap();
    }
    assert!(s.machine.memory.used_bytes() > before + 80);
    call!(s, "msgctl", id, REMOVE, 0).unwrap();
    // Page tables may have come for the segment's place.
    let grown = s.machine.memory.used_bytes() - before;
    assert!(grown <= 4 * 4096, "{grown}");
    assert_eq!(s.kernel.ipc.queues.bytes, 0);
    assert_eq!(s.kernel.ipc.semaphores.count, 0);
}

#[test]
fn adjustments_that_cancel_out_cost_nothing() {
    let mut s = sandbox();
    let id = call!(s, "semget", 0, 3, CREATE).unwrap() as i64;
    let before = s.machine.memory.used_bytes();
    let up = ops(&mut s, &[(2, 1, SEM_UNDO)]);
    let down = ops(&mut s, &[(2, -1, SEM_UNDO)]);
    for _ in 0..100 {
        call!(s, "semop", id, up, 1).unwrap();
        assert!(s.machine.memory.used_bytes() > before);
        call!(s, "semop", id, down, 1).unwrap();
    }
    assert_eq!(s.machine.memory.used_bytes(), before);
}

#[test]
fn a_process_has_so_many_adjustments_and_no_more() {
    let mut s = sandbox();
    let sets: Vec<i64> = (0..2)
        .map(|_| call!(s, "semget", 0, 32_000, CREATE).unwrap() as i64)
        .collect();
    let mut result = Ok(0);
    let mut done = 0;
    'all: for id in sets {
        for from in (0..32_000u16).step_by(500) {
            let all: Vec<_> = (from..from + 500)
                .map(|number| (number, 1, SEM_UNDO))
                .collect();
            let at = ops(&mut s, &all);
            result = call!(s, "semop", id, at, 500);
            if result.is_err() {
                break 'all;
            }
            done += 500;
        }
    }
    assert_eq!(result, Err(Errno::ENOMEM));
    assert_eq!(done, 32_500);
    let memory = &mut s.machine.memory;
    sem::process_gone(&mut s.kernel, memory, PID, 1);
    let mut sets = s.kernel.ipc.semaphores.ids.iter();
    let is_zero = |value: i32| value == 0;
    assert!(sets.all(|(_, set)| set.object.semaphores.iter().all(|one| is_zero(one.value))));
}

#[test]
fn a_waiter_is_woken_with_what_it_asked_for() {
    let mut s = sandbox();
    let id = call!(s, "semget", 0, 1, CREATE).unwrap() as i64;
    let down = ops(&mut s, &[(0, -2, 0)]);
    let args = [id.into(), down.into(), 1.into()];
    let Outcome::Wait(wait) = s.outcome("semop", &args, &CallState::default()) else {
        panic!("it waits");
    };
    assert!(matches!(wait.on, WaitOn::Line(..)));
    s.kernel.sched.park(TID, Call::default(), wait);
    call!(s, "semctl", id, 0, i64::from(SETVAL), 3).unwrap();
    assert!(s.kernel.sched.parked.is_empty() && s.kernel.sched.lines.is_empty());
    let set = &s.kernel.ipc.semaphores.ids.get(id as i32).unwrap().object;
    assert_eq!(set.semaphores[0].value, 1);
}

#[test]
fn a_waiter_has_no_more_adjustments_than_others() {
    let mut s = sandbox();
    let id = call!(s, "semget", 0, 1, CREATE).unwrap() as i64;
    let down = ops(&mut s, &[(0, -2, SEM_UNDO)]);
    let args = [id.into(), down.into(), 1.into()];
    let Outcome::Wait(wait) = s.outcome("semop", &args, &CallState::default()) else {
        panic!("it waits");
    };
    s.kernel.sched.park(TID, Call::default(), wait);
    for len in [32_000, 768] {
        let other = call!(s, "semget", 0, len, CREATE).unwrap() as i64;
        for number in 0..len as u16 {
            let up = ops(&mut s, &[(number, 1, SEM_UNDO)]);
            call!(s, "semop", other, up, 1).unwrap();
        }
    }
    call!(s, "semctl", id, 0, i64::from(SETVAL), 1).unwrap();
    assert!(!s.kernel.sched.parked.is_empty());
    call!(s, "semctl", id, 0, i64::from(SETVAL), 3).unwrap();
    assert!(s.kernel.sched.parked.is_empty());
    let set = &s.kernel.ipc.semaphores.ids.get(id as i32).unwrap().object;
    assert_eq!(set.semaphores[0].value, 3);
}

#[test]
fn operations_that_wait_are_bounded() {
    // Many operations of some threads, and some of many threads: 16,000, and 500 times 5,000.
    for (each, threads) in [(500usize, 32), (10, 500)] {
        assert_eq!(threads_that_wait(each), threads);
    }
}

/// Threads that may wait, with `each` operations.
fn threads_that_wait(each: usize) -> usize {
    let mut s = sandbox();
    let id = call!(s, "semget", 0, 1, CREATE).unwrap() as i64;
    let many = ops(&mut s, &vec![(0, -1, 0); each]);
    let args = [id.into(), many.into(), (each as i64).into()];
    let mut waiting = 0;
    // Threads are made up: only the line counts.
    for number in 100.. {
        match s.outcome("semop", &args, &CallState::default()) {
            Outcome::Wait(wait) => {
                let tid = crate::kernel::Tid(number);
                s.kernel.sched.park(tid, Call::default(), wait);
                waiting += 1;
            }
            Outcome::Done(result) => {
                assert_eq!(result, Err(Errno::ENOMEM));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    waiting
}

#[test]
fn queues_and_segments_end_at_the_memory_limit() {
    let mut s = sandbox();
    let text = s.put_struct(&[1u64; 1024]);
    let result: Result<u64, Errno> = loop {
        let id = match call!(s, "msgget", 0, CREATE) {
            Ok(id) => id as i64,
            Err(errno) => break Err(errno),
        };
        while let Ok(_) | Err(Errno::ENOMEM) =
            call!(s, "msgsnd", id, text, 8000, i64::from(IPC_NOWAIT))
        {
            if !s.machine.memory.has_room(9000) {
                break;
            }
        }
    };
    assert_eq!(result, Err(Errno::ENOMEM));
    assert_eq!(call!(s, "shmget", 0, 4096, CREATE), Err(Errno::ENOMEM));
    assert_eq!(call!(s, "semget", 0, 10, CREATE), Err(Errno::ENOMEM));
    let memory = &s.machine.memory;
    assert!(memory.used_bytes() <= memory.limit_bytes());
}
