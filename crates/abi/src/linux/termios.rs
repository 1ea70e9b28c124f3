//! Terminals (asm-generic/termios.h).

guest_struct! {
    /// struct winsize (TIOCGWINSZ, ioctl_tty(2))
    pub struct Winsize { pub ws_row: u16, pub ws_col: u16, pub ws_xpixel: u16, pub ws_ypixel: u16, }
}
