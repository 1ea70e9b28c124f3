//! epoll instances (epoll(7)) as values.
//!
//! As in fs/eventpoll.c, an event puts every item that watches its source on the ready list of the
//! item's instance. epoll_wait(2) takes items off the list, asks what holds now, and puts
//! level-triggered ones back at the end. What has been raised and not yet reported is the list: data,
//! so that an edge is neither lost nor raised twice by a freeze.
//!
//! Inherited streams raise no events by themselves. Whenever somebody waits on an instance or asks it,
//! its items on such streams are asked first ([`refresh`]). For an edge-triggered one it is an edge
//! when an event holds that did not when last asked. It is one too when more bytes can be read than
//! were left then. A transfer that would have had to wait forgets the event.
//!
//! Linux differs: it limits the number of ways from a source to instances that watch one another
//! (reverse_path_check). Here there is no such limit, since each instance is told and asked only once
//! for an event. And a wait does not keep an instance alive whose last descriptor another thread closes.

pub use kvmlet_abi::linux::eventpoll::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP};
use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, OrdSet, Vector};
use kvmlet_abi::Errno;
use kvmlet_hostfs::{stream, terminal};
use kvmlet_mem::GuestMemory;

use super::anon::ObjectId;
use super::file;
use super::ready::{self, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM};
use crate::cx::Cx;
use crate::fd::{FileId, FileKind, OpenFile};
use crate::host::{Host, HostId};
use crate::kernel::Kernel;
use crate::outcome::Source;

/// Not events but modes (EP_PRIVATE_BITS).
const MODES: u32 = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET;

/// Items of all instances together at most (/proc/sys/fs/epoll/max_user_watches).
pub const ITEMS_MAX: usize = 65_536;
/// Charged to the memory limit for each item, in bytes.
const ITEM_BYTES: u64 = 512;
/// Instances below one another at most (EP_MAX_NESTS).
const NESTS_MAX: usize = 4;
/// Time between two looks at an edge-triggered item on an inherited stream that still has bytes to read,
/// in nanoseconds. Each look asks whether there are more.
pub const RECHECK_NS: u64 = 10_000_000;

/// The key that an item is registered by: its description and the descriptor number it was added with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The description.
    pub file: FileId,
    /// The number.
    pub fd: i32,
}

/// One registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Item {
    /// Events and modes; without events while a one-shot item is disabled.
    events: u32,
    /// The value that epoll_wait(2) gives back.
    data: u64,
    /// The source that raises its events; `None` for what never changes by itself.
    source: Option<Source>,
    /// Events of its source that concern it: a pipe's ends have one source.
    listens: i16,
    /// Its place among the watchers of its source.
    order: u64,
    /// Its place on the ready list.
    ready: Option<u64>,
    /// The state that its inherited stream was last seen in.
    seen: Seen,
}

/// The state of an inherited stream when it was last asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    events: i16,
    bytes: u64,
}

/// An epoll instance.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Epoll {
    items: OrdMap<Key, Item>,
    /// Raised and not yet reported, oldest first.
    ready: OrdMap<u64, Key>,
    /// Items on inherited streams.
    streams: OrdMap<Key, HostId>,
    /// Items on other instances.
    nested: OrdMap<Key, ObjectId>,
}

/// A watcher's source, whether it is exclusive, and its age.
type Place = (Source, bool, u64);

/// All epoll instances.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Epolls {
    instances: OrdMap<ObjectId, Epoll>,
    watchers: OrdMap<Place, (ObjectId, Key)>,
    /// Items by description, to be dropped with it.
    files: OrdSet<(FileId, ObjectId, i32)>,
    next_place: u64,
}

/// poll(2) events among an item's.
fn poll_bits(events: u32) -> i16 {
    const EVENTS: u32 = 0x7fff;
    i16::try_from(events & EVENTS).unwrap_or(0)
}

impl Item {
    fn is_exclusive(&self) -> bool {
        self.events & EPOLLEXCLUSIVE != 0
    }

    fn is_enabled(&self) -> bool {
        self.events & !MODES != 0
    }

    fn is_edge(&self) -> bool {
        self.events & EPOLLET != 0
    }

    fn place(&self) -> Option<Place> {
        let source = self.source?;
        Some((source, self.is_exclusive(), self.order))
    }
}

