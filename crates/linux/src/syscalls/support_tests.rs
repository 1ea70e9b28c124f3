//! The table's levels of support are true: what is called supported does more than refuse, and what
//! refuses says so.

use super::args::log;
use super::rows::ROWS;
use super::table::{self, Handler, Row, Support};
use crate::kernel::Pid;
use crate::outcome::{CallState, Outcome};
use crate::sched::Call;
use crate::testing::{PID, Sandbox, call};

const CHILD: Pid = Pid(77);
/// Their answer is the same whatever the arguments.
const LOOK_AT_NO_ARGUMENT: [&str; 1] = ["pkey_free"];
/// Calls of each row with arguments that fit its signature, drawn at random.
const TRIES: usize = 10_000;

/// A sandbox with something of each kind to name, and the words that name it.
struct Tried {
    sandbox: Sandbox,
    descriptors: Vec<u64>,
    strings: Vec<u64>,
    pointers: Vec<u64>,
    /// A socket without a name, one that connections come in on, and the address of the latter's name.
    sockets: [u64; 3],
    attached: u64,
    /// A message queue with a message, and an answered question.
    queue: u64,
    ticket: u64,
}

/// A listener with a connection that nobody has accepted, beside a socket that nothing has been done with.
fn set_up_sockets(sandbox: &mut Sandbox) -> [u64; 3] {
    let name = sandbox.put(b"\x01\x00/tmp/socket\0").cast_unsigned();
    let mut socket = || call!(sandbox, "socket", 1, 1, 0).unwrap();
    let [unused, listener, client] = [socket(), socket(), socket()];
    for (name, args) in [
        ("bind", [listener, name, 14]),
        ("listen", [listener, 1, 0]),
        ("connect", [client, name, 14]),
    ] {
        let args = args.map(|word| word.cast_signed().into());
        sandbox.call(name, &args).unwrap();
    }
    [unused, listener, name]
}

fn set_up() -> Tried {
    let mut sandbox = Sandbox::new(std::path::Path::new("/usr"));
    for name in ["/tmp/d", "/tmp/d/e", "/tmp/gone"] {
        call!(sandbox, "mkdir", name, 0o777).unwrap();
    }
    for name in ["/tmp/f", "/tmp/d/f"] {
        sandbox.spill(name, &[7; 9000]).unwrap();
    }
    call!(sandbox, "symlink", "/tmp/f", "/tmp/l").unwrap();
    // Standard streams, AT_FDCWD, none.
    let mut descriptors = vec![0, 1, 2, u64::MAX - 99, u64::MAX];
    for (path, flags) in [("/tmp/f", 2), ("/tmp/d", 0o200_000), ("/usr/bin/env", 0)] {
        descriptors.push(sandbox.open(path, flags).unwrap().cast_unsigned());
    }
    let pair = sandbox.room(8);
    for (name, args) in [("pipe2", &[pair, 0][..]), ("socketpair", &[1, 1, 0, pair])] {
        let args: Vec<_> = args.iter().map(|word| (*word).into()).collect();
        sandbox.call(name, &args).unwrap();
        let fds: [u32; 2] = sandbox.get_struct(pair);
        descriptors.extend(fds.map(u64::from));
    }
    for (name, args) in [
        ("eventfd2", &[3, 0][..]),
        ("epoll_create1", &[0]),
        ("timerfd_create", &[1, 0]),
        ("memfd_create", &[pair, 0]),
        ("inotify_init1", &[0]),
        ("pidfd_open", &[i64::from(PID.0), 0]),
    ] {
        let args: Vec<_> = args.iter().map(|word| (*word).into()).collect();
        descriptors.push(sandbox.call(name, &args).unwrap());
    }
    let inotify = descriptors[descriptors.len() - 2].cast_signed();
    call!(sandbox, "inotify_add_watch", inotify, "/tmp", 0xfff).unwrap();
    sandbox
        .call("timer_create", &[1.into(), 0.into(), pair.into()])
        .unwrap();
    // The first of each kind of System V IPC has the id 0.
    for (name, args) in [
        ("shmget", &[7, 4096, 0o1666][..]),
        ("semget", &[7, 2, 0o1666]),
        ("msgget", &[7, 0o1666]),
    ] {
        let args: Vec<_> = args.iter().map(|word| (*word).into()).collect();
        sandbox.call(name, &args).unwrap();
    }
    let attached = call!(sandbox, "shmat", 0, 0, 0).unwrap();
    // A child that may lead a group. The caller leads none, so that it may lead a session.
    let mut child = sandbox.kernel.processes.get(&PID).unwrap().clone();
    (child.pid, child.ppid, child.pgid) = (CHILD, PID, Pid::INIT);
    child.sid = Pid::INIT;
    sandbox.kernel.processes.insert(CHILD, child);
    let caller = sandbox.kernel.processes.get_mut(&PID).unwrap();
    (caller.pgid, caller.sid) = (Pid::INIT, Pid::INIT);
    let sockets = set_up_sockets(&mut sandbox);
    sandbox.kernel.channel.peer = crate::channel::Peer::Present;
    let queue = call!(sandbox, "mq_open", "queue", 0o4102, 0o600, 0).unwrap();
    call!(sandbox, "mq_timedsend", queue.cast_signed(), 0, 0, 1, 0).unwrap();
    call!(sandbox, "setxattr", "/tmp/f", "user.a", "", 0, 0).unwrap();
    let asks = &mut sandbox.kernel.channel.asks;
    asks.names = ["f"].map(Box::<str>::from).into();
    let ticket = asks.ask(0, std::sync::Arc::from([]));
    asks.answer(ticket, Ok(std::sync::Arc::from([])), 0);
    let strings = [
        "/tmp/f",
        "/usr/bin/env",
        "/tmp/d",
        "/tmp/new",
        "/tmp/l",
        "/tmp/gone",
        "f",
        "new",
        ".",
        "",
        "user.a",
        "queue",
    ];
    let strings = strings.map(|text| sandbox.put(&[text.as_bytes(), b"\0"].concat()));
    let pointers = [
        vec![0; 4096],
        // One buffer, one descriptor to poll, a short time: what most structures begin with.
        [sandbox.room(64).cast_unsigned(), 64]
            .map(u64::to_le_bytes)
            .concat(),
        [4, 1].map(u64::to_le_bytes).concat(),
        [0, 1000].map(u64::to_le_bytes).concat(),
        [0, 0, 0, 1000].map(u64::to_le_bytes).concat(),
        vec![1; 64],
        // A header and no capabilities (capset(2)).
        [0x2008_0522, 0].map(u64::to_le_bytes).concat(),
        // Threads by clone3(2).
        [0x3d_0f00, 0, 0, 0, 0, 0, 0, 0]
            .map(u64::to_le_bytes)
            .concat(),
    ]
    .map(|bytes| sandbox.put(&[bytes, vec![0; 256]].concat()));
    Tried {
        sandbox,
        descriptors,
        strings: strings.map(i64::cast_unsigned).to_vec(),
        pointers: pointers.map(i64::cast_unsigned).to_vec(),
        sockets,
        attached,
        queue,
        ticket,
    }
}

