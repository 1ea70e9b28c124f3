//! The control address: health, readiness and metrics, for operators and not for clients.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::listener::Listener;
use crate::server::Front;

/// Connections to it at one time; it is for few.
const CONNECTIONS_MAX: usize = 64;

/// Answers there until it is aborted.
pub(crate) async fn serve(front: Arc<Front>, listener: Listener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(crate::server::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let front = Arc::clone(&front);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&front, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            // What went wrong is the client's to know.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(front.settings.header_timeout)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

fn answer(front: &Front, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "only GET and HEAD\n".to_owned(),
        ),
        "/-/healthy" => (
            StatusCode::OK,
            "text/plain; charset=utf-8",
            "ok\n".to_owned(),
        ),
        "/-/ready" => match front.readiness() {
            Ok(()) => (
                StatusCode::OK,
                "text/plain; charset=utf-8",
                "ready\n".to_owned(),
            ),
            Err(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain; charset=utf-8",
                format!("{why}\n"),
            ),
        },
        "/metrics" => (
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            (front.metrics).text(&front.program_metrics(), &front.storage_metrics()),
        ),
        "/-/status" => (StatusCode::OK, "application/json", status(front)),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "there are /-/healthy, /-/ready, /-/status and /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The numbers of one program, or of all together, as members of an object.
fn members(counts: &[(&'static str, u64)], names: &[&str]) -> String {
    let shown = counts.iter().filter(|(name, _)| names.contains(name));
    let shown: Vec<String> = shown
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    shown.join(",")
}

fn status(front: &Front) -> String {
    let all = front.metrics.counts(&front.program_metrics());
    let of_all = ["forks", "forks_busy", "waiting", "connections", "upgrades"];
    let named = front.services().iter().map(|one| &one.metrics);
    let programs: Vec<String> = named
        .filter(|one| !one.program().is_empty())
        .map(|one| {
            let of_one = members(
                &one.counts(),
                &["forks", "forks_busy", "waiting", "upgrades"],
            );
            format!("\"{}\":{{{of_one}}}", one.program())
        })
        .collect();
    let storages = front.storage_metrics();
    let storages: Vec<String> = storages
        .iter()
        .map(|one| {
            let counts = one.counts();
            let names = counts.map(|(name, _)| name);
            format!("\"{}\":{{{}}}", one.storage(), members(&counts, &names))
        })
        .collect();
    format!(
        "{{\"ready\":{},{},\"programs\":{{{}}},\"storages\":{{{}}}}}\n",
        front.readiness().is_ok(),
        members(&all, &of_all),
        programs.join(","),
        storages.join(",")
    )
}
