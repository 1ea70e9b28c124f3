//! Extended state (x87, SSE, AVX...) in the standard XSAVE format (SDM vol. 1, 13.4).

use zerocopy::IntoBytes;

use crate::HvError;
use crate::cpu::XSAVE_LEGACY_LEN;

/// The FXSAVE region.
const FXSAVE_LEN: usize = 512;
/// Offset of MXCSR in it.
const MXCSR_AT: usize = 24;
/// MXCSR bits that a CPU may have: DAZ and below, and AMD's misaligned exception mask (APM vol. 1,
/// 4.2.2). KVM refuses what this CPU lacks.
const MXCSR_MASK: u32 = 0x2_ffff;
/// Offsets in the XSAVE area: XSTATE_BV, XCOMP_BV, and the reserved rest of the header.
const XSTATE_BV_AT: usize = 512;
const XCOMP_BV_AT: usize = 520;
const RESERVED_AT: usize = 528;
/// Values after FNINIT and at reset (SDM vol. 1, 8.1.5 and 10.2.3).
const INITIAL_FCW: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
/// x87 and SSE.
const XFEATURES_LEGACY: u64 = 3;
/// PKRU (SDM vol. 1, 13.1).
pub(crate) const XFEATURE_PKRU: u64 = 1 << 9;

/// Shape of the extended state of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XStateLayout {
    /// State components enabled in XCR0.
    pub xcr0: u64,
    /// Bytes that a program sees in a standard-format area (CPUID.0DH.0:EBX).
    pub len_bytes: usize,
    /// Bytes that KVM copies (KVM_CAP_XSAVE2), at least `len_bytes`.
    pub(crate) kvm_len_bytes: usize,
    /// Where PKRU lies, if KVM moves it although XCR0 is without it: software KVM with a host that has
    /// protection keys, whose `wrpkru` ring 3 can execute.
    pub(crate) pkru_at: Option<usize>,
}

/// One thread's extended state. 64-bit words, so that it is aligned for whoever reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XState {
    words: Box<[u64]>,
    layout: XStateLayout,
}

impl XState {
    /// The state a program starts with.
    #[must_use]
    pub fn new(layout: XStateLayout) -> Self {
        let words = vec![0; layout.kvm_len_bytes.div_ceil(8)].into_boxed_slice();
        let mut state = Self { words, layout };
        state.words[0] = u64::from(INITIAL_FCW);
        state.words[MXCSR_AT / 8] = u64::from(INITIAL_MXCSR);
        state.words[XSTATE_BV_AT / 8] = XFEATURES_LEGACY;
        state.open_protection_keys();
        state
    }

    /// The shape this state was made for.
    #[must_use]
    pub fn layout(&self) -> XStateLayout {
        self.layout
    }