impl Epolls {
    /// Adds an instance.
    pub fn create(&mut self, id: ObjectId) {
        self.instances.insert(id, Epoll::default());
    }

    fn get(&self, id: ObjectId) -> Result<&Epoll, Errno> {
        self.instances.get(&id).ok_or(Errno::EBADF)
    }

    fn item_mut(&mut self, id: ObjectId, key: Key) -> Option<&mut Item> {
        self.instances.get_mut(&id)?.items.get_mut(&key)
    }

    fn item(&self, id: ObjectId, key: Key) -> Option<&Item> {
        self.instances.get(&id)?.items.get(&key)
    }

    fn take_place(&mut self) -> u64 {
        self.next_place = self.next_place.saturating_add(1);
        self.next_place
    }

    /// Puts an item at the end of the ready list, unless it is on it.
    fn link(&mut self, id: ObjectId, key: Key) {
        let place = self.take_place();
        if let Some(epoll) = self.instances.get_mut(&id)
            && let Some(item) = epoll.items.get_mut(&key)
            && item.ready.is_none()
        {
            item.ready = Some(place);
            epoll.ready.insert(place, key);
        }
    }

    fn unlink(&mut self, id: ObjectId, key: Key) {
        if let Some(epoll) = self.instances.get_mut(&id)
            && let Some(item) = epoll.items.get_mut(&key)
            && let Some(place) = item.ready.take()
        {
            epoll.ready.remove(&place);
        }
    }

    /// Removes an item. Whether there was one.
    fn remove(&mut self, id: ObjectId, key: Key) -> bool {
        self.unlink(id, key);
        let Some(epoll) = self.instances.get_mut(&id) else {
            return false;
        };
        let Some(item) = epoll.items.remove(&key) else {
            return false;
        };
        epoll.streams.remove(&key);
        epoll.nested.remove(&key);
        self.files.remove(&(key.file, id, key.fd));
        if let Some(place) = item.place() {
            self.watchers.remove(&place);
        }
        true
    }

    /// Who watches a source, in the order of Linux's wait queues: the newest first, then the exclusive
    /// ones, the oldest first.
    fn watchers_of(&self, source: Source) -> Vec<(ObjectId, Key)> {
        let group = |exclusive: bool| {
            let all = (source, exclusive, 0)..=(source, exclusive, u64::MAX);
            self.watchers.range(all).map(|(_, found)| *found)
        };
        group(false).rev().chain(group(true)).collect()
    }

    /// Instances nested in `id`, itself included, that are not `found` yet; they are then.
    fn below(&self, id: ObjectId, found: &mut BTreeSet<ObjectId>) -> Vec<ObjectId> {
        let mut open: Vec<ObjectId> = found.insert(id).then_some(id).into_iter().collect();
        let mut all = Vec::new();
        while let Some(id) = open.pop() {
            all.push(id);
            let Some(epoll) = self.instances.get(&id) else {
                continue;
            };
            let nested = epoll.nested.values().copied();
            open.extend(nested.filter(|nested| found.insert(*nested)));
        }
        all
    }

    /// Levels of instances below `id` (`Way::Down`) or above it (`Way::Up`); more than [`NESTS_MAX`]
    /// counts as one more, and so does meeting `barred`.
    fn depth(&self, id: ObjectId, way: Way, barred: Option<ObjectId>) -> usize {
        let mut level = BTreeSet::from([id]);
        let mut depth = 0usize;
        loop {
            let mut next = BTreeSet::new();
            for id in &level {
                match way {
                    Way::Down => {
                        let epoll = self.instances.get(id);
                        next.extend(epoll.iter().flat_map(|epoll| epoll.nested.values()));
                    }
                    Way::Up => {
                        let above = self.watchers_of(Source::Object(*id));
                        next.extend(above.into_iter().map(|(id, _)| id));
                    }
                }
            }
            if next.is_empty() {
                return depth;
            }
            depth = depth.saturating_add(1);
            if depth > NESTS_MAX || barred.is_some_and(|barred| next.contains(&barred)) {
                return NESTS_MAX.saturating_add(1);
            }
            level = next;
        }
    }

    /// Events of inherited stream `host` for edge-triggered items: the guest has read `count` bytes.
    pub fn stream_read(&mut self, host: HostId, count: u64) {
        self.on_stream(host, |seen| seen.bytes = seen.bytes.saturating_sub(count));
    }

