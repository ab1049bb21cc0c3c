//! Accepts connections on loopback, each on a thread of its own: what proxies have in common.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const MAX_CONNECTIONS: usize = 64;

/// Listens until it is dropped.
pub struct Listener {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Listener {
    /// Connections end when `serve` has returned. More of them than a proxy should ever see end at once.
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let ended = Arc::new(AtomicBool::new(false));
        let (serve, of_thread, connections) = (Arc::new(serve), ended.clone(), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if of_thread.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, connections) = (serve.clone(), connections.clone());
                let n = connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    if n < MAX_CONNECTIONS {
                        serve(client);
                    }
                    connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Listener { address, ended }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread up.
        let _ = TcpStream::connect(self.address);
    }
}

/// The address of `HOST:PORT`, or of `http://HOST:PORT`.
pub fn address_of(server: &str) -> SocketAddr {
    let server = server.trim_start_matches("http://").trim_end_matches('/');
    server.to_socket_addrs().expect("HOST:PORT").next().expect("an address")
}

/// Ends a connection, whoever else holds it.
pub fn end(connection: &TcpStream) {
    let _ = connection.shutdown(Shutdown::Both);
}
