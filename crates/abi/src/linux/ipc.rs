//! Constants and structures of System V IPC (linux/ipc.h, linux/shm.h, linux/sem.h, linux/msg.h).

pub const IPC_PRIVATE: i32 = 0;
pub const IPC_CREAT: u32 = 0o1000;
pub const IPC_EXCL: u32 = 0o2000;
pub const IPC_NOWAIT: u32 = 0o4000;

pub const IPC_RMID: i32 = 0;
pub const IPC_SET: i32 = 1;
pub const IPC_STAT: i32 = 2;
pub const IPC_INFO: i32 = 3;

pub const SHM_RDONLY: u32 = 0o10000;
pub const SHM_RND: u32 = 0o20000;
pub const SHM_REMAP: u32 = 0o40000;
pub const SHM_EXEC: u32 = 0o100000;
pub const SHM_HUGETLB: u32 = 0o4000;
pub const SHM_LOCK: i32 = 11;
pub const SHM_UNLOCK: i32 = 12;
pub const SHM_STAT: i32 = 13;
pub const SHM_INFO: i32 = 14;
pub const SHM_STAT_ANY: i32 = 15;
pub const SHM_DEST: u32 = 0o1000;
pub const SHM_LOCKED: u32 = 0o2000;

pub const SEM_UNDO: i16 = 0x1000;
pub const GETPID: i32 = 11;
pub const GETVAL: i32 = 12;
pub const GETALL: i32 = 13;
pub const GETNCNT: i32 = 14;
pub const GETZCNT: i32 = 15;
pub const SETVAL: i32 = 16;
pub const SETALL: i32 = 17;
pub const SEM_STAT: i32 = 18;
pub const SEM_INFO: i32 = 19;
pub const SEM_STAT_ANY: i32 = 20;

pub const MSG_NOERROR: u32 = 0o10000;
pub const MSG_EXCEPT: u32 = 0o20000;
pub const MSG_COPY: u32 = 0o40000;
pub const MSG_STAT: i32 = 11;
pub const MSG_INFO: i32 = 12;
pub const MSG_STAT_ANY: i32 = 13;

guest_struct! {
    /// struct ipc64_perm (asm-generic/ipcbuf.h)
    pub struct Ipc64Perm {
        pub key: i32, pub uid: u32, pub gid: u32, pub cuid: u32, pub cgid: u32, pub mode: u32,
        pub seq: u16, pub __pad2: u16, pub __pad3: u32, pub __unused1: u64, pub __unused2: u64,
    }
}

guest_struct! {
    /// struct shmid64_ds (asm-generic/shmbuf.h)
    pub struct Shmid64Ds {
        pub shm_perm: Ipc64Perm, pub shm_segsz: u64, pub shm_atime: i64, pub shm_dtime: i64,
        pub shm_ctime: i64, pub shm_cpid: i32, pub shm_lpid: i32, pub shm_nattch: u64,
        pub __unused4: u64, pub __unused5: u64,
    }
}

guest_struct! {
    /// struct shminfo64 (asm-generic/shmbuf.h)
    pub struct Shminfo64 {
        pub shmmax: u64, pub shmmin: u64, pub shmmni: u64, pub shmseg: u64, pub shmall: u64,
        pub __unused: [u64; 4],
    }
}

guest_struct! {
    /// struct shm_info (linux/shm.h)
    pub struct ShmInfo {
        pub used_ids: i32, pub __pad: u32, pub shm_tot: u64, pub shm_rss: u64, pub shm_swp: u64,
        pub swap_attempts: u64, pub swap_successes: u64,
    }
}

guest_struct! {
    /// struct semid64_ds (asm/sembuf.h)
    pub struct Semid64Ds {
        pub sem_perm: Ipc64Perm, pub sem_otime: i64, pub __unused1: u64, pub sem_ctime: i64,
        pub __unused2: u64, pub sem_nsems: u64, pub __unused3: u64, pub __unused4: u64,
    }
}

guest_struct! {
    /// struct sembuf (linux/sem.h)
    pub struct Sembuf { pub sem_num: u16, pub sem_op: i16, pub sem_flg: i16, }
}

guest_struct! {
    /// struct seminfo (linux/sem.h)
    pub struct Seminfo {
        pub semmap: i32, pub semmni: i32, pub semmns: i32, pub semmnu: i32, pub semmsl: i32,
        pub semopm: i32, pub semume: i32, pub semusz: i32, pub semvmx: i32, pub semaem: i32,
    }
}

guest_struct! {
    /// struct msqid64_ds (asm-generic/msgbuf.h)
    pub struct Msqid64Ds {
        pub msg_perm: Ipc64Perm, pub msg_stime: i64, pub msg_rtime: i64, pub msg_ctime: i64,
        pub msg_cbytes: u64, pub msg_qnum: u64, pub msg_qbytes: u64, pub msg_lspid: i32,
        pub msg_lrpid: i32, pub __unused4: u64, pub __unused5: u64,
    }
}

guest_struct! {
    /// struct msginfo (linux/msg.h)
    pub struct Msginfo {
        pub msgpool: i32, pub msgmap: i32, pub msgmax: i32, pub msgmnb: i32, pub msgmni: i32,
        pub msgssz: i32, pub msgtql: i32, pub msgseg: u16, pub __pad: u16,
    }
}

const _: () = {
    assert!(core::mem::size_of::<Ipc64Perm>() == 48);
    assert!(core::mem::size_of::<Shmid64Ds>() == 112);
    assert!(core::mem::size_of::<Semid64Ds>() == 104);
    assert!(core::mem::size_of::<Msqid64Ds>() == 120);
    assert!(core::mem::size_of::<Msginfo>() == 32);
};
