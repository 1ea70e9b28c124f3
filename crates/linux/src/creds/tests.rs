use super::*;

fn creds(uid: u32) -> Creds {
    Creds::of_caller(&Ids {
        uid,
        gid: uid,
        groups: [uid].into(),
    })
}

fn quad(real: u32, effective: u32, saved: u32, fs: u32) -> Quad {
    Quad {
        real,
        effective,
        saved,
        fs,
    }
}

#[test]
fn root_that_becomes_another_has_no_way_back() {
    let user = creds(0).with_user(Change::One(33)).unwrap();
    assert_eq!(user.user, Quad::all(33));
    assert_eq!((user.effective, user.permitted), Default::default());
    assert_eq!(user.bounding, Caps::ROOT);
    for change in [
        Change::One(0),
        Change::Two(0, KEPT),
        Change::Two(KEPT, 0),
        Change::Three([KEPT, KEPT, 0]),
    ] {
        assert_eq!(user.with_user(change), Err(Errno::EPERM), "{change:?}");
        assert_eq!(user.with_group(Change::Fs(0)).unwrap().group.fs, 0);
    }
    assert_eq!(user.with_groups(vec![0]), Err(Errno::EPERM));
    assert_eq!(user.with_user(Change::Fs(0)), Ok(user.clone()));
    // Neither by executing a program.
    assert_eq!(user.after_exec().permitted, Caps::default());
}

#[test]
fn seteuid_puts_capabilities_aside() {
    let user = creds(0).with_user(Change::Three([KEPT, 33, KEPT])).unwrap();
    assert_eq!(user.user, quad(0, 33, 0, 33));
    assert_eq!(user.effective, Caps::default());
    assert_eq!(user.permitted, Caps::ROOT);
    let back = user.with_user(Change::Three([KEPT, 0, KEPT])).unwrap();
    assert_eq!(back, creds(0));
}

#[test]
fn setreuid_saves_the_effective_id() {
    let new = creds(0).with_user(Change::Two(5, 6)).unwrap();
    assert_eq!(new.user, quad(5, 6, 6, 6));
    // Both may be exchanged without any capability.
    let exchanged = new.with_user(Change::Two(6, 5)).unwrap();
    assert_eq!(exchanged.user, quad(6, 5, 5, 5));
    assert_eq!(new.with_user(Change::Two(7, KEPT)), Err(Errno::EPERM));
    // Only what is not the real id is saved.
    let lone = new.with_user(Change::Two(KEPT, 5)).unwrap();
    assert_eq!(lone.user, quad(5, 5, 6, 5));
}

#[test]
fn an_id_that_nobody_has_is_refused() {
    assert_eq!(creds(0).with_user(Change::One(KEPT)), Err(Errno::EINVAL));
    assert_eq!(creds(0).with_group(Change::One(KEPT)), Err(Errno::EINVAL));
    assert_eq!(creds(0).with_user(Change::Fs(KEPT)), Ok(creds(0)));
}

#[test]
fn keepcaps_lasts_until_execve() {
    let keeping = creds(0).with_keepcaps(1).unwrap();
    let user = keeping.with_user(Change::One(33)).unwrap();
    assert_eq!(
        (user.effective, user.permitted),
        (Caps::default(), Caps::ROOT)
    );
    let after = user.after_exec();
    assert_eq!(after.permitted, Caps::default());
    assert_eq!(after.securebits, 0);
    assert_eq!(creds(0).with_keepcaps(2), Err(Errno::EINVAL));
}

#[test]
fn the_id_for_files_takes_their_capabilities_along() {
    let new = creds(0).with_user(Change::Fs(33)).unwrap();
    assert_eq!(new.user, quad(0, 0, 0, 33));
    assert!(!new.has(CAP_DAC_OVERRIDE) && new.has(CAP_SETUID));
    assert_eq!(new.with_user(Change::Fs(0)), Ok(creds(0)));
}

#[test]
fn capabilities_only_become_fewer() {
    let caps = |bits| Caps::from_bits(bits);
    let root = creds(0);
    let one = Caps::of(&[CAP_CHOWN]);
    let few = root.with_caps((one, one, one)).unwrap();
    let all = (Caps::ROOT, Caps::ROOT, Caps::default());
    assert_eq!(few.with_caps(all), Err(Errno::EPERM));
    let unknown = (caps(u64::MAX), caps(u64::MAX), caps(0));
    assert_eq!(root.with_caps(unknown), Err(Errno::EPERM));
    // Root executes a program: those that it gave up do not come back.
    assert_eq!(few.after_exec().permitted, one);
    let bound = root.without_bound(u64::from(CAP_KILL)).unwrap();
    assert!(bound.has(CAP_KILL) && !bound.after_exec().has(CAP_KILL));
    assert_eq!(root.without_bound(41), Err(Errno::EINVAL));
}

#[test]
fn ambient_capabilities_pass_execve() {
    let one = Caps::of(&[CAP_KILL]);
    let root = creds(0).with_caps((Caps::ROOT, Caps::ROOT, one)).unwrap();
    let ambient = root.with_keepcaps(1).unwrap();
    let user = ambient.with_user(Change::One(33)).unwrap();
    let user = user.with_ambient(u64::from(CAP_KILL)).unwrap();
    assert_eq!(user.with_ambient(0), Err(Errno::EPERM));
    let after = user.after_exec();
    assert_eq!((after.permitted, after.effective), (one, one));
    assert!(after.is_plain());
}

#[test]
fn securebits_can_be_locked() {
    let root = creds(0).with_securebits(0b11).unwrap();
    assert_eq!(root.with_securebits(0b10), Err(Errno::EPERM));
    assert_eq!(root.with_securebits(0b01), Err(Errno::EPERM));
    assert_eq!(root.with_securebits(1 << 32), Err(Errno::EPERM));
    // Without what root has by its id, executing a program leaves nothing.
    assert_eq!(root.after_exec().permitted, Caps::default());
    assert_eq!(creds(33).with_securebits(0), Err(Errno::EPERM));
}

#[test]
fn who_is_not_root_keeps_its_ids() {
    let user = creds(1000);
    assert_eq!(user.permitted, Caps::default());
    assert_eq!(user.with_user(Change::One(1000)), Ok(user.clone()));
    assert_eq!(user.with_user(Change::One(0)), Err(Errno::EPERM));
    assert_eq!(user.with_group(Change::Two(0, 0)), Err(Errno::EPERM));
    assert_eq!(user.with_groups(Vec::new()), Err(Errno::EPERM));
    assert_eq!(user.after_exec(), user);
}

#[test]
fn processes_are_told_apart_by_their_users() {
    let (root, one, other) = (creds(0), creds(33), creds(34));
    assert!(root.may_signal(&one) && one.may_signal(&one));
    assert!(!one.may_signal(&other) && !one.may_signal(&root));
    let aside = root.with_user(Change::Three([33, KEPT, KEPT])).unwrap();
    assert!(one.may_signal(&aside) && !one.may_look_into((&aside, true), By::Real));
    assert!(one.may_look_into((&one, true), By::Files));
    assert!(!one.may_look_into((&one, false), By::Files));
    assert!(!root.may_look_into((&one, true), By::Files));
    assert!(one.may_limit(&one) && !root.may_limit(&one));
    assert!(one.may_schedule(&one) && !root.may_schedule(&one));
}

#[test]
fn access_asks_for_the_real_user() {
    let set_id = creds(0).with_user(Change::Three([33, 0, 0])).unwrap();
    let real = set_id.of_real();
    assert_eq!((real.user.fs, real.effective), (33, Caps::default()));
    assert_eq!(creds(0).of_real(), creds(0));
}
