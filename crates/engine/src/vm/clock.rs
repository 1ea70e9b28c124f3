//! Guest time in a VM.

use kvmlet_abi::vdso_data::{VdsoClock, VdsoTimestamp};
use kvmlet_hv::Vcpu;
use kvmlet_linux::GuestClock;
use kvmlet_stub::vdso::{ClockConfig, GuestTsc, HostClock};

/// Guest time by the TSC, shared by calls and the vDSO.
#[derive(Debug)]
struct TscClock(HostClock);

impl GuestClock for TscClock {
    fn read(&self, clock: VdsoClock) -> VdsoTimestamp {
        self.0.read(clock)
    }

    fn update(&mut self, write: &mut dyn FnMut(usize, &[u8])) {
        self.0.start();
        self.0.update(write);
    }

    fn stop_at(&mut self, monotonic_ns: u64) {
        self.0
            .stop_at(i64::try_from(monotonic_ns).unwrap_or(i64::MAX));
    }

    fn start(&mut self) {
        self.0.start();
    }
}

/// The clock of a VM. It writes the vDSO's data page before the guest runs.
pub(crate) fn clock_of(vcpu: &mut Vcpu) -> HostClock {
    HostClock::new(ClockConfig {
        guest_tsc: guest_tsc(vcpu),
        tsc_khz: vcpu.tsc_khz(),
        ..ClockConfig::default()
    })
}

/// The same clock for another VM. It stands where it was frozen until the program runs.
pub(crate) fn clock_for(clock: &HostClock, vcpu: &mut Vcpu) -> Box<dyn GuestClock> {
    let mut clock = clock.clone();
    clock.set_guest_tsc(guest_tsc(vcpu));
    guest_clock(clock)
}

pub(super) fn guest_clock(clock: HostClock) -> Box<dyn GuestClock> {
    Box::new(TscClock(clock))
}

/// A kernel that cannot say (before 5.16) has the guest ask for the time by calls.
fn guest_tsc(vcpu: &mut Vcpu) -> GuestTsc {
    vcpu.tsc_offset()
        .map_or(GuestTsc::Unrelated, GuestTsc::Offset)
}
