//! The ready point of an unmodified server: a thread waits for a connection, and nothing else runs.

use std::time::{Duration, Instant};

use kvmlet_linux::{CpuTimes, Door};

use crate::run::Until;
use crate::sandbox::Sandbox;
use crate::{EngineError, Owner};

/// A program whose threads wake by timers is ready once this time has passed in which no thread, process or
/// listener has come or gone.
const SETTLED: Duration = Duration::from_millis(250);

impl Sandbox {
    /// Runs to the ready point of a server, and returns where it waits for connections. That is a TCP port, `port` if one
    /// is asked for. It is a stream of AF_UNIX if it waits on no port. All other threads of all processes wait too.
    ///
    /// Threads that wake by timers do not count, as long as they go back to waiting, and start nothing new.
    ///
    /// # Errors
    /// [`EngineError::NotListening`] if nothing can happen any more, or for several places. [`EngineError::NotQuiet`]
    /// if the time is over; it names the thread that had the CPU. [`EngineError::Interrupted`],
    /// [`EngineError::Ended`].
    pub fn until_listening(
        &mut self,
        port: Option<u16>,
        timeout: Option<Duration>,
        owner: &mut dyn Owner,
    ) -> Result<Door, EngineError> {
        self.check_alive()?;
        self.ring_by_kicks();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let before = self.guarded(|sandbox| Ok(sandbox.personality.cpu_times()))?;
        let found = self.settle_listening(port, deadline, owner);
        let door = found.map_err(|error| match error {
            EngineError::TimedOut => self.not_quiet(port, &before),
            EngineError::NotReady => self.not_listening(port),
            other => other,
        })?;
        self.door = Some(door);
        Ok(door)
    }

    fn settle_listening(
        &mut self,
        port: Option<u16>,
        deadline: Option<Instant>,
        owner: &mut dyn Owner,
    ) -> Result<Door, EngineError> {
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // When the last change was seen, and what it came to.
        let mut seen = None;
        loop {
            self.step(Until::Listening, left(), owner)?;
            let now = Instant::now();
            let shape = self.guarded(|sandbox| Ok(sandbox.personality.shape()))?;
            let since = match &seen {
                Some((since, known)) if *known == shape => *since,
                _ => now,
            };
            let is_quiet = self.personality.is_at_rest() || now.duration_since(since) >= SETTLED;
            if is_quiet {
                match self.door_among(port)? {
                    Some(door) => return Ok(door),
                    None if self.personality.is_at_rest() => return Err(EngineError::NotReady),
                    None => {}
                }
            }
            seen = Some((since, shape));
            let rest = SETTLED.saturating_sub(now.duration_since(since));
            let rest = rest.max(Duration::from_millis(10));
            let rest = left().map_or(rest, |left| left.min(rest));
            match self.step(Until::End, Some(rest), owner) {
                Err(EngineError::TimedOut) if left() != Some(Duration::ZERO) => {}
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
    }

    /// The place that is waited at, if it is the one that is wanted.
    fn door_among(&mut self, wanted: Option<u16>) -> Result<Option<Door>, EngineError> {
        let doors = self.guarded(|sandbox| Ok(sandbox.personality.awaited_doors()))?;
        match (wanted.map(Door::Port), doors.as_slice()) {
            (Some(wanted), doors) => Ok(doors.contains(&wanted).then_some(wanted)),
            (None, [door]) => Ok(Some(*door)),
            (None, []) => Ok(None),
            (None, doors @ [Door::Port(_), ..]) => Err(EngineError::NotListening(format!(
                "the program waits for connections on several ports: {}",
                self.listed(doors)
            ))),
            (None, doors) => Err(EngineError::NotListening(format!(
                "the program waits for connections on several sockets, and on no TCP port: {}",
                self.listed(doors)
            ))),
        }
    }

    /// The reason why nothing will come any more.
    fn not_listening(&self, port: Option<u16>) -> EngineError {
        EngineError::NotListening(format!("every thread waits, {}", self.missing(port)))
    }

    fn not_quiet(&self, port: Option<u16>, before: &CpuTimes) -> EngineError {
        let is_waiting = match port {
            Some(port) => self.personality.awaited_ports().contains(&port),
            None => !self.personality.awaited_doors().is_empty(),
        };
        let state = match is_waiting {
            true => "a thread waits for connections, but others go on".to_owned(),
            false => self.missing(port),
        };
        let busiest = self.personality.busiest(before);
        let busiest = busiest.unwrap_or_else(|| "no thread".to_owned());
        EngineError::NotQuiet(format!(
            "the time limit passed: {state}; {busiest} has used the CPU most"
        ))
    }

    /// The thing that a server would do.
    fn missing(&self, port: Option<u16>) -> String {
        let ports = self.personality.listening_ports();
        match (port, ports.as_slice()) {
            (None, []) => "and the program listens on no TCP port and no UNIX socket".to_owned(),
            (Some(port), []) => {
                format!("and the program listens on no TCP port, port {port} included")
            }
            (Some(port), ports) if !ports.contains(&port) => format!(
                "and the program listens on another port than {port}: {}",
                self.listed(&ports.iter().copied().map(Door::Port).collect::<Vec<_>>())
            ),
            (_, ports) => format!(
                "and none for a connection on a port that it listens on: {}",
                self.listed(&ports.iter().copied().map(Door::Port).collect::<Vec<_>>())
            ),
        }
    }

    fn listed(&self, doors: &[Door]) -> String {
        const SHOWN_MAX: usize = 8;
        let shown = doors.iter().take(SHOWN_MAX);
        let shown: Vec<String> = shown
            .map(|door| self.personality.door_name(*door))
            .collect();
        let more = if doors.len() > SHOWN_MAX { "..." } else { "" };
        format!("{}{more}", shown.join(", "))
    }
}
