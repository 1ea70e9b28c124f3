//! A call's arguments: six registers, taken apart once and by kind.
//!
//! A handler names the kind of each argument in a pattern:
//!
//! ```text
//! let (Fd(fd), Ptr(buf), Len(count)) = args.decode();
//! ```
//!
//! A kind says which bits of the register count, as the C type of Linux's own handler does. It also has
//! the letter that stands for it in a row's signature ([`super::table::Row`]). A test calls every row and
//! compares the two.

use kvmlet_abi::Gva;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The argument registers of a call, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Args([u64; 6]);

impl Args {
    /// The registers as arguments.
    #[inline]
    #[must_use]
    pub fn of(registers: &[u64; 6]) -> &Self {
        zerocopy::transmute_ref!(registers)
    }

    /// One argument of a kind, or a tuple of as many as the call has.
    #[inline]
    #[must_use]
    pub fn decode<T: Decode>(&self) -> T {
        #[cfg(test)]
        log::add(T::LETTERS);
        T::of(&self.0)
    }
}

/// An argument of one kind.
pub trait Argument {
    /// Its letter in a signature.
    const LETTER: char;

    /// The argument that is in a register.
    fn of(register: u64) -> Self;
}

/// The arguments of one call.
pub trait Decode {
    /// Their letters in a signature.
    const LETTERS: &'static [char];

    /// The arguments that are in the registers.
    fn of(registers: &[u64; 6]) -> Self;
}

/// The low half of a register, which is all that Linux looks at for a 32-bit argument.
#[allow(clippy::cast_possible_truncation)]
const fn low(register: u64) -> u32 {
    register as u32
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident($type:ty), $letter:literal, $of:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub $type);

        impl Argument for $name {
            const LETTER: char = $letter;

            #[inline]
            fn of(register: u64) -> Self {
                let of: fn(u64) -> $type = $of;
                Self(of(register))
            }
        }
    )*};
}

kinds! {
    /// A descriptor.
    Fd(i32), 'd', |register| low(register).cast_signed();
    /// The address of a string that ends with a NUL.
    Str(Gva), 's', Gva;
    /// An `int`.
    Int(i32), 'i', |register| low(register).cast_signed();
    /// A user or group id; -1 for none.
    Id(u32), 'i', low;
    /// An `unsigned int`.
    Uint(u32), 'u', low;
    /// A length or a count: `size_t` or `unsigned long`.
    Len(u64), 'u', |register| register;
    /// A place in a file: `loff_t`. A negative one is left as the register has it.
    Offset(u64), 'u', |register| register;
    /// The mode of a file.
    Mode(u32), 'o', low;
    /// Flags of open(2).
    FileFlags(u32), 'o', low;
    /// Flags of another call: `int` or `unsigned int`.
    Flags(u32), 'x', low;
    /// An address of user memory.
    Ptr(Gva), 'x', Gva;
    /// A whole register of no fixed meaning: `unsigned long`.
    Word(u64), 'x', |register| register;
}

macro_rules! decode {
    ($($kind:ident $register:ident),*) => {
        impl<$($kind: Argument),*> Decode for ($($kind,)*) {
            const LETTERS: &'static [char] = &[$($kind::LETTER),*];

            #[inline]
            fn of(registers: &[u64; 6]) -> Self {
                let [$($register,)* ..] = *registers;
                ($($kind::of($register),)*)
            }
        }
    };
}

impl<A: Argument> Decode for A {
    const LETTERS: &'static [char] = &[A::LETTER];

    #[inline]
    fn of(registers: &[u64; 6]) -> Self {
        let [register, ..] = *registers;
        <A as Argument>::of(register)
    }
}

decode!(A a, B b);
decode!(A a, B b, C c);
decode!(A a, B b, C c, D d);
decode!(A a, B b, C c, D d, E e);
decode!(A a, B b, C c, D d, E e, F f);

/// The decodings that this thread has made, for the test of the signatures.
#[cfg(test)]
pub(super) mod log {
    use std::cell::RefCell;

    thread_local! {
        static MADE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn add(letters: &[char]) {
        MADE.with_borrow_mut(|made| made.push(letters.iter().collect()));
    }

    /// Those since the last time this was asked.
    pub fn take() -> Vec<String> {
        MADE.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_32_bit_argument_is_the_low_half_of_its_register() {
        let registers = [
            0xffff_ffff_0000_0007,
            0x1234_5678_ffff_ff9c,
            u64::MAX,
            1 << 32,
            0x7fff_0000_1000,
            u64::MAX,
        ];
        let (Uint(count), Fd(fd), Id(id), Int(int), Ptr(ptr), Len(len)) =
            Args::of(&registers).decode();
        assert_eq!((count, fd, id, int), (7, -100, u32::MAX, 0));
        assert_eq!((ptr, len), (Gva(0x7fff_0000_1000), u64::MAX));
        let Int(first) = Args::of(&registers).decode();
        assert_eq!(first, 7);
        assert_eq!(log::take(), ["udiixu", "i"]);
    }
}