    /// A transfer on inherited stream `host` would have had to wait for one of `events`: it becomes an
    /// edge when it holds again.
    pub fn stream_blocked(&mut self, host: HostId, events: i16) {
        self.on_stream(host, |seen| {
            seen.events &= !events;
            if events & POLLIN != 0 {
                seen.bytes = 0;
            }
        });
    }

    fn on_stream(&mut self, host: HostId, change: impl Fn(&mut Seen)) {
        for (id, key) in self.watchers_of(Source::Host(host, 0)) {
            if let Some(item) = self.item_mut(id, key) {
                change(&mut item.seen);
            }
        }
    }

    /// The text that /proc/self/fdinfo shows of an instance's items (proc_pid_fdinfo(5)).
    #[must_use]
    pub fn info(&self, id: ObjectId) -> String {
        let Some(epoll) = self.instances.get(&id) else {
            return String::new();
        };
        let line = |(key, item): (&Key, &Item)| {
            format!(
                "tfd: {:8} events: {:8x} data: {:16x}  pos:0 ino:0 sdev:0\n",
                key.fd, item.events, item.data
            )
        };
        epoll.items.iter().map(line).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// Wakes that wait for the end of what makes them. Many may come from one place: then each source, and
/// each instance that watches, is told once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeldWakes {
    /// Number of those that have asked to hold them.
    holders: u32,
    /// In the order in which they came.
    sources: Vec<Source>,
    events: BTreeMap<Source, i16>,
}

impl HeldWakes {
    fn add(&mut self, source: Source, events: i16) {
        match self.events.get_mut(&source) {
            None => {
                self.sources.push(source);
                self.events.insert(source, events);
            }
            Some(all) if *all == 0 || events == 0 => *all = 0,
            Some(all) => *all |= events,
        }
    }
}

impl Kernel {
    /// `events` of `source` may hold from now on (0: any may). Threads that wait for it make their calls
    /// again, and what watches it is put on its ready list. This is where Linux wakes a wait queue with a
    /// key.
    pub fn wake(&mut self, source: Source, events: i16) {
        if let Source::Object(id) = source {
            self.objects.sockets.note_change(id);
        }
        if self.held_wakes.holders > 0 {
            self.held_wakes.add(source, events);
        } else {
            self.wake_now(source, events, &mut BTreeSet::new());
        }
    }

    /// Does something that may wake many, and then wakes.
    pub fn with_wakes_held<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        self.hold_wakes();
        let done = act(self);
        self.release_wakes();
        done
    }

    /// Wakes wait until [`Kernel::release_wakes`] has been called as often as this.
    pub fn hold_wakes(&mut self) {
        self.held_wakes.holders = self.held_wakes.holders.saturating_add(1);
    }

    /// See [`Kernel::hold_wakes`].
    pub fn release_wakes(&mut self) {
        let held = &mut self.held_wakes;
        held.holders = held.holders.saturating_sub(1);
        if held.holders > 0 || held.sources.is_empty() {
            return;
        }
        let held = core::mem::take(held);
        let mut told = BTreeSet::new();
        for source in held.sources {
            let events = held.events.get(&source).copied().unwrap_or(0);
            self.wake_now(source, events, &mut told);
        }
    }

    fn wake_now(&mut self, source: Source, events: i16, told: &mut BTreeSet<ObjectId>) {
        self.signal_owners(source, events);
        let mut queue = vec![(source, events)];
        while let Some((source, events)) = queue.pop() {
            for (id, key) in self.objects.epolls.watchers_of(source) {
                let Some(item) = self.objects.epolls.item(id, key).copied() else {
                    continue;
                };
                let wanted = poll_bits(item.events);
                let concerns = events == 0 || events & item.listens & wanted != 0;
                if !item.is_enabled() || !concerns {
                    continue;
                }
                self.objects.epolls.link(id, key);
                if told.insert(id) {
                    queue.push((Source::Object(id), POLLIN | POLLRDNORM));
                }
                // One waiter is enough, if it asked for what has happened (ep_poll_callback).
                let direction = match events & (POLLIN | POLLOUT) {
                    POLLIN => wanted & POLLIN != 0,
                    POLLOUT => wanted & POLLOUT != 0,
                    0 => true,
                    _ => false,
                };
                let awaits = item.is_exclusive() && direction;
                if awaits && self.sched.is_awaited(Source::Object(id)) {
                    break;
                }
            }
            self.sched.wake_source(source);
        }
    }
}

