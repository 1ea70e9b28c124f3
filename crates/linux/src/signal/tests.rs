use super::*;

fn info(signo: u8, code: i32) -> SigInfo {
    SigInfo {
        signo,
        code,
        ..SigInfo::default()
    }
}

#[test]
fn standard_signals_merge_and_realtime_signals_queue() {
    let mut pending = Pending::default();
    pending.add(info(10, 1));
    pending.add(info(10, 2));
    pending.add(info(40, 1));
    pending.add(info(34, 1));
    pending.add(info(40, 2));
    let order: Vec<(u8, i32)> = std::iter::from_fn(|| pending.take(u64::MAX))
        .map(|i| (i.signo, i.code))
        .collect();
    assert_eq!(order, [(10, 1), (34, 1), (40, 1), (40, 2)]);
}

#[test]
fn queues_are_bounded_together() {
    use crate::testing::{PID, Sandbox, TID};
    let mut s = Sandbox::new(std::path::Path::new("/usr"));
    s.kernel.threads.get_mut(&TID).unwrap().signals.mask = u64::MAX;
    let process = s.kernel.processes.get(&PID).unwrap();
    let limit = process.rlimits.soft(Resource::Sigpending);
    for number in 0..limit {
        let sent = match number % 2 {
            0 => s.kernel.send_to_process(PID, info(40, SI_TKILL)),
            _ => s.kernel.send_to_thread(TID, info(41, SI_TKILL)),
        };
        assert_eq!(sent, Ok(()));
    }
    let full = Err(Errno::EAGAIN);
    assert_eq!(s.kernel.send_to_process(PID, info(40, SI_TKILL)), full);
    assert_eq!(s.kernel.send_to_thread(TID, info(42, SI_TKILL)), full);
    // kill(2) and standard signals add one of each number at most.
    for signo in [10, 40, 43] {
        for _ in 0..2 {
            assert_eq!(s.kernel.send_to_process(PID, info(signo, SI_USER)), Ok(()));
        }
    }
    assert_eq!(s.kernel.queued_signals() as u64, limit + 2);
}

#[test]
fn a_signal_to_the_process_is_for_one_thread() {
    use crate::testing::{PID, Sandbox, TID};
    let mut s = Sandbox::new(std::path::Path::new("/usr"));
    let other = Tid(3);
    let mut thread = s.kernel.threads.get(&TID).unwrap().clone();
    thread.tid = other;
    s.kernel.threads.insert(other, thread);
    let wait = Wait {
        on: WaitOn::Nothing,
        deadline_ns: None,
        resume: Resume::Retry(CallState::default()),
    };
    s.kernel.sched.park(other, Call::default(), wait);
    let handled = Sigaction {
        handler: 0x1000,
        ..Sigaction::default()
    };
    let process = s.kernel.processes.get_mut(&PID).unwrap();
    process.signals.actions.insert(10, handled);
    s.kernel.send_to_process(PID, info(10, 0)).unwrap();
    assert!(s.kernel.has_signal(TID) && !s.kernel.has_signal(other));
    assert_eq!(s.kernel.take_signal(other, 0), None);
    s.kernel.retarget_signals();
    assert!(s.kernel.sched.parked.contains_key(&other));
    // The first thread blocks it before it has taken it.
    s.kernel.threads.get_mut(&TID).unwrap().signals.mask = bit(10);
    s.kernel.retarget_signals();
    assert!(s.kernel.sched.parked.is_empty());
    assert_eq!(
        s.kernel.take_signal(other, 0).map(|info| info.signo),
        Some(10)
    );
}