impl Tried {
    /// An argument of the kind that a letter of a signature stands for.
    fn argument(&self, letter: char, random: &mut impl FnMut(usize) -> usize) -> u64 {
        #[rustfmt::skip]
        const NUMBERS: [u64; 17] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 24, 64, 144, 4096, 1 << 20, u64::MAX];
        let pointers = self
            .pointers
            .iter()
            .map(|at| at & !4095)
            .collect::<Vec<_>>();
        let among = match letter {
            'd' => &self.descriptors[..],
            's' => &self.strings,
            'x' if random(2) == 0 => &self.pointers,
            'x' if random(8) == 0 => &pointers,
            _ => &NUMBERS,
        };
        among[random(among.len())]
    }

    /// Arguments that chance would hardly find, for calls that take just a few combinations.
    fn known(&self, name: &str) -> Option<[u64; 6]> {
        const NONE: u64 = u64::MAX;
        const OWN: u64 = PID.0 as u64;
        const THREAD: u64 = 0x3d_0f00;
        let (zeros, buffer) = (self.pointers[0], self.pointers[0]);
        let [.., header, thread] = self.pointers[..] else {
            return None;
        };
        Some(match name {
            "connect" => [self.sockets[0], self.sockets[2], 14, 0, 0, 0],
            "bind" => [self.sockets[0], self.sockets[2], 11, 0, 0, 0],
            "listen" | "accept" | "accept4" => [self.sockets[1], 0, 0, 0, 0, 0],
            "copy_file_range" => [self.descriptors[7], 0, self.descriptors[5], 0, 9, 0],
            "mmap" => [0, 4096, 3, 0x22, NONE, 0],
            "execveat" => [self.descriptors[3], self.strings[1], 0, 0, 0, 0],
            "pidfd_getfd" => [*self.descriptors.last()?, 0, 0, 0, 0, 0],
            "kcmp" => [OWN, OWN, 1, 0, 0, 0],
            "process_vm_readv" | "process_vm_writev" => {
                [OWN, self.pointers[1], 1, self.pointers[1], 1, 0]
            }
            "ioprio_set" | "ioprio_get" => [1, 0, 0, 0, 0, 0],
            "set_mempolicy" | "get_mempolicy" => [0; 6],
            "mbind" => [buffer & !4095, 4096, 0, 0, 0, 0],
            "splice" => [self.descriptors[7], 0, self.descriptors[9], 0, 64, 0],
            "tee" => [self.descriptors[8], self.descriptors[9], 0, 0, 0, 0],
            "vmsplice" => [self.descriptors[9], self.pointers[1], 1, 0, 0, 0],
            "shmdt" => [self.attached, 0, 0, 0, 0, 0],
            "shmat" => [0; 6],
            "semop" | "semtimedop" => [0, zeros, 1, 0, 0, 0],
            "msgsnd" => [0, self.pointers[5], 8, 0, 0, 0],
            "msgrcv" => [0, buffer, 64, 0, 0, 0],
            "pkey_mprotect" => [buffer & !4095, 4096, 3, NONE, 0, 0],
            "ioctl" => [self.descriptors[8], 0x541b, buffer, 0, 0, 0],
            "wait4" => [NONE, 0, 1, 0, 0, 0],
            "waitid" => [0, 0, 0, 5, 0, 0],
            "pidfd_send_signal" => [*self.descriptors.last()?, 0, 0, 0, 0, 0],
            "setpgid" => [u64::from(CHILD.0.cast_unsigned()), 0, 0, 0, 0, 0],
            "clone" => [THREAD, buffer, zeros, zeros, 0, 0],
            "clone3" => [thread, 64, 0, 0, 0, 0],
            "arch_prctl" => [0x1003, buffer, 0, 0, 0, 0],
            "capset" => [header, zeros, 0, 0, 0, 0],
            "fchownat" => [self.descriptors[3], self.strings[0], NONE, NONE, 0, 0],
            "setresuid" | "setresgid" => [NONE; 6],
            "signalfd" | "signalfd4" => [NONE, zeros, 8, 0, 0, 0],
            "set_robust_list" => [zeros, 24, 0, 0, 0, 0],
            "getxattr" | "lgetxattr" => [self.strings[0], self.strings[10], buffer, 64, 0, 0],
            "fgetxattr" => [self.descriptors[5], self.strings[10], buffer, 64, 0, 0],
            "removexattr" | "lremovexattr" => [self.strings[0], self.strings[10], 0, 0, 0, 0],
            "fremovexattr" => [self.descriptors[5], self.strings[10], 0, 0, 0, 0],
            "mq_unlink" => [self.strings[11], 0, 0, 0, 0, 0],
            "mq_timedsend" => [self.queue, buffer, 8, 0, 0, 0],
            "mq_timedreceive" => [self.queue, buffer, 8192, 0, 0, 0],
            "mq_notify" => [self.queue, 0, 0, 0, 0, 0],
            "mq_getsetattr" => [self.queue, 0, buffer, 0, 0, 0],
            "kvmlet_ask" => [self.strings[6], buffer, 8, 0, 0, 0],
            "kvmlet_answer" => [self.ticket, buffer, 64, 0, 0, 0],
            "prlimit64" => [0, 7, 0, buffer, 0, 0],
            _ => return None,
        })
    }

    /// True if a call of this row is answered by more than an error. The first call has arguments that are
    /// known to do, if any are, and others have random ones.
    fn succeeds(
        &mut self,
        row: &Row,
        turn: usize,
        random: &mut impl FnMut(usize) -> usize,
    ) -> bool {
        let mut call = Call {
            nr: u64::from(row.nr),
            args: [0; 6],
        };
        match self.known(row.name).filter(|_| turn == 0) {
            Some(args) => call.args = args,
            None => {
                for (word, letter) in call.args.iter_mut().zip(row.signature.chars()) {
                    *word = self.argument(letter, random);
                }
            }
        }
        self.sandbox.host.begin_call();
        let outcome = table::call(&mut self.sandbox.cx(), &call, &CallState::default());
        !matches!(outcome, Outcome::Done(Err(_)))
    }
}

