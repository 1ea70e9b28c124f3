//! A server of hyper on the threads of tokio.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Mutex;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};

static SEEN: Mutex<(u64, Vec<Box<u8>>)> = Mutex::new((0, Vec::new()));

fn count() -> String {
    let mut seen = SEEN.lock().unwrap();
    seen.0 += 1;
    seen.1.push(Box::new(0));
    let mut file = OpenOptions::new().create(true).append(true).open("/tmp/count").unwrap();
    file.write_all(b"x").unwrap();
    format!("{} {} {}", seen.0, file.metadata().unwrap().len(), seen.1.len())
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match request.uri().path() {
        "/count" => count(),
        "/draw" => getrandom::u64().unwrap().to_string(),
        _ => "ready".to_owned(),
    };
    Ok(Response::new(Full::new(Bytes::from(text))))
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build();
    runtime.unwrap().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = hyper_util::rt::TokioIo::new(stream);
            let service = hyper::service::service_fn(answer);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    });
}
