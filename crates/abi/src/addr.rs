//! Typed addresses: guest-virtual ([`Gva`]) and guest-physical ([`Gpa`]).

use core::fmt;

/// Bytes in a base page (SDM vol. 3A, 4.5).
pub const PAGE_SIZE: u64 = 4096;
/// Bytes mapped by one page-directory entry with PS set.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `len_bytes` further on, or `None` past the end of the 64-bit space.
            #[must_use]
            pub const fn checked_add(self, len_bytes: u64) -> Option<Self> {
                match self.0.checked_add(len_bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `len_bytes` further on, modulo 2^64: for addresses already validated.
            #[must_use]
            pub const fn wrapping_add(self, len_bytes: u64) -> Self {
                Self(self.0.wrapping_add(len_bytes))
            }

            /// Offset within the base page, in bytes.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// Rounded down to the base page.
            #[must_use]
            pub const fn page_down(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Rounded up to the base page, or `None` on overflow.
            #[must_use]
            pub const fn page_up(self) -> Option<Self> {
                match self.0.checked_add(PAGE_SIZE - 1) {
                    Some(sum) => Some(Self(sum & !(PAGE_SIZE - 1))),
                    None => None,
                }
            }

            /// Rounded down to the 2 MiB page.
            #[must_use]
            pub const fn huge_down(self) -> Self {
                Self(self.0 & !(HUGE_PAGE_SIZE - 1))
            }

            /// True if the address starts a base page.
            #[must_use]
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }

            /// True if the address starts a 2 MiB page.
            #[must_use]
            pub const fn is_huge_aligned(self) -> bool {
                self.0 & (HUGE_PAGE_SIZE - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address: an offset into the VM's memory slots.
    Gpa
}
address! {
    /// A guest-virtual address: what the program uses. Never trusted.
    Gva
}

/// `len_bytes` rounded up to whole base pages, or `None` on overflow.
#[must_use]
pub const fn page_align_up(len_bytes: u64) -> Option<u64> {
    match len_bytes.checked_add(PAGE_SIZE - 1) {
        Some(sum) => Some(sum & !(PAGE_SIZE - 1)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_inside_the_address_space() {
        assert_eq!(Gva(0x1fff).page_down(), Gva(0x1000));
        assert_eq!(Gva(0x1001).page_up(), Some(Gva(0x2000)));
        assert_eq!(Gva(u64::MAX).page_up(), None);
        assert_eq!(Gpa(0x40_0000 - 1).huge_down(), Gpa(0x20_0000));
        assert_eq!(page_align_up(1), Some(4096));
        assert_eq!(page_align_up(u64::MAX), None);
    }
}
