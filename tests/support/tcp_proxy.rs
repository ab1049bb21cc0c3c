//! A TCP proxy in front of a broker or a database: passes bytes on, late, not at all, or cuts connections.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use super::listener::{Listener, address_of};

const CHUNK_BYTES: usize = 64 << 10;

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Network {
    Passes,
    /// Each chunk waits so long, in both directions.
    Slow(Duration),
    /// Connections are accepted and kept, and nothing passes: as behind a cable that was pulled.
    BlackHole,
    /// Connections are reset as soon as they are there.
    Refuses,
}

/// When a connection is cut for what a client sends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// The server never sees it.
    Before,
    /// The server gets it, and finds the connection gone while it works on it.
    Within,
    /// The server has answered, and the client never hears of it.
    Answered,
}

/// Cuts a connection on which a client sends this.
#[derive(Debug, Clone, Copy)]
struct Trap {
    sent: &'static [u8],
    moment: Moment,
    left: usize,
}

pub struct TcpProxy {
    listener: Listener,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    cut: AtomicUsize,
}

struct State {
    /// `None` until it is known: connections wait for it.
    upstream: Option<SocketAddr>,
    network: Network,
    trap: Option<Trap>,
    connections: Vec<Weak<Connection>>,
}

/// A client and what it is connected with; both are closed when both directions have ended.
struct Connection {
    client: TcpStream,
    upstream: TcpStream,
    is_cut: AtomicBool,
    /// The answer to come is swallowed, and the connection cut.
    is_trapped: AtomicBool,
}

impl TcpProxy {
    /// Takes a port; what stands behind it is said by [`TcpProxy::forward_to`], since a broker must know the port first.
    pub fn start() -> Self {
        let state = State { upstream: None, network: Network::Passes, trap: None, connections: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), cut: AtomicUsize::new(0) });
        let of_listener = shared.clone();
        // A connection that cannot be made ends, which the client sees.
        let listener = Listener::start(move |client| drop(of_listener.serve(client)));
        TcpProxy { listener, shared }
    }

    pub fn forward_to(&self, server: &str) {
        self.shared.change(|state| state.upstream = Some(address_of(server)));
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    pub fn set(&self, network: Network) {
        self.shared.change(|state| state.network = network);
    }

    /// Resets all connections; gives their number.
    pub fn cut(&self) -> usize {
        let connections = std::mem::take(&mut self.shared.state().connections);
        let n = connections.iter().filter_map(Weak::upgrade).filter(|connection| connection.cut()).count();
        self.shared.cut.fetch_add(n, Ordering::SeqCst);
        self.shared.changed.notify_all();
        n
    }

    /// Cuts the next `n` connections on which a client sends this, in one piece.
    pub fn cut_at(&self, sent: &'static [u8], moment: Moment, n: usize) {
        self.shared.change(|state| state.trap = Some(Trap { sent, moment, left: n }));
    }

    /// How many connections have been cut so far.
    pub fn injected(&self) -> usize {
        self.shared.cut.load(Ordering::SeqCst)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.set(Network::Refuses);
        self.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the state")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn serve(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        let waits = |state: &mut State| state.upstream.is_none() || state.network == Network::BlackHole;
        let state = self.changed.wait_while(self.state(), waits).expect("the state");
        let (network, address) = (state.network, state.upstream.expect("waited for"));
        drop(state);
        if network == Network::Refuses {
            return reset_on_close(&client);
        }
        let upstream = TcpStream::connect(address)?;
        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        let connection = Connection { client, upstream, is_cut: false.into(), is_trapped: false.into() };
        let connection = Arc::new(connection);
        {
            let mut state = self.state();
            state.connections.retain(|known| known.strong_count() > 0);
            state.connections.push(Arc::downgrade(&connection));
        }
        let (shared, back) = (self.clone(), connection.clone());
        std::thread::spawn(move || shared.pump(&back, &back.upstream, &back.client));
        self.pump(&connection, &connection.client, &connection.upstream);
        Ok(())
    }

    /// One direction, until its end.
    fn pump(&self, connection: &Connection, mut from: &TcpStream, mut to: &TcpStream) {
        let from_client = std::ptr::eq(from, &raw const connection.client);
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            let moment = if from_client { self.spring(&chunk[..n]) } else { None };
            match moment {
                Some(Moment::Answered) => connection.is_trapped.store(true, Ordering::SeqCst),
                Some(Moment::Within) => drop(to.write_all(&chunk[..n])),
                _ => {}
            }
            let is_answered = !from_client && connection.is_trapped.load(Ordering::SeqCst);
            if is_answered || matches!(moment, Some(Moment::Before | Moment::Within)) {
                self.cut.fetch_add(1, Ordering::SeqCst);
                connection.cut();
            }
            if !self.wait(connection) || to.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
        // After a cut nothing is to be said; otherwise the other side hears of the end, once the network lets it.
        if self.wait(connection) {
            let _ = to.shutdown(Shutdown::Write);
        } else {
            let _ = from.shutdown(Shutdown::Read);
        }
    }

    /// Whether a trap is for what was sent.
    fn spring(&self, sent: &[u8]) -> Option<Moment> {
        let mut state = self.state();
        let trap = state.trap.as_mut().filter(|trap| trap.left > 0)?;
        let is_for = sent.windows(trap.sent.len()).any(|part| part == trap.sent);
        trap.left -= usize::from(is_for);
        is_for.then_some(trap.moment)
    }

    /// Waits as long as the network makes bytes wait; false once the connection is cut.
    fn wait(&self, connection: &Connection) -> bool {
        let is_cut = || connection.is_cut.load(Ordering::SeqCst);
        let mut state = self.state();
        if let Network::Slow(delay) = state.network {
            let is_slow = |state: &mut State| state.network == Network::Slow(delay) && !is_cut();
            state = self.changed.wait_timeout_while(state, delay, is_slow).expect("the state").0;
        }
        let waits = |state: &mut State| state.network == Network::BlackHole && !is_cut();
        drop(self.changed.wait_while(state, waits).expect("the state"));
        !is_cut()
    }
}

impl Connection {
    /// Both sides find it reset. False if it was before.
    fn cut(&self) -> bool {
        let was_cut = self.is_cut.swap(true, Ordering::SeqCst);
        for side in [&self.client, &self.upstream] {
            let _ = reset_on_close(side);
            // Says nothing to the other side, but ends whoever reads.
            let _ = side.shutdown(Shutdown::Read);
        }
        !was_cut
    }
}

/// Has the system send a reset instead of a polite end.
fn reset_on_close(connection: &TcpStream) -> Result<()> {
    socket2::SockRef::from(connection).set_linger(Some(Duration::ZERO))
}