    /// The image as a program sees it: `layout().len_bytes` bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = self.layout.len_bytes.max(XSTATE_BV_AT + 8);
        let all = self.words.as_bytes();
        let mut bytes = all.get(..len).unwrap_or(all).to_vec();
        let enabled = self.words[XSTATE_BV_AT / 8] & (self.layout.xcr0 | XFEATURES_LEGACY);
        bytes[XSTATE_BV_AT..XSTATE_BV_AT + 8].copy_from_slice(&enabled.to_le_bytes());
        bytes.truncate(self.layout.len_bytes);
        bytes
    }

    /// Replaces the state by an image that the guest provides: an XSAVE area in standard format, or
    /// the 512-byte FXSAVE region alone. What the CPU would refuse to load is refused here.
    ///
    /// # Errors
    /// [`HvError::BadXState`]; the state is unchanged then.
    pub fn set_bytes(&mut self, image: &[u8]) -> Result<(), HvError> {
        if image.len() < FXSAVE_LEN {
            return Err(HvError::BadXState("shorter than the FXSAVE region"));
        }
        let word = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&image[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        if word(MXCSR_AT) as u32 & !MXCSR_MASK != 0 {
            return Err(HvError::BadXState("reserved bits of MXCSR are set"));
        }
        let (features, len) = if image.len() < XSAVE_LEGACY_LEN {
            (XFEATURES_LEGACY, FXSAVE_LEN)
        } else {
            if word(XCOMP_BV_AT) != 0 {
                return Err(HvError::BadXState("the compacted format"));
            }
            if image[RESERVED_AT..XSAVE_LEGACY_LEN]
                .iter()
                .any(|byte| *byte != 0)
            {
                return Err(HvError::BadXState("reserved header bytes are set"));
            }
            let features = word(XSTATE_BV_AT);
            if features & !(self.layout.xcr0 | XFEATURES_LEGACY) != 0 {
                return Err(HvError::BadXState("components that are not enabled"));
            }
            if features & !XFEATURES_LEGACY != 0 && image.len() < self.layout.len_bytes {
                return Err(HvError::BadXState("shorter than its components"));
            }
            (features, image.len().min(self.layout.len_bytes))
        };
        let bytes = self.words.as_mut_bytes();
        let len = len.min(bytes.len());
        let (given, rest) = bytes.split_at_mut(len);
        given.copy_from_slice(&image[..len]);
        rest.fill(0);
        self.words[XSTATE_BV_AT / 8] = features;
        self.open_protection_keys();
        Ok(())
    }

    /// Forgets components that the guest does not have, once KVM has filled the image.
    pub(crate) fn keep_enabled(&mut self) {
        self.words[XSTATE_BV_AT / 8] &= self.layout.xcr0 | XFEATURES_LEGACY;
        self.open_protection_keys();
    }

    /// No thread keeps another's protection keys, nor any of its own: Linux's calls for them are not
    /// offered. KVM leaves PKRU as it is unless an image has it.
    fn open_protection_keys(&mut self) {
        if let Some(word) = self
            .layout
            .pkru_at
            .and_then(|at| self.words.get_mut(at / 8))
        {
            *word = 0;
            self.words[XSTATE_BV_AT / 8] |= XFEATURE_PKRU;
        }
    }

    pub(crate) fn as_ptr(&self) -> *const u64 {
        self.words.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u64 {
        self.words.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> XStateLayout {
        XStateLayout {
            xcr0: 7,
            len_bytes: 832,
            kvm_len_bytes: 4096,
            pkru_at: None,
        }
    }

    #[test]
    fn an_image_survives_the_round_trip() {
        let mut state = XState::new(layout());
        let mut image = state.to_bytes();
        assert_eq!(image.len(), 832);
        image[XSTATE_BV_AT] = 7;
        image[600] = 0x5a;
        state.set_bytes(&image).unwrap();
        assert_eq!(state.to_bytes(), image);
    }

    #[test]
    fn a_saved_image_with_other_components_can_be_loaded_again() {
        let mut state = XState::new(layout());
        state.words[XSTATE_BV_AT / 8] = 0x207;
        state.keep_enabled();
        let image = state.to_bytes();
        assert_eq!(image[XSTATE_BV_AT..XSTATE_BV_AT + 8], 7u64.to_le_bytes());
        state.set_bytes(&image).unwrap();
    }

    #[test]
    fn what_the_cpu_would_refuse_is_refused() {
        let good = XState::new(layout()).to_bytes();
        for (at, value) in [
            (MXCSR_AT + 2, 1),
            (XSTATE_BV_AT, 0x83),
            (XCOMP_BV_AT + 7, 0x80),
            (540, 1),
        ] {
            let mut image = good.clone();
            image[at] = value;
            let mut state = XState::new(layout());
            assert!(state.set_bytes(&image).is_err(), "byte {at}");
            assert_eq!(state.to_bytes(), good);
        }
        let mut state = XState::new(layout());
        assert!(state.set_bytes(&good[..511]).is_err());
        assert!(state.set_bytes(&good[..512]).is_ok());
        let mut short = good[..600].to_vec();
        short[XSTATE_BV_AT] = 7;
        assert!(state.set_bytes(&short).is_err());
    }
}