/// The objects of ours that threads wait for. Beside those that they name, these are the ones that an epoll instance
/// would report.
#[must_use]
pub fn awaited_objects(kernel: &Kernel) -> BTreeSet<ObjectId> {
    let mut found: BTreeSet<ObjectId> = kernel.sched.awaited_objects().collect();
    let mut open: Vec<ObjectId> = found.iter().copied().collect();
    while let Some(id) = open.pop() {
        let Ok(epoll) = kernel.objects.epolls.get(id) else {
            continue;
        };
        for item in epoll.items.values().filter(|item| item.is_enabled()) {
            if let Some(Source::Object(watched)) = item.source
                && item.events & u32::from(POLLIN.cast_unsigned()) != 0
                && found.insert(watched)
            {
                open.push(watched);
            }
        }
    }
    found
}

/// A description is gone, and so are its registrations.
pub fn file_released(kernel: &mut Kernel, memory: &mut GuestMemory, file: FileId) {
    let epolls = &mut kernel.objects.epolls;
    let all = (file, ObjectId(0), i32::MIN)..=(file, ObjectId(u64::MAX), i32::MAX);
    let found: Vec<_> = epolls.files.range(all).copied().collect();
    for (file, id, fd) in found {
        if epolls.remove(id, Key { file, fd }) {
            memory.uncharge(ITEM_BYTES);
        }
    }
}

/// An instance is gone, and so are its items.
pub fn released(kernel: &mut Kernel, memory: &mut GuestMemory, id: ObjectId) {
    let epolls = &mut kernel.objects.epolls;
    let keys: Vec<Key> = epolls
        .get(id)
        .map(|epoll| epoll.items.keys().copied().collect())
        .unwrap_or_default();
    for key in keys {
        if epolls.remove(id, key) {
            memory.uncharge(ITEM_BYTES);
        }
    }
    epolls.instances.remove(&id);
}

/// EPOLL_CTL_ADD
///
/// # Errors
/// `ELOOP` for a circle or too deep a nesting, `EEXIST`, `ENOSPC`, `ENOMEM`.
pub fn add(
    cx: &mut Cx<'_>,
    id: ObjectId,
    (key, file): (Key, &OpenFile),
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    let epolls = &mut cx.kernel.objects.epolls;
    if let FileKind::Epoll(nested) = file.kind {
        let levels = epolls
            .depth(nested, Way::Down, Some(id))
            .saturating_add(epolls.depth(id, Way::Up, None))
            .saturating_add(1);
        if levels > NESTS_MAX {
            return Err(Errno::ELOOP);
        }
    }
    if epolls.get(id)?.items.contains_key(&key) {
        return Err(Errno::EEXIST);
    }
    if epolls.files.len() >= ITEMS_MAX {
        return Err(Errno::ENOSPC);
    }
    cx.machine
        .memory
        .charge(ITEM_BYTES)
        .map_err(|_| Errno::ENOMEM)?;
    let (source, listens) = file::watched(file);
    let item = Item {
        events: events | always(),
        data,
        source,
        listens,
        order: epolls.take_place(),
        ready: None,
        seen: Seen::default(),
    };
    if let Some(place) = item.place() {
        epolls.watchers.insert(place, (id, key));
    }
    epolls.files.insert((key.file, id, key.fd));
    if let Some(epoll) = epolls.instances.get_mut(&id) {
        epoll.items.insert(key, item);
        if let FileKind::HostStream(host) = file.kind {
            epoll.streams.insert(key, host);
        }
        if let FileKind::Epoll(nested) = file.kind {
            epoll.nested.insert(key, nested);
        }
    }
    raise_if_ready(cx, id, (key, file));
    Ok(())
}

/// EPOLLERR and EPOLLHUP are always watched for.
fn always() -> u32 {
    u32::from((POLLERR | POLLHUP).cast_unsigned())
}

/// EPOLL_CTL_MOD
///
/// # Errors
/// `ENOENT`; `EINVAL` for an exclusive item.
pub fn modify(
    cx: &mut Cx<'_>,
    id: ObjectId,
    (key, file): (Key, &OpenFile),
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    let item = cx.kernel.objects.epolls.item_mut(id, key);
    let item = item.ok_or(Errno::ENOENT)?;
    if item.is_exclusive() {
        return Err(Errno::EINVAL);
    }
    item.events = events | always();
    item.data = data;
    item.seen = Seen::default();
    raise_if_ready(cx, id, (key, file));
    Ok(())
}

