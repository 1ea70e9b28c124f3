//! Whose turn it is, without KVM: nothing of a thread runs.

use super::Personality;
use crate::kernel::Tid;
use crate::sched::Yield;
use crate::testing::{Sandbox, TID, TempTree};

const OTHER: Tid = Tid(50);
const CHILD: Tid = Tid(51);

/// A thread that could go on, beside one that computes and one that has just been made.
fn three(tree: &TempTree) -> Personality {
    let sandbox = Sandbox::new(&tree.0);
    let mut personality = Personality::new(sandbox.kernel, sandbox.machine, sandbox.host);
    let kernel = &mut personality.kernel;
    let thread = kernel.threads.get(&TID).unwrap().clone();
    for tid in [OTHER, CHILD] {
        kernel.threads.insert(tid, thread.clone());
    }
    kernel.sched.forget(TID);
    kernel.sched.end_slice(OTHER);
    personality.cpus[0].current = Some(TID);
    personality.cpus[0].slice_end_ns = u64::MAX;
    personality
}

#[test]
fn who_yields_waits_for_who_computes_and_a_parent_for_its_child_only() {
    let tree = TempTree::new("turns");
    let mut p = three(&tree);
    assert_eq!(p.choose(), Some(TID));
    p.kernel.sched.yielding = Yield::ToAll;
    assert_eq!([p.choose(), p.choose()], [Some(OTHER); 2]);
    let mut p = three(&tree);
    p.kernel.sched.run_queue.push_front(CHILD);
    p.kernel.sched.yielding = Yield::ToChild;
    assert_eq!(p.choose(), Some(CHILD));
    // The child ends: its parent has not used up a slice.
    p.kernel.threads.remove(&CHILD);
    assert_eq!(p.choose(), Some(TID));
}
