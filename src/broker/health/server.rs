//! The HTTP server: the library's, over sockets of our own that pass on one request at a time (`exchange`).

use super::exchange::Socket;
use super::listen::Listener;
use super::pages::{self, DISCONNECT, Pages, Peer};
use crate::broker::supervision::resources::can_start;
use crate::broker::supervision::watchdog::Pulse;
use crate::config::HealthServer;
use crate::shm::peer;
use actix_http::error::DispatchError;
use actix_http::{Extensions, HttpService, KeepAlive};
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::dev::{AppConfig, Server};
use actix_web::rt::net::{TcpStream, UnixStream};
use actix_web::web::Data;
use rustix::net::sockopt;
use std::future::ready;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Connections beyond the limit, while idle ones are being closed.
const GIVING_WAY: usize = 16;
/// Bytes that the kernel keeps of a response that the client does not read. It could be megabytes.
const SEND_BUFFER: usize = 128 * 1024;

/// The server over a socket; it runs when it is awaited.
pub(super) fn server(listener: Listener, pages: &Arc<Pages>, pulse: &Arc<Pulse>) -> io::Result<Server> {
    // One acceptor and one worker: the library panics without them.
    can_start(2).map_err(|error| io::Error::other(format!("cannot start the threads of HTTP: {error}")))?;
    let server = Server::build()
        .workers(1)
        .worker_max_blocking_threads(1)
        .max_concurrent_connections(pages.config().max_connections as usize + GIVING_WAY)
        .backlog(BACKLOG)
        .shutdown_timeout(1)
        .disable_signals();
    let (pages, pulse) = (pages.clone(), pulse.clone());
    let server = match listener {
        Listener::Tcp(listener) => {
            server.listen("health", listener, move || service(pages.clone(), pulse.clone(), |_: &TcpStream, _| {}))?
        }
        Listener::Unix(listener) => server.listen_uds("health", listener, move || {
            service(pages.clone(), pulse.clone(), |stream: &UnixStream, data| {
                data.insert(Peer(peer::credentials(stream.as_fd()).ok().map(|peer| peer.uid)));
            })
        })?,
    };
    Ok(server.run())
}

/// What serves one connection after the other, on the thread of the worker.
fn service<T: AsyncRead + AsyncWrite + AsFd + Unpin + 'static>(
    pages: Arc<Pages>,
    pulse: Arc<Pulse>,
    identify: impl Fn(&T, &mut Extensions) + 'static,
) -> impl ServiceFactory<T, Config = (), Response = (), Error = DispatchError, InitError = ()> {
    let HealthServer { request_timeout_ms, idle_timeout_secs, unread_timeout_secs, .. } = pages.config();
    actix_web::rt::spawn(pulse.beat());
    let connections = pages.connections().clone();
    let app = pages::app(Data::from(pages)).into_factory().map_err(|error| error.error_response());
    let http = HttpService::build()
        .client_request_timeout(Duration::from_millis(request_timeout_ms))
        .keep_alive(KeepAlive::Timeout(Duration::from_secs(idle_timeout_secs)))
        .client_disconnect_timeout(DISCONNECT)
        .on_connect_ext(move |socket: &Socket<T>, data: &mut Extensions| {
            data.insert(socket.exchange().clone());
            identify(socket.stream(), data);
        })
        .h1(map_config(app, |()| AppConfig::default()));
    fn_service(move |stream: T| {
        if let Err(error) = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER) {
            log::debug!("cannot limit the buffer of a health connection reason={error:?}");
        }
        ready(Ok((Socket::new(stream, &connections, Duration::from_secs(unread_timeout_secs)), None)))
    })
    .and_then(http)
}
