//! A program on the caller's terminal: when that is looked after, stopped with the program, and given back.

use std::time::Duration;

use kvmlet_linux::Wish;

use crate::EngineError;
use crate::run::{Drive, Stop};
use crate::sandbox::Sandbox;
use crate::time::{TICK_NS, now_ns};

impl Sandbox {
    /// Looks after the caller's terminal, once a tick, and stops with the program.
    pub(crate) fn tend_console(
        &mut self,
        drive: &mut Drive<'_>,
    ) -> Result<Option<Stop>, EngineError> {
        if !self.personality.has_console() {
            return Ok(None);
        }
        if drive.owner.was_told_to_stop() {
            self.stop_with(drive);
        }
        let now_ns = now_ns();
        if now_ns < drive.console_ns && !self.personality.console().wants_stop() {
            return Ok(None);
        }
        drive.console_ns = now_ns.saturating_add(TICK_NS);
        match self.personality.console().tend() {
            Wish::None => {}
            Wish::End => return Ok(Some(Stop::Interrupted)),
            Wish::Stop => {
                // Where nobody could continue the job, it goes on, as one that gets SIGTSTP there.
                if kvmlet_linux::stop_job() {
                    // Our own signal has been noted too.
                    drive.owner.was_told_to_stop();
                    self.stop_with(drive);
                } else {
                    self.personality.console().go_on();
                }
            }
        }
        Ok(None)
    }

    /// Stops the process with the terminal as it was, and goes on once it is continued.
    fn stop_with(&mut self, drive: &mut Drive<'_>) {
        self.personality.console().restore();
        drive.owner.stop();
        self.personality.console().go_on();
    }

    /// Shows the rest of the output and gives the terminal back. Output of a program that has ended by itself is
    /// waited for as long as the program would have waited for it: a limit may end the run even so.
    pub(crate) fn drain_console(
        &mut self,
        has_ended: bool,
        drive: &mut Drive<'_>,
    ) -> Result<Option<Stop>, EngineError> {
        let mut cut = None;
        self.personality.console().show();
        while has_ended && !self.personality.console().is_drained() {
            self.poll_hosts(Duration::from_nanos(TICK_NS))?;
            if matches!(self.personality.console().tend(), Wish::End) {
                cut = Some(Stop::Interrupted);
                break;
            }
            cut = drive.check(now_ns());
            if cut.is_some() {
                break;
            }
        }
        self.personality.console().restore();
        Ok(cut)
    }
}