/// EPOLL_CTL_DEL
///
/// # Errors
/// `ENOENT`
pub fn delete(cx: &mut Cx<'_>, id: ObjectId, key: Key) -> Result<(), Errno> {
    if !cx.kernel.objects.epolls.remove(id, key) {
        return Err(Errno::ENOENT);
    }
    cx.machine.memory.uncharge(ITEM_BYTES);
    Ok(())
}

/// Raises what holds already when an item is added or changed.
fn raise_if_ready(cx: &mut Cx<'_>, id: ObjectId, (key, file): (Key, &OpenFile)) {
    ready::refresh(cx, file);
    let Some(item) = cx.kernel.objects.epolls.item(id, key) else {
        return;
    };
    if let FileKind::HostStream(host) = file.kind {
        return ask_stream(cx, (id, key), host, &mut Asked::default());
    }
    let wanted = poll_bits(item.events);
    if ready::poll_ready(cx, file, wanted) & wanted != 0 {
        raise(cx.kernel, id, key);
    }
}

fn raise(kernel: &mut Kernel, id: ObjectId, key: Key) {
    kernel.objects.epolls.link(id, key);
    kernel.wake(Source::Object(id), POLLIN | POLLRDNORM);
}

/// The findings of one call that looks at several descriptors. It may name an instance many times, and a
/// hostile nesting has many ways to one.
#[derive(Debug, Default)]
pub struct Asked {
    refreshed: BTreeSet<ObjectId>,
    waited: BTreeSet<ObjectId>,
    readable: BTreeMap<ObjectId, bool>,
    /// The answer of poll(2) on the host for an inherited stream and these events.
    streams: BTreeMap<(HostId, i16), i16>,
    /// Number of bytes that an inherited stream has.
    stream_bytes: BTreeMap<HostId, u64>,
}

impl Asked {
    /// The events of an inherited stream that hold: each stream is asked once.
    pub fn host_ready(&mut self, host: &Host, id: HostId, events: i16) -> i16 {
        *self
            .streams
            .entry((id, events))
            .or_insert_with(|| host_ready(host, id, events).unwrap_or(POLLERR))
    }

    fn readable_bytes(&mut self, host: &Host, id: HostId) -> u64 {
        *self
            .stream_bytes
            .entry(id)
            .or_insert_with(|| readable_bytes(host, id))
    }
}

/// Asks the inherited streams that an instance and those nested in it watch.
pub fn refresh(cx: &mut Cx<'_>, id: ObjectId, asked: &mut Asked) {
    cx.kernel.hold_wakes();
    for id in cx.kernel.objects.epolls.below(id, &mut asked.refreshed) {
        let Ok(epoll) = cx.kernel.objects.epolls.get(id) else {
            continue;
        };
        for (key, host) in epoll.streams.clone() {
            ask_stream(cx, (id, key), host, asked);
        }
    }
    cx.kernel.release_wakes();
}

fn ask_stream(cx: &mut Cx<'_>, (id, key): (ObjectId, Key), host: HostId, asked: &mut Asked) {
    let Some(item) = cx.kernel.objects.epolls.item_mut(id, key) else {
        return;
    };
    // A level-triggered item on the list is asked when it is taken off.
    if !item.is_enabled() || !item.is_edge() && item.ready.is_some() {
        return;
    }
    let wanted = poll_bits(item.events);
    let events = asked.host_ready(cx.host, host, wanted);
    if item.is_edge() {
        let bytes = if events & POLLIN == 0 {
            0
        } else {
            asked.readable_bytes(cx.host, host)
        };
        let before = item.seen;
        item.seen = Seen { events, bytes };
        if events & !before.events == 0 && bytes <= before.bytes {
            return;
        }
    } else if events == 0 {
        return;
    }
    raise(cx.kernel, id, key);
}

fn host_ready(host: &Host, id: HostId, events: i16) -> Result<i16, Errno> {
    stream::ready(host.get(id)?, events)
}

fn readable_bytes(host: &Host, id: HostId) -> u64 {
    use std::os::fd::AsFd;
    host.get(id)
        .and_then(|file| terminal::readable_bytes(file.fd.as_fd()))
        .unwrap_or(0)
}

