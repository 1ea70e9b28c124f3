//! Several programs behind one front.

use std::sync::Arc;
use std::time::Duration;

use super::{Served, Settings, settings, status_of};
use crate::fork::{BootError, Output, Program};
use crate::testing::{Act, FakeMaster};
use crate::{ProgramSettings, Route, Start};

fn program(name: &str, hosts: &[&str], path: &str, act: Act) -> (ProgramSettings, Arc<Start>) {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let settings = Settings {
        name: name.to_owned(),
        route: Route::new(hosts, path),
        ..settings()
    };
    let start = move |_: &mut dyn Output, _: &(dyn Fn() -> bool + Sync)| {
        Ok(Box::new(FakeMaster::new(act.clone())) as Box<dyn Program>)
    };
    (settings.of_program(), Arc::new(start))
}

fn said(body: &'static str) -> Act {
    let length = body.len();
    Act::Say(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into())
}

fn served(programs: Vec<(ProgramSettings, Arc<Start>)>) -> Served {
    let served = Served::start_all(settings().of_front(), programs);
    served.until_ready();
    served
}

impl Served {
    fn get_of(&self, host: &str, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        self.ask(request.as_bytes())
    }
}

#[test]
fn each_program_gets_what_is_for_it_and_is_counted() {
    let served = served(vec![
        program("shop", &["shop.example"], "/", said("shop")),
        program("api", &["shop.example"], "/api", said("api")),
        program("crash", &["*.example"], "/", Act::Crash),
    ]);
    for (host, path, wanted) in [
        ("shop.example", "/", "shop"),
        ("SHOP.example:80", "/apis", "shop"),
        ("shop.example", "/api?x", "api"),
        ("shop.example", "/api/x/y", "api"),
    ] {
        let answer = served.get_of(host, path);
        assert!(answer.ends_with(&format!("\r\n\r\n{wanted}")), "{answer}");
    }
    for (host, path, status) in [
        ("other.example", "/", 502),
        ("elsewhere", "/", 404),
        ("shop.example", "/api/../", 400),
        ("shop.example", "/%2e%2e/api", 400),
    ] {
        assert_eq!(
            status_of(&served.get_of(host, path)),
            status,
            "{host} {path}"
        );
    }
    for (labels, value) in [
        ("program=\"shop\",outcome=\"ok\"", 2),
        ("program=\"api\",outcome=\"ok\"", 2),
        ("program=\"crash\",outcome=\"crash\"", 1),
        ("program=\"crash\",outcome=\"ok\"", 0),
        // For none of them.
        ("outcome=\"refused\"", 3),
    ] {
        served.until(&format!("kvmlet_requests_total{{{labels}}}"), value);
    }
    served.until("kvmlet_reset_seconds_count{program=\"shop\"}", 2);
    for name in ["shop", "api", "crash"] {
        served.until(&format!("kvmlet_forks{{program=\"{name}\"}}"), 2);
    }
    let status = served.control("/-/status");
    assert!(status.contains("\"forks\":6,"), "{status}");
    assert!(status.contains("\"api\":{\"forks\":2,"), "{status}");
}

#[test]
fn limits_are_those_of_the_program() {
    let (mut small, start) = program("small", &[], "/small", Act::Mirror);
    small.body_bytes_max = 10;
    let (mut hasty, hang) = program("hasty", &[], "/hasty", Act::Hang);
    hasty.timeout = Duration::from_millis(50);
    hasty.forks = 1;
    hasty.queue_max = 0;
    let served = served(vec![(small, start), (hasty, hang)]);
    let post = |path: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n");
        served.ask(format!("{head}Content-Length: 11\r\n\r\nhello world").as_bytes())
    };
    assert_eq!(status_of(&post("/small")), 413);
    assert_eq!(status_of(&post("/hasty")), 504);
    assert_eq!(status_of(&served.get("/small")), 200);
}

#[test]
fn one_that_does_not_start_ends_all_and_leaves_what_serves() {
    let broken = |stops: bool| {
        let (settings, _) = program("broken", &["b"], "/", Act::Close);
        let times = std::sync::atomic::AtomicU32::new(0);
        let start = move |_: &mut dyn Output, _: &(dyn Fn() -> bool + Sync)| {
            let is_first = times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            if stops || !is_first {
                return Err(BootError::new("ended", "it has ended"));
            }
            Ok(Box::new(FakeMaster::new(said("once"))) as Box<dyn Program>)
        };
        (settings, Arc::new(start) as Arc<Start>)
    };
    let patient = || {
        let (settings, _) = program("patient", &[], "/", Act::Close);
        let start = |_: &mut dyn Output, stop: &(dyn Fn() -> bool + Sync)| {
            while !stop() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(BootError::new("interrupted", "it was stopped"))
        };
        (settings, Arc::new(start) as Arc<Start>)
    };
    let mut failed = Served::start_all(settings().of_front(), vec![patient(), broken(true)]);
    let error = failed.end().unwrap_err();
    assert_eq!(error.kind, "ended");
    assert_eq!(error.message, "program broken: it has ended");
    let good = program("good", &[], "/", said("good"));
    let served = served(vec![good, broken(false)]);
    let number = served.commands.reload();
    let how = loop {
        if let Some(how) = served.commands.reloaded(number) {
            break how;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(how.unwrap_err().message, "program broken: it has ended");
    assert_eq!(served.metric("kvmlet_reloads_total"), 0);
    assert!(served.get_of("b", "/").ends_with("once"));
    assert!(served.get_of("h", "/").ends_with("good"));
}
