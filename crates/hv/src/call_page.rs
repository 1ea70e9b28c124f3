//! The host's side of the call page: words that the guest may write at any time.

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvmlet_abi::Gva;
use kvmlet_abi::call_page::{
    ANSWER, ANSWERED, ARGS, CAME_FROM, MODE, NR, POSTED, SPIN_TICKS, Ticket,
};
use kvmlet_mem::HostPage;

/// The stub's way with calls: it posts them or leaves the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PostMode {
    /// Every call leaves the VM.
    Leave,
    /// Calls are posted, and waited for this long, in ticks of the TSC.
    Post {
        /// At most.
        spin_ticks: u64,
    },
}

/// The page mapped at [`kvmlet_abi::layout::CALL_PAGE`]. Clones are the same page.
#[derive(Clone, Debug)]
pub struct CallPage(HostPage);

impl CallPage {
    /// `page` is the one that the guest has there.
    #[must_use]
    pub fn new(page: HostPage) -> Self {
        Self(page)
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        let at = ptr::with_exposed_provenance_mut::<u64>(self.0.addr() + offset as usize);
        // SAFETY: the offsets of the layout are multiples of 8 within the page that HostPage keeps
        // mapped and writable; the guest and we only access the word as an atomic.
        unsafe { AtomicU64::from_ptr(at) }
    }

    fn half_word(&self, offset: u64) -> &AtomicU32 {
        let at = ptr::with_exposed_provenance_mut::<u32>(self.0.addr() + offset as usize);
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(at) }
    }

    /// The ticket posted last.
    #[must_use]
    pub fn posted(&self) -> Ticket {
        Ticket(self.half_word(POSTED).load(Ordering::Acquire))
    }

    /// The call number of the request.
    #[must_use]
    pub fn nr(&self) -> u64 {
        self.word(NR).load(Ordering::Relaxed)
    }

    /// The arguments of the request.
    #[must_use]
    pub fn args(&self) -> [u64; 6] {
        [0, 8, 16, 24, 32, 40].map(|at| self.word(ARGS + at).load(Ordering::Relaxed))
    }

    /// Address that the request's `syscall` instruction returns to; `None` if it came by a jump.
    #[must_use]
    pub fn came_from(&self) -> Option<Gva> {
        let back = self.word(CAME_FROM).load(Ordering::Relaxed);
        (back != 0).then_some(Gva(back))
    }

    /// Shows the host's word; a result goes before it.
    pub fn answer(&self, word: u64, result: u64) {
        self.word(ANSWER).store(result, Ordering::Relaxed);
        self.word(ANSWERED).store(word, Ordering::Release);
    }

    /// Says whether the stub posts its calls from now on.
    pub fn set_mode(&self, mode: PostMode) {
        if let PostMode::Post { spin_ticks } = mode {
            self.word(SPIN_TICKS).store(spin_ticks, Ordering::Relaxed);
        }
        let word = u32::from(mode != PostMode::Leave);
        self.half_word(MODE).store(word, Ordering::Release);
    }
}