/// True if an instance has something to report (poll(2) on its descriptor).
#[must_use]
pub fn is_readable(cx: &Cx<'_>, id: ObjectId, asked: &mut Asked) -> bool {
    if let Some(answer) = asked.readable.get(&id) {
        return *answer;
    }
    let Ok(epoll) = cx.kernel.objects.epolls.get(id) else {
        return false;
    };
    let answer = epoll.ready.values().any(|key| {
        let item = epoll.items.get(key);
        item.is_some_and(|item| holds(cx, *key, item, asked) != 0)
    });
    asked.readable.insert(id, answer);
    answer
}

/// The events of an item that hold now.
fn holds(cx: &Cx<'_>, key: Key, item: &Item, asked: &mut Asked) -> i16 {
    let wanted = poll_bits(item.events);
    let Some(file) = cx.kernel.files.get(&key.file) else {
        return 0;
    };
    ready::poll_ready_among(cx, file, wanted, asked) & wanted
}

/// Takes an event: its index, its bits and the item's data.
type Put<'a> = dyn FnMut(&mut Cx<'_>, u64, u32, u64) -> Result<(), Errno> + 'a;

/// Reports at most `max` events with `put(cx, index, events, data)`, in the order in which they were
/// raised (ep_send_events in fs/eventpoll.c).
///
/// # Errors
/// Of `put` for the first event; a later one is reported by the next call.
pub fn report(cx: &mut Cx<'_>, id: ObjectId, max: u64, put: &mut Put<'_>) -> Result<u64, Errno> {
    // What is put back behind `end` waits for the next call.
    let end = cx.kernel.objects.epolls.take_place();
    let mut asked = Asked::default();
    let mut cursor = 0u64;
    let mut count = 0u64;
    while count < max {
        let epoll = cx.kernel.objects.epolls.get(id)?;
        let Some((place, key)) = epoll.ready.range(cursor..end).next() else {
            break;
        };
        let (place, key) = (*place, *key);
        cursor = place.saturating_add(1);
        let Some(item) = epoll.items.get(&key).copied() else {
            continue;
        };
        let state = if item.is_enabled() {
            holds(cx, key, &item, &mut asked)
        } else {
            0
        };
        if state == 0 {
            cx.kernel.objects.epolls.unlink(id, key);
            continue;
        }
        match put(cx, count, u32::from(state.cast_unsigned()), item.data) {
            Ok(()) => count = count.saturating_add(1),
            Err(error) if count == 0 => return Err(error),
            Err(_) => break,
        }
        let epolls = &mut cx.kernel.objects.epolls;
        epolls.unlink(id, key);
        if item.events & EPOLLONESHOT != 0 {
            if let Some(item) = epolls.item_mut(id, key) {
                item.events &= MODES;
            }
        } else if !item.is_edge() {
            epolls.link(id, key);
        }
    }
    Ok(count)
}

/// Adds what wakes a wait on an instance: its own events and, for the inherited streams in it and
/// below, the host's, each stream once. Whether edges can come that the host does not tell, so that it
/// has to be asked again within [`RECHECK_NS`].
pub fn wait_sources(
    cx: &Cx<'_>,
    id: ObjectId,
    sources: &mut Vector<Source>,
    asked: &mut Asked,
) -> bool {
    let mut recheck = false;
    let mut streams: BTreeMap<HostId, i16> = BTreeMap::new();
    sources.push_back(Source::Object(id));
    for id in cx.kernel.objects.epolls.below(id, &mut asked.waited) {
        let Ok(epoll) = cx.kernel.objects.epolls.get(id) else {
            continue;
        };
        for (key, host) in &epoll.streams {
            let Some(item) = epoll.items.get(key).filter(|item| item.is_enabled()) else {
                continue;
            };
            let wanted = poll_bits(item.events);
            if !item.is_edge() {
                *streams.entry(*host).or_default() |= wanted;
                continue;
            }
            recheck |= item.seen.events & POLLIN != 0;
            // What holds and was reported would end the wait at once.
            let unseen = wanted & !item.seen.events;
            if item.seen.events & (POLLERR | POLLHUP) == 0 {
                *streams.entry(*host).or_default() |= unseen;
            }
        }
    }
    let streams = streams.into_iter();
    sources.extend(streams.map(|(host, events)| Source::Host(host, events)));
    recheck
}
