//! The other side of an audit webhook, with the faults that such things have.
#![allow(dead_code, reason = "not every test uses every part")]

use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What a sink must send along: a canary that nothing else may show.
pub const TOKEN: &str = "canary-webhook-token-0123456789abcdef";

/// What it has seen, and what it does next.
#[derive(Default)]
pub struct State {
    /// Events that it has taken, by number, as they came.
    pub taken: Vec<u64>,
    /// Deliveries that it refuses.
    pub refuse: u32,
    /// Deliveries that it takes without saying so.
    pub swallow: u32,
    /// What it was sent that is not as it should be.
    pub wrong: Vec<String>,
}

impl State {
    /// How many events, from the first on without a gap, came in order. Those that came again are none of them; one that came
    /// before its turn is a fault.
    pub fn in_order(&self) -> Result<u64, String> {
        let mut last = 0;
        for number in &self.taken {
            match *number {
                next if next == last + 1 => last = next,
                again if again <= last => {}
                early => return Err(format!("{early} came after {last}: {:?}", self.taken)),
            }
        }
        match self.wrong.first() {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(last),
        }
    }
}

pub struct Receiver {
    address: SocketAddr,
    tls: TlsAcceptor,
    state: Arc<Mutex<State>>,
    serving: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Listens on a free port of loopback.
    pub async fn start(tls: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut receiver = Self {
            address: listener.local_addr().expect("its address"),
            tls: TlsAcceptor::from(Arc::new(tls)),
            state: Arc::default(),
            serving: None,
        };
        receiver.serve(listener);
        receiver
    }

    pub fn url(&self) -> String {
        format!("https://{}/audit", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes away, with all connections.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            assert!(serving.await.is_err(), "it served until now");
        }
    }

    /// Is there again, where it was.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the same port");
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (tls, state) = (self.tls.clone(), Arc::clone(&self.state));
        self.serving = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(tls.clone(), stream, Arc::clone(&state)));
                while connections.try_join_next().is_some() {}
            }
        }));
    }
}

async fn connection(tls: TlsAcceptor, stream: TcpStream, state: Arc<Mutex<State>>) {
    // Whoever goes away in between comes again.
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(|request| take(request, Arc::clone(&state)));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ended = served.await.is_ok();
}

/// A fault ends the connection without an answer.
async fn take(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Empty<Bytes>>, String> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if head
        .headers
        .get(AUTHORIZATION)
        .is_none_or(|sent| sent != format!("Bearer {TOKEN}").as_str())
    {
        state.wrong.push(format!("without the token: {head:?}"));
    }
    if state.refuse > 0 {
        state.refuse -= 1;
        return answer(StatusCode::SERVICE_UNAVAILABLE);
    }
    let list: Value = serde_json::from_slice(&body).unwrap_or_default();
    if list["kind"] != "EventList" || list["apiVersion"] != "audit.k8s.io/v1" {
        state.wrong.push(format!("no list: {list}"));
    }
    for event in list["items"].as_array().into_iter().flatten() {
        let number = event["annotations"]["audit.hanse.dev/sequence"].as_str();
        match number.and_then(|number| number.parse().ok()) {
            Some(number) if event["kind"] == "Event" => state.taken.push(number),
            _ => state.wrong.push(format!("no event: {event}")),
        }
    }
    if state.swallow > 0 {
        state.swallow -= 1;
        return Err("taken, and nobody is told".to_owned());
    }
    answer(StatusCode::OK)
}

fn answer(code: StatusCode) -> Result<Response<Empty<Bytes>>, String> {
    let response = Response::builder().status(code).body(Empty::new());
    response.map_err(|e| e.to_string())
}