#[test]
fn supported_calls_do_not_only_refuse_and_refused_ones_are_reported() {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut wrong = Vec::new();
    for row in ROWS {
        let supported = matches!(row.support, Support::Full | Support::Partial);
        let mut tried = set_up();
        let before =
            tried.sandbox.host.report.events.len() + tried.sandbox.host.report.denials.len();
        let tries = if supported { TRIES } else { TRIES / 5 };
        let succeeded = (0..tries).any(|turn| tried.succeeds(row, turn, &mut random));
        let report = &tried.sandbox.host.report;
        let told = report.events.len() + report.denials.len() > before;
        if succeeded != supported || (row.support == Support::Refused && !told) {
            wrong.push((row.name, row.support, succeeded, told));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn each_signature_says_how_its_handler_decodes_the_arguments() {
    let mut wrong = Vec::new();
    for row in ROWS {
        if !matches!(row.handler, Handler::Value(_) | Handler::Wait(_)) {
            continue;
        }
        let mut sandbox = Sandbox::new(std::path::Path::new("/usr"));
        let call = Call {
            nr: u64::from(row.nr),
            args: [0; 6],
        };
        sandbox.host.begin_call();
        log::take();
        table::call(&mut sandbox.cx(), &call, &CallState::default());
        let decoded = log::take();
        let expected = if row.signature.is_empty() || LOOK_AT_NO_ARGUMENT.contains(&row.name) {
            vec![]
        } else {
            vec![row.signature.to_owned()]
        };
        if decoded != expected {
            wrong.push((row.name, row.signature, decoded));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
